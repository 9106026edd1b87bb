"""Who may call what, through a running server."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError, Message

from generated.grpc.health.v1 import health_pb2
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_api
from generated.spire.api.server.debug.v1 import debug_pb2
from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.server.localauthority.v1 import localauthority_pb2
from generated.spire.api.server.logger.v1 import logger_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.server.trustdomain.v1 import trustdomain_pb2
from generated.spire.api.types import bundle_pb2
from generated.spire.keys.v1 import keys_pb2
from server.authorization import POLICY, Role
from tests.simulators import pki
from tests.simulators.house import (
    AGENT,
    BUNDLE,
    ENTRY,
    HEALTH,
    SVID,
    House,
    csr,
    new_entry,
    refused,
    running,
    spiffe_id,
)
from tests.simulators.pki import ec_key, pkcs8
from transport.client import Channel
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity

SERVED = (AGENT, BUNDLE, ENTRY, SVID, "/spire.api.server.trustdomain.v1.TrustDomain/")
COUNT = ENTRY + "CountEntries"


async def minted(house: House, path: str) -> Channel:
    """A caller with an X509-SVID of a workload."""
    key = ec_key()
    request = svid_pb2.MintX509SVIDRequest(csr=csr(key, uris=[f"spiffe://example.org{path}"]))
    svid = (await house.local.unary(SVID + "MintX509SVID", request, svid_pb2.MintX509SVIDResponse)).svid
    return await house.remote(InProcessIdentity(tuple(svid.cert_chain), pkcs8(key)))


async def count(channel: Channel) -> int:
    return (await channel.unary(COUNT, entry_pb2.CountEntriesRequest(), entry_pb2.CountEntriesResponse)).count


def test_the_policy_names_every_method() -> None:
    modules = (
        agent_pb2,
        bundle_api,
        debug_pb2,
        entry_pb2,
        health_pb2,
        keys_pb2,
        localauthority_pb2,
        logger_pb2,
        svid_pb2,
        trustdomain_pb2,
    )
    defined = {
        f"/{service.full_name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(POLICY) == defined
    assert {path for path, role in POLICY.items() if Role.ANY in role} == {AGENT + "AttestAgent", BUNDLE + "GetBundle"}


async def test_a_caller_without_a_certificate_may_attest_and_get_the_bundle(house: House) -> None:
    stranger = await house.remote()
    assert await stranger.unary(BUNDLE + "GetBundle", bundle_api.GetBundleRequest(), bundle_pb2.Bundle)
    for path in POLICY:
        if not path.startswith(SERVED) or Role.ANY in POLICY[path]:
            continue
        error = await refused(stranger, path, empty_pb2.Empty())
        if error.code is not Code.UNIMPLEMENTED:
            assert (error.code, error.message) == (Code.PERMISSION_DENIED, f"authorization denied for method {path}")
            assert not error.details


async def test_an_agent_may_not_administer(house: House) -> None:
    agent = await house.attest()
    for path in (COUNT, SVID + "MintX509SVID", AGENT + "CreateJoinToken"):
        error = await refused(agent.channel, path, empty_pb2.Empty())
        assert error.message == f"authorization denied for method {path}"
        assert not error.details


async def test_operators_on_the_socket_are_no_agents(house: House) -> None:
    for path in (ENTRY + "GetAuthorizedEntries", SVID + "BatchNewX509SVID", AGENT + "RenewAgent"):
        error = await refused(house.local, path, empty_pb2.Empty())
        assert (error.code, error.message) == (Code.PERMISSION_DENIED, f"authorization denied for method {path}")


async def test_health_is_private(house: House) -> None:
    error = await refused(await house.remote(), HEALTH + "Check", health_pb2.HealthCheckRequest())
    assert (error.code, error.message) == (Code.UNIMPLEMENTED, "unknown service grpc.health.v1.Health")
    error = await refused(house.local, HEALTH + "Check", health_pb2.HealthCheckRequest(service="x"))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "per-service health is not supported")
    listed = await house.local.unary(HEALTH + "List", health_pb2.HealthListRequest(), health_pb2.HealthListResponse)
    assert listed.statuses[""].status == health_pb2.HealthCheckResponse.SERVING
    stream = house.local.server_stream(
        HEALTH + "Watch", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
    )
    assert (await anext(stream)).status == health_pb2.HealthCheckResponse.SERVING
    await stream.aclose()


async def test_an_admin_entry_makes_an_admin(house: House) -> None:
    admin = await minted(house, "/admin")
    assert (await refused(admin, COUNT, empty_pb2.Empty())).code is Code.PERMISSION_DENIED
    entry = new_entry("/admin", spiffe_id("/parent"))
    entry.admin = True
    await house.create(entry)
    assert await count(admin) == 1
    error = await refused(admin, SVID + "BatchNewX509SVID", svid_pb2.BatchNewX509SVIDRequest())
    assert error.code is Code.PERMISSION_DENIED


async def test_an_admin_entry_that_has_expired_makes_nobody_an_admin(house: House) -> None:
    """It is deleted only minutes later."""
    admin = await minted(house, "/admin")
    entry = new_entry("/admin", spiffe_id("/parent"))
    entry.admin = True
    entry.expires_at = int(time.time()) - 1
    await house.create(entry)
    assert (await refused(admin, COUNT, empty_pb2.Empty())).code is Code.PERMISSION_DENIED


async def test_an_admin_of_the_configuration(tmp_path: Path) -> None:
    async with running(tmp_path, settings='admin_ids = ["spiffe://example.org/admin"]') as house:
        assert await count(await minted(house, "/admin")) == 0
        assert (await refused(await minted(house, "/other"), COUNT, empty_pb2.Empty())).code is Code.PERMISSION_DENIED


@pytest.mark.parametrize("uri", ["spiffe://example.org/spire/agent/x", "spiffe://other.org/admin", "https://a"])
async def test_a_certificate_of_somebody_else(house: House, uri: str) -> None:
    key = ec_key()
    now = datetime.now(UTC)
    forged = pki.Authority.root().sign(
        pki.Certificate(uris=(uri,), not_before=now - pki.HOUR, not_after=now + pki.HOUR), key
    )
    channel = await house.remote(InProcessIdentity((forged,), pkcs8(key)))
    for path in (BUNDLE + "GetBundle", ENTRY + "GetAuthorizedEntries"):
        error = await refused(channel, path, empty_pb2.Empty())
        assert error.code is Code.UNAUTHENTICATED
        assert error.message.startswith("client certificate is not accepted: ")


async def test_an_agent_that_is_written_down_nowhere(house: House) -> None:
    """A workload's SVID is no agent's, and an agent's ID alone is not enough."""
    workload = await minted(house, "/spire-agent")
    error = await refused(workload, ENTRY + "GetAuthorizedEntries", empty_pb2.Empty())
    assert error.code is Code.PERMISSION_DENIED
    [details] = error.details
    assert b"\x08\x02" in details.SerializeToString(), "AGENT_NOT_ATTESTED"


async def test_an_svid_that_ends_while_the_connection_lasts(tmp_path: Path) -> None:
    async with running(tmp_path, settings='agent_ttl = "2s"') as house:
        agent = await house.attest()
        await agent.entries()
        async with asyncio.timeout(30):
            while True:
                try:
                    await agent.entries()
                except RpcError as error:
                    ended = error
                    break
                await asyncio.sleep(0.1)
        assert ended.code is Code.PERMISSION_DENIED
        [details] = ended.details
        assert b"\x08\x01" in details.SerializeToString(), "AGENT_EXPIRED"


async def test_unknown_methods(house: House) -> None:
    for path, message in (
        (AGENT + "Nothing", "unknown method Nothing for service spire.api.server.agent.v1.Agent"),
        ("/no.Such/Thing", "unknown service no.Such"),
    ):
        error = await refused(house.local, path, empty_pb2.Empty())
        assert (error.code, error.message) == (Code.UNIMPLEMENTED, message)


class Raw:
    """Bytes in the place of a message."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self._data


def noise(chance: random.Random) -> bytes:
    """Random bytes, half of them well-formed fields with low numbers."""
    body = chance.randbytes(chance.randrange(40))
    return bytes((chance.randrange(1, 8) << 3 | 2, len(body))) + body if chance.random() < 0.5 else body


async def test_random_bytes_are_answered_with_a_status(house: House) -> None:
    """What cannot be parsed, or says nonsense, ends in an error that is no fault of ours, and the server goes on."""
    chance = random.Random(7)
    agent = await house.attest()
    errors: list[RpcError] = []
    for path in (path for path in POLICY if path.startswith(SERVED)):
        channel = agent.channel if POLICY[path] is Role.AGENT else house.local
        for _ in range(10):
            with suppress(DecodeError):
                try:
                    await channel.unary(path, cast(Message, Raw(noise(chance))), empty_pb2.Empty, timeout=10)
                except RpcError as error:
                    errors.append(error)
    assert errors
    assert not [error for error in errors if "internal error" in error.message]
    assert not {error.code for error in errors} & {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE}
    assert await count(house.local) == 0
