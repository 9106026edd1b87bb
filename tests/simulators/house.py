"""A whole server in the test's own event loop, with clients for its private socket and for agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from google.protobuf.message import Message

from generated.grpc.health.v1 import health_pb2
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_api
from generated.spire.api.server.entry.v1 import entry_pb2 as entry_api
from generated.spire.api.types import bundle_pb2, entry_pb2, jointoken_pb2, selector_pb2, spiffeid_pb2, x509svid_pb2
from identity import x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from server.config import load
from server.run import serve
from tests.simulators.pki import PrivateKey, ec_key, pkcs8
from tests.simulators.spire import free_port
from transport.client import Bidi, Channel
from transport.status import RpcError
from transport.tls import InProcessIdentity, client_context

TRUST_DOMAIN = TrustDomain("example.org")
PATIENCE = 60.0

AGENT = "/spire.api.server.agent.v1.Agent/"
BUNDLE = "/spire.api.server.bundle.v1.Bundle/"
ENTRY = "/spire.api.server.entry.v1.Entry/"
SVID = "/spire.api.server.svid.v1.SVID/"
HEALTH = "/grpc.health.v1.Health/"

CONFIG = """
server {{
  trust_domain = "example.org"
  bind_address = "127.0.0.1"
  bind_port = {port}
  socket_path = "{folder}/api.sock"
  data_dir = "{folder}"
  log_level = "DEBUG"
  ratelimit {{ {ratelimit} }}
  {settings}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{
    database_type = "sqlite3"
    connection_string = "{folder}/datastore.sqlite3"
  }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  {plugins}
}}
"""


def spiffe_id(path: str) -> spiffeid_pb2.SPIFFEID:
    return spiffeid_pb2.SPIFFEID(trust_domain="example.org", path=path)


def new_entry(path: str, parent: spiffeid_pb2.SPIFFEID, *selectors: str) -> entry_pb2.Entry:
    pairs = [each.split(":", 1) for each in selectors or ("unix:uid:1",)]
    return entry_pb2.Entry(
        spiffe_id=spiffe_id(path),
        parent_id=parent,
        selectors=[selector_pb2.Selector(type=kind, value=value) for kind, value in pairs],
    )


def csr(key: PrivateKey, *, uris: Sequence[str] = (), dns_names: Sequence[str] = ()) -> bytes:
    """A DER signing request."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(name) for name in dns_names]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@dataclass
class AgentClient:
    """An attested agent: its SVID, the key of it, and a channel that shows it."""

    house: House
    svid: x509svid_pb2.X509SVID
    key: PrivateKey
    channel: Channel

    @property
    def id(self) -> spiffeid_pb2.SPIFFEID:
        return self.svid.id

    async def renew(self) -> AgentClient:
        key = ec_key()
        request = agent_pb2.RenewAgentRequest(params=agent_pb2.AgentX509SVIDParams(csr=csr(key)))
        renewed = await self.channel.unary(AGENT + "RenewAgent", request, agent_pb2.RenewAgentResponse)
        return await self.house.as_agent(renewed.svid, key)

    async def entries(self) -> list[entry_pb2.Entry]:
        response = await self.channel.unary(
            ENTRY + "GetAuthorizedEntries",
            entry_api.GetAuthorizedEntriesRequest(),
            entry_api.GetAuthorizedEntriesResponse,
        )
        return list(response.entries)


@dataclass
class House:
    folder: Path
    port: int
    local: Channel
    channels: list[Channel] = field(default_factory=list[Channel])

    async def bundle(self) -> bundle_pb2.Bundle:
        return await self.local.unary(BUNDLE + "GetBundle", bundle_api.GetBundleRequest(), bundle_pb2.Bundle)

    async def remote(self, identity: InProcessIdentity | None = None) -> Channel:
        """A channel over TCP; the server's SVID is verified."""
        bundle = await self.bundle()
        roots = {TRUST_DOMAIN: [each.asn1 for each in bundle.x509_authorities]}

        def verify(chain: tuple[bytes, ...]) -> None:
            found = x509svid.verify(chain, roots, datetime.now(UTC))
            assert found == SpiffeId(TRUST_DOMAIN, "/spire/server")

        channel = Channel.tcp("127.0.0.1", self.port, lambda: client_context(identity), verify)
        self.channels.append(channel)
        return channel

    async def as_agent(self, svid: x509svid_pb2.X509SVID, key: PrivateKey) -> AgentClient:
        channel = await self.remote(InProcessIdentity(tuple(svid.cert_chain), pkcs8(key)))
        return AgentClient(self, svid, key, channel)

    async def join_token(self, ttl: int = 600, alias: str = "", token: str = "") -> str:
        request = agent_pb2.CreateJoinTokenRequest(ttl=ttl, token=token)
        if alias:
            request.agent_id.CopyFrom(spiffe_id(alias))
        made = await self.local.unary(AGENT + "CreateJoinToken", request, jointoken_pb2.JoinToken)
        return made.value

    async def attest(self, token: str | None = None) -> AgentClient:
        key = ec_key()
        channel = await self.remote()
        response = await attest(channel, "join_token", (token or await self.join_token()).encode(), csr(key))
        return await self.as_agent(response.result.svid, key)

    async def create(self, *entries: entry_pb2.Entry) -> list[entry_pb2.Entry]:
        response = await self.local.unary(
            ENTRY + "BatchCreateEntry",
            entry_api.BatchCreateEntryRequest(entries=entries),
            entry_api.BatchCreateEntryResponse,
        )
        assert [each.status.code for each in response.results] == [0] * len(entries), response
        return [each.entry for each in response.results]


async def attest(channel: Channel, kind: str, payload: bytes, request: bytes) -> agent_pb2.AttestAgentResponse:
    """The first answer of AttestAgent."""
    message = agent_pb2.AttestAgentRequest()
    message.params.data.type = kind
    message.params.data.payload = payload
    message.params.params.csr = request
    stream: Bidi[agent_pb2.AttestAgentResponse]
    async with channel.bidi(AGENT + "AttestAgent", agent_pb2.AttestAgentResponse, timeout=PATIENCE) as stream:
        await stream.send(message)
        response = await stream.recv()
        assert response is not None
        return response


async def refused(channel: Channel, path: str, request: Message) -> RpcError:
    """The error of a call that must fail."""
    try:
        answer = await channel.unary(path, request, health_pb2.HealthCheckResponse, timeout=PATIENCE)
    except RpcError as error:
        return error
    raise AssertionError(f"{path} was answered: {answer}")


@asynccontextmanager
async def running(folder: Path, settings: str = "", ratelimit: str = "", plugins: str = "") -> AsyncGenerator[House]:
    """A server that serves until the block ends. What is given stands in its file, `plugins` beside the usual ones."""
    port = free_port()
    path = folder / "server.conf"
    limits = ratelimit or "attestation = false\n signing = false"
    path.write_text(CONFIG.format(port=port, folder=folder, settings=settings, ratelimit=limits, plugins=plugins))
    serving = asyncio.create_task(serve(load(str(path))))
    house = House(folder, port, Channel.unix(str(folder / "api.sock")))
    try:
        await _healthy(house, serving)
        yield house
    finally:
        for channel in (house.local, *house.channels):
            await channel.close()
        serving.cancel()
        await asyncio.wait([serving])
    if not serving.cancelled():
        serving.result()


async def _healthy(house: House, serving: asyncio.Task[None]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            if serving.done():
                serving.result()
            try:
                answer = await house.local.unary(
                    HEALTH + "Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
                )
            except RpcError:
                await asyncio.sleep(0.05)
                continue
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            return
