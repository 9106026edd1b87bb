"""Every method of the server, called by everybody: whom SPIRE admits is admitted, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from enum import Enum
from pathlib import Path

import pytest
from google.protobuf import any_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from generated.grpc.health.v1 import health_pb2
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.server.debug.v1 import debug_pb2
from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.server.localauthority.v1 import localauthority_pb2
from generated.spire.api.server.logger.v1 import logger_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.server.trustdomain.v1 import trustdomain_pb2
from generated.spire.api.types import status_pb2
from generated.spire.keys.v1 import keys_pb2
from tests.simulators.everybody import ADMIN_IDS, everybody
from tests.simulators.house import PATIENCE, running
from transport.client import Channel
from transport.status import Code, RpcError

TABLE = """
spire.api.server.svid.v1.SVID/MintX509SVID  admin local
spire.api.server.svid.v1.SVID/MintJWTSVID  admin local
spire.api.server.svid.v1.SVID/MintWITSVID  admin local
spire.api.server.svid.v1.SVID/BatchNewX509SVID  agent
spire.api.server.svid.v1.SVID/NewJWTSVID  agent
spire.api.server.svid.v1.SVID/BatchNewWITSVID  agent
spire.api.server.svid.v1.SVID/NewDownstreamX509CA  downstream
spire.api.server.bundle.v1.Bundle/GetBundle  any
spire.api.server.bundle.v1.Bundle/AppendBundle  admin local
spire.api.server.bundle.v1.Bundle/PublishJWTAuthority  downstream
spire.api.server.bundle.v1.Bundle/PublishWITAuthority  downstream
spire.api.server.bundle.v1.Bundle/CountBundles  admin local
spire.api.server.bundle.v1.Bundle/ListFederatedBundles  admin local
spire.api.server.bundle.v1.Bundle/GetFederatedBundle  admin agent local
spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle  admin local
spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle  admin local
spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle  admin local
spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle  admin local
spire.api.server.debug.v1.Debug/GetInfo  local
spire.api.server.entry.v1.Entry/CountEntries  admin local
spire.api.server.entry.v1.Entry/ListEntries  admin local
spire.api.server.entry.v1.Entry/GetEntry  admin local
spire.api.server.entry.v1.Entry/BatchCreateEntry  admin local
spire.api.server.entry.v1.Entry/BatchUpdateEntry  admin local
spire.api.server.entry.v1.Entry/BatchDeleteEntry  admin local
spire.api.server.entry.v1.Entry/GetAuthorizedEntries  agent
spire.api.server.entry.v1.Entry/SyncAuthorizedEntries  agent
spire.api.server.logger.v1.Logger/GetLogger  local
spire.api.server.logger.v1.Logger/SetLogLevel  local
spire.api.server.logger.v1.Logger/ResetLogLevel  local
spire.api.server.agent.v1.Agent/CountAgents  admin local
spire.api.server.agent.v1.Agent/ListAgents  admin local
spire.api.server.agent.v1.Agent/GetAgent  admin local
spire.api.server.agent.v1.Agent/DeleteAgent  admin local
spire.api.server.agent.v1.Agent/BanAgent  admin local
spire.api.server.agent.v1.Agent/AttestAgent  any
spire.api.server.agent.v1.Agent/RenewAgent  agent
spire.api.server.agent.v1.Agent/PostStatus  agent
spire.api.server.agent.v1.Agent/CreateJoinToken  admin local
grpc.health.v1.Health/Check  local
grpc.health.v1.Health/List  local
grpc.health.v1.Health/Watch  local
spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships  admin local
spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship  admin local
spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship  admin local
spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship  admin local
spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship  admin local
spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle  admin local
spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState  admin local
spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority  admin local
spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority  admin local
spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority  admin local
spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority  admin local
spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState  admin local
spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority  admin local
spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority  admin local
spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority  admin local
spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority  admin local
spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority  admin local
spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority  admin local
spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState  admin local
spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority  admin local
spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority  admin local
spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority  admin local
spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority  admin local
spire.keys.v1.Keys/ListKeys  local
spire.keys.v1.Keys/VerifyKeys  local
spire.keys.v1.Keys/DisposeKey  local
"""
"""What SPIRE 1.16 allows, method by method; then what is ours."""

ROLES = {
    "local": "local",
    "anonymous": "",
    "agent": "agent",
    "workload": "",
    "admin by entry": "admin",
    "admin by configuration": "admin",
    "downstream": "downstream",
}
MODULES = (
    agent_pb2, bundle_pb2, debug_pb2, entry_pb2, health_pb2, keys_pb2, localauthority_pb2, logger_pb2, svid_pb2,
    trustdomain_pb2,
)  # fmt: skip
METHODS: Mapping[str, MethodDescriptor] = {
    f"{service.full_name}/{method.name}": method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
PRIVATE = (
    "grpc.health.v1.Health",
    "spire.api.server.debug.v1.Debug",
    "spire.api.server.logger.v1.Logger",
    "spire.keys.v1.Keys",
)
"""Services of the Unix socket alone."""
NOT_ATTESTED = any_pb2.Any()
NOT_ATTESTED.Pack(status_pb2.PermissionDeniedDetails(reason=status_pb2.PermissionDeniedDetails.AGENT_NOT_ATTESTED))
WITHOUT_END = "grpc.health.v1.Health/Watch"


class Outcome(Enum):
    ADMITTED = "admitted"
    DENIED = "denied"
    DENIED_AS_AGENT = "denied, as no agent of this server"
    ABSENT = "not served"


def rows() -> dict[str, frozenset[str]]:
    """Whom each method admits."""
    found: dict[str, frozenset[str]] = {}
    for line in TABLE.split("\n"):
        if line:
            path, *roles = line.split()
            found[path] = frozenset(roles)
    return found


def test_the_table_has_every_method() -> None:
    assert set(rows()) == set(METHODS)


@pytest.mark.timeout(300)
async def test_everybody_is_admitted_where_spire_does_and_nowhere_else(tmp_path: Path) -> None:
    allowed = rows()
    async with running(tmp_path, ADMIN_IDS) as house:
        known = await everybody(house)
        assert set(known) == set(ROLES)
        served = {path for path in allowed if await outcome(house.local, path) is not Outcome.ABSENT}
        assert served >= {
            path for path in allowed if path.startswith(("spire.api.server.agent", "spire.api.server.entry"))
        }
        wrong: list[str] = []
        for caller, channel in known.items():
            for path, roles in allowed.items():
                found = await outcome(channel, path)
                if found is not expected(caller, path, roles, served=path in served):
                    wrong.append(f"{caller}: {path} is {found.value}")
        assert not wrong


def expected(caller: str, path: str, roles: frozenset[str], *, served: bool) -> Outcome:
    private = path.startswith(PRIVATE)
    if not served or (private and caller != "local"):
        return Outcome.ABSENT
    if "any" in roles or ROLES[caller] in roles:
        return Outcome.ADMITTED
    has_certificate = caller not in ("local", "anonymous")
    return Outcome.DENIED_AS_AGENT if has_certificate and "agent" in roles else Outcome.DENIED


async def outcome(channel: Channel, path: str) -> Outcome:
    """What becomes of an empty request."""
    method = METHODS[path]
    service = method.containing_service
    try:
        await call(channel, path, method)
    except RpcError as error:
        if error.code is Code.UNIMPLEMENTED and error.message in absent(service, method):
            return Outcome.ABSENT
        if (error.code, error.message) != (Code.PERMISSION_DENIED, f"authorization denied for method /{path}"):
            return Outcome.ADMITTED
        return Outcome.DENIED_AS_AGENT if NOT_ATTESTED in error.details else Outcome.DENIED
    return Outcome.ADMITTED


def absent(service: ServiceDescriptor, method: MethodDescriptor) -> tuple[str, str]:
    return (
        f"unknown service {service.full_name}",
        f"unknown method {method.name} for service {service.full_name}",
    )


async def call(channel: Channel, path: str, method: MethodDescriptor) -> None:
    """Send an empty request, or none where the caller streams."""
    request, response = GetMessageClass(method.input_type)(), GetMessageClass(method.output_type)
    if method.client_streaming:
        async with channel.bidi(f"/{path}", response, timeout=PATIENCE) as stream:
            await stream.close_send()
            while await stream.recv() is not None:
                pass
    elif method.server_streaming:
        assert path == WITHOUT_END
        async with aclosing(channel.server_stream(f"/{path}", request, response)) as answers:
            await anext(answers)
    else:
        await channel.unary(f"/{path}", request, response, timeout=PATIENCE)
