"""What a server should never send is refused and said, and what the agent has is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.attest import attest
from agent.startup import attested
from generated.spiffe.workload import workload_pb2
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_rpc_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2, x509svid_pb2
from identity.spiffeid import TrustDomain
from tests.simulators import pki
from tests.simulators.fake_server import Authority, FakeServer
from tests.simulators.in_process_agent import PATIENCE, Home, until
from transport import tls
from transport.peer import Peer
from transport.router import Context, Method, Router
from transport.server import Server
from transport.status import Code, RpcError

X509 = ("FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse)
JWT = ("FetchJWTSVID", workload_pb2.JWTSVIDRequest(audience=["billing"]), workload_pb2.JWTSVIDResponse)
NODE = "spiffe://example.org/spire/agent/join_token/token"
WORKLOAD = "spiffe://example.org/workload"

Lie = Callable[["LyingServer"], list[bytes]]


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


@dataclass
class LyingServer(FakeServer):
    """`chain` takes the place of every SVID in answers, `signed_id` that of their IDs, `sent_bundle` the bundle's."""

    chain: list[bytes] | None = None
    signed_id: str = ""
    sent_bundle: bundle_pb2.Bundle | None = None
    jwt_id: str = ""
    signer: Authority | None = None
    failing_bundles: int = 0

    def bundle(self) -> bundle_pb2.Bundle:
        return super().bundle() if self.sent_bundle is None else self.sent_bundle

    def _replace(self, svid: x509svid_pb2.X509SVID, csr: bytes) -> None:
        if self.signer is not None:
            svid.cert_chain[:] = [der(self.signer.sign_request(csr, WORKLOAD, 3600)), *self.signer.above]
        if self.signed_id:
            svid.cert_chain[:] = [der(self.authority.sign_request(csr, self.signed_id, 3600))]
        if self.chain is not None:
            svid.cert_chain[:] = self.chain

    async def _get_bundle(
        self, request: bundle_rpc_pb2.GetBundleRequest, peer: Peer, context: Context
    ) -> bundle_pb2.Bundle:
        if self.failing_bundles:
            self.failing_bundles -= 1
            raise RpcError(Code.UNAVAILABLE, "away")
        return await super()._get_bundle(request, peer, context)

    async def _new_x509_svids(
        self, request: svid_pb2.BatchNewX509SVIDRequest, peer: Peer, context: Context
    ) -> svid_pb2.BatchNewX509SVIDResponse:
        response = await super()._new_x509_svids(request, peer, context)
        for asked, result in zip(request.params, response.results, strict=True):
            self._replace(result.svid, asked.csr)
        return response

    async def _renew(
        self, request: agent_pb2.RenewAgentRequest, peer: Peer, context: Context
    ) -> agent_pb2.RenewAgentResponse:
        response = await super()._renew(request, peer, context)
        self._replace(response.svid, request.params.csr)
        return response

    async def _new_jwt_svid(
        self, request: svid_pb2.NewJWTSVIDRequest, peer: Peer, context: Context
    ) -> svid_pb2.NewJWTSVIDResponse:
        response = await super()._new_jwt_svid(request, peer, context)
        if self.jwt_id:
            response.svid.id.path = self.jwt_id
        return response


@pytest.fixture
async def server() -> AsyncGenerator[LyingServer, None]:
    made = LyingServer()
    async with made.running():
        yield made


@pytest.fixture
def home(tmp_path: Path, server: LyingServer) -> Home:
    return Home(tmp_path, server)


def for_another_key(spiffe_id: str) -> Lie:
    return lambda server: [der(server.authority.sign(spiffe_id, pki.ec_key().public_key(), 3600))]


def garbage(_: LyingServer) -> list[bytes]:
    return [b"garbage"]


def nothing(_: LyingServer) -> list[bytes]:
    return []


@pytest.mark.parametrize("lie", [for_another_key(WORKLOAD), garbage], ids=["another key", "garbage"])
async def test_a_workloads_svid_for_another_key_is_refused_and_the_old_one_kept(
    home: Home, server: LyingServer, lie: Lie, caplog: pytest.LogCaptureFixture
) -> None:
    server.add_entry("a")
    async with home.running() as agent:
        before = (await agent.first(*X509)).svids[0].x509_svid
        server.chain = lie(server)
        server.add_entry("a", revision_number=1)
        asked = server.calls["BatchNewX509SVID"]
        await until(lambda: server.calls["BatchNewX509SVID"] > asked)
        assert (await agent.first(*X509)).svids[0].x509_svid == before
        server.chain = None
        stream = aiter(agent.stream(*X509))
        async with asyncio.timeout(PATIENCE):
            while (await anext(stream)).svids[0].x509_svid == before:
                pass
    assert "Refused an X509-SVID" in caplog.text


async def test_an_svid_of_another_id_is_refused(home: Home, server: LyingServer) -> None:
    server.add_entry("a")
    server.signed_id = "spiffe://example.org/admin"
    server.agent_ttl = 6
    async with home.running() as agent:
        own = agent.storage.state.svid
        await until(lambda: agent.managing.cache.next_due())
        assert server.calls["BatchNewX509SVID"]
        assert agent.managing.cache.svid_count == 0
        await until(lambda: server.calls["RenewAgent"])
        assert agent.storage.state.svid == own
        server.signed_id = ""
        await until(lambda: agent.storage.state.svid != own)
        assert len((await agent.first(*X509)).svids) == 1


@pytest.mark.parametrize("below", [False, True], ids=["a root", "an intermediate"])
async def test_an_svid_of_another_trust_domains_authority_is_refused(
    home: Home, server: LyingServer, below: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server.add_entry("a")
    async with home.running() as agent:
        before = (await agent.first(*X509)).svids[0].x509_svid
        stranger = Authority(server.trust_domain)
        server.signer = Authority(server.trust_domain, parent=stranger) if below else stranger
        server.add_entry("a", revision_number=1)
        await until(lambda: "Refused an X509-SVID" in caplog.text)
        assert (await agent.first(*X509)).svids[0].x509_svid == before
        server.signer = None
        await until(lambda: agent.managing.cache.next_due() not in (0, None))
        stream = aiter(agent.stream(*X509))
        async with asyncio.timeout(PATIENCE):
            while (await anext(stream)).svids[0].x509_svid == before:
                pass


async def test_a_workloads_svid_that_has_expired_is_refused(
    home: Home, server: LyingServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.add_entry("a")
    server.svid_ttl = -5
    async with home.running() as agent:
        await until(lambda: server.calls["BatchNewX509SVID"])
        await until(lambda: agent.managing.cache.next_due())
        assert agent.managing.cache.svid_count == 0
    assert "Refused an X509-SVID" in caplog.text


@pytest.mark.parametrize("lie", [for_another_key(NODE), garbage, nothing], ids=["another key", "garbage", "nothing"])
async def test_an_agents_own_svid_for_another_key_is_refused_and_the_old_one_kept(
    home: Home, server: LyingServer, lie: Lie
) -> None:
    server.agent_ttl = 6
    async with home.running() as agent:
        before = agent.storage.state.svid
        server.chain = lie(server)
        await until(lambda: server.calls["RenewAgent"])
        assert agent.storage.state.svid == before
        server.chain = None
        await until(lambda: agent.storage.state.svid != before)
        assert not agent.task.done()


@pytest.mark.parametrize(
    "bundle",
    [
        bundle_pb2.Bundle(trust_domain="example.org"),
        bundle_pb2.Bundle(trust_domain="example.org", x509_authorities=[bundle_pb2.X509Certificate(asn1=b"garbage")]),
        bundle_pb2.Bundle(
            trust_domain="other.org",
            x509_authorities=[bundle_pb2.X509Certificate(asn1=Authority(TrustDomain("other.org")).der)],
        ),
    ],
    ids=["empty", "garbage", "another's"],
)
async def test_a_bundle_that_cannot_be_the_trust_domains_is_refused_and_the_old_one_kept(
    home: Home, server: LyingServer, bundle: bundle_pb2.Bundle
) -> None:
    server.add_entry("a")
    async with home.running() as agent:
        before = (await agent.first(*X509)).svids[0].bundle
        stored = agent.storage.state.bundle
        server.sent_bundle = bundle
        asked = server.calls["GetBundle"]
        await until(lambda: server.calls["GetBundle"] >= asked + 3)
        assert (await agent.first(*X509)).svids[0].bundle == before
        assert agent.storage.state.bundle == stored
        assert not agent.task.done()


async def test_a_foreign_trust_domains_bundle_cannot_be_the_own_one(home: Home, server: LyingServer) -> None:
    server.add_entry("a", federates_with=["other.org"])
    server.federated["other.org"] = bundle_pb2.Bundle(
        trust_domain="example.org",
        x509_authorities=[bundle_pb2.X509Certificate(asn1=Authority(server.trust_domain).der)],
    )
    async with home.running() as agent:
        response = await agent.first(*X509)
        assert response.svids[0].bundle == server.authority.der
        assert not response.federated_bundles


async def test_a_token_of_another_id_is_refused(home: Home, server: LyingServer) -> None:
    server.add_entry("a")
    async with home.running() as agent:
        server.jwt_id = "/admin"
        with pytest.raises(RpcError, match="is of"):
            await agent.ask(*JWT)
        server.jwt_id = ""
        assert (await agent.ask(*JWT)).svids


async def test_the_proof_is_not_spent_before_the_bundle_has_come(home: Home, server: LyingServer) -> None:
    start = home.start()
    server.failing_bundles = 1
    with pytest.raises(RpcError):
        await attest(start.address, start.attestor, start.keys, None, [server.authority.der])
    assert server.tokens == {"token"}
    assert (await attested(start)).svid.reattestable is False


@pytest.mark.parametrize(
    ("spiffe_id", "ttl", "own"),
    [
        ("spiffe://example.org/spire/server", 3600, False),
        ("spiffe://example.org/spire/server", -5, True),
        ("spiffe://example.org/spire/agent/join_token/token", 3600, True),
        ("spiffe://example.org/workload", 3600, True),
        ("spiffe://other.org/spire/server", 3600, True),
    ],
    ids=["another CA's", "expired", "an agent", "a workload", "another trust domain's"],
)
async def test_who_is_not_the_server_is_given_no_proof(
    home: Home, server: LyingServer, spiffe_id: str, ttl: float, own: bool
) -> None:
    impostor = Router()
    seen: list[str] = []

    async def note(method: Method, peer: Peer, context: Context) -> None:
        del peer, context
        seen.append(method.name)

    impostor.before = note
    authority = server.authority if own else Authority(server.trust_domain)
    context = tls.server_context(authority.identity(spiffe_id, ttl))
    listening = Server(impostor)
    port = await listening.listen_tcp("127.0.0.1", 0, lambda: context)
    start = home.start()
    try:
        with pytest.raises(RpcError, match=r"not trusted|unexpected server"):
            await attest(replace(start.address, port=port), start.attestor, start.keys, None, [server.authority.der])
    finally:
        await listening.drain(0.1)
    assert not seen
