"""The host services' handlers. Their callers are the external plugins, over a socket that only they can reach."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from generated.spire.hostservice.server.agentstore.v1 import agentstore_pb2
from generated.spire.hostservice.server.identityprovider.v1 import identityprovider_pb2
from operations.errors import NotFound
from operations.metrics import emitters
from plugins.external import metrics
from plugins.external.bundles import to_plugin
from plugins.external.loading import HostService
from server.host_services import HostServices
from transport.peer import Peer
from transport.router import Context


def services(host: HostServices) -> Sequence[HostService]:
    """In the order in which SPIRE names them to a plugin."""

    async def fetch_x509_identity(
        _request: Message, _peer: Peer, _context: Context
    ) -> identityprovider_pb2.FetchX509IdentityResponse:
        parts = host.parts("IdentityProvider")
        bundle = await parts.bundles.get(parts.trust_domain)
        if bundle is None:
            raise NotFound(f'no bundle found for trust domain "{parts.trust_domain}"')
        identity = parts.svid.identity()
        return identityprovider_pb2.FetchX509IdentityResponse(
            identity=identityprovider_pb2.X509Identity(cert_chain=identity.chain, private_key=identity.private_key),
            bundle=to_plugin(bundle),
        )

    async def get_agent_info(
        request: agentstore_pb2.GetAgentInfoRequest, _peer: Peer, _context: Context
    ) -> agentstore_pb2.GetAgentInfoResponse:
        if await host.parts("AgentStore").nodes.get(request.agent_id) is None:
            raise NotFound("no such agent")
        return agentstore_pb2.GetAgentInfoResponse(info=agentstore_pb2.AgentInfo(agent_id=request.agent_id))

    return (
        (
            identityprovider_pb2.DESCRIPTOR.services_by_name["IdentityProvider"],
            {"FetchX509Identity": fetch_x509_identity},
        ),
        (agentstore_pb2.DESCRIPTOR.services_by_name["AgentStore"], {"GetAgentInfo": get_agent_info}),
        metrics.service(emitters()),
    )
