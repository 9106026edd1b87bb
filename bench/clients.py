"""The load: an agent that attests and asks for SVIDs in batches, and a workload that connects anew for each fetch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from generated.spiffe.workload import workload_pb2
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import attestation_pb2
from identity.spiffeid import TrustDomain
from identity.x509svid import verify
from tests.simulators.spire import Server
from transport.client import Channel
from transport.tls import InProcessIdentity, TlsContext, client_context

AGENT = "/spire.api.server.agent.v1.Agent/"
SVID = "/spire.api.server.svid.v1.SVID/"


def signing_request(spiffe_id: str) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A DER CSR for a new P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "US")])
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(uri, critical=False)
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER), key


class Agent:
    """An attested agent, as far as a server can tell."""

    def __init__(self, server: Server) -> None:
        self._port = server.port
        self._trust_domain = TrustDomain.parse(server.trust_domain)
        bundle = x509.load_pem_x509_certificates(server.bundle().encode())
        self._roots = {self._trust_domain: [root.public_bytes(Encoding.DER) for root in bundle]}
        self._channel: Channel | None = None

    def _connect(self, context: TlsContext) -> Channel:
        def check(chain: Sequence[bytes]) -> None:
            verify(chain, self._roots, datetime.now(UTC))

        return Channel.tcp("127.0.0.1", self._port, tls=lambda: context, verify=check)

    async def attest(self, token: str) -> None:
        request, key = signing_request(f"spiffe://{self._trust_domain.name}/spire/agent/join_token/{token}")
        params = agent_pb2.AttestAgentRequest.Params(
            data=attestation_pb2.AttestationData(type="join_token", payload=token.encode()),
            params=agent_pb2.AgentX509SVIDParams(csr=request),
        )
        channel = self._connect(client_context(None))
        async with channel.bidi(AGENT + "AttestAgent", agent_pb2.AttestAgentResponse) as call:
            await call.send(agent_pb2.AttestAgentRequest(params=params))
            response = await call.recv()
        await channel.close()
        assert response is not None
        private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        identity = InProcessIdentity(tuple(response.result.svid.cert_chain), private)
        self._channel = self._connect(client_context(identity))

    async def batch(self, params: Sequence[svid_pb2.NewX509SVIDParams]) -> int:
        """One BatchNewX509SVID. Returns how many SVIDs came."""
        assert self._channel is not None
        response = await self._channel.unary(
            SVID + "BatchNewX509SVID",
            svid_pb2.BatchNewX509SVIDRequest(params=params),
            svid_pb2.BatchNewX509SVIDResponse,
            timeout=60,
        )
        for result in response.results:
            assert result.status.code == 0, result.status.message
        return len(response.results)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


async def fetch_on_a_new_connection(socket: str) -> int:
    """What a workload does at its start: connect, take the first X509-SVID update, leave. Returns the identities."""
    channel = Channel.unix(socket)
    updates = channel.server_stream(
        "/SpiffeWorkloadAPI/FetchX509SVID",
        workload_pb2.X509SVIDRequest(),
        workload_pb2.X509SVIDResponse,
        metadata={"workload.spiffe.io": "true"},
    )
    update = await anext(updates)
    await channel.close()
    return len(update.svids)
