"""A day of a trust domain, at speed: agents attest, renew, synchronise and have SVIDs signed; operators change entries.

The server may be killed at any moment. Whoever meets that waits until it is back, and knows from then on that its last
request may have been carried out, or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_api
from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import attestation_pb2, bundle_pb2, jointoken_pb2, selector_pb2, spiffeid_pb2
from generated.spire.api.types import entry_pb2 as types_pb2
from identity import der, jwtsvid, x509svid
from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from tests.simulators.ledger import Ledger, Node
from tests.simulators.pki import pkcs8
from tests.simulators.spire import Server
from transport.client import Channel
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity, client_context

T = TypeVar("T")
M = TypeVar("M", bound=Message)
AGENT = "/spire.api.server.agent.v1.Agent/"
BUNDLE = "/spire.api.server.bundle.v1.Bundle/"
ENTRY = "/spire.api.server.entry.v1.Entry/"
SVID = "/spire.api.server.svid.v1.SVID/"

HALF_HOURS = 48
"""How often an agent with SVIDs of an hour renews them in a day."""

ENTRIES = 4
"""Of each agent."""

LIFE = 3600
"""Seconds that SVIDs live, at least: longer than the replay takes."""

TIMEOUT = 60.0
GONE = (Code.UNAVAILABLE, Code.CANCELLED, Code.UNKNOWN, Code.INTERNAL)
"""What a caller reads of a call whose server was killed."""


@dataclass
class Day:
    """What all share. `up` is set while the server can be asked, `idle` while no request is under way."""

    server: Server
    ledger: Ledger = field(default_factory=Ledger)
    up: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    epoch: int = 0
    answered: int = 0
    unanswered: int = 0
    _under_way: int = 0
    _milestones: list[tuple[int, asyncio.Event]] = field(default_factory=list[tuple[int, asyncio.Event]])
    _admin: Channel | None = None

    @property
    def trust_domain(self) -> TrustDomain:
        return TrustDomain(self.server.trust_domain)

    async def admin_unary(self, path: str, request: Message, response: type[M]) -> M:
        """A call on the admin socket."""
        if self._admin is None:
            self._admin = Channel.unix(self.server.socket)
        return await self._admin.unary(path, request, response, timeout=TIMEOUT)

    async def close(self) -> None:
        if self._admin is not None:
            await self._admin.close()
            self._admin = None

    async def attempt(self, request: Callable[[], Awaitable[T]]) -> T | None:
        """The answer, or None when the server was killed meanwhile. Other failures are raised."""
        await self.up.wait()
        epoch = self.epoch
        self._under_way += 1
        self.idle.clear()
        try:
            answer = await request()
        except RpcError as error:
            killed = not self.up.is_set() or self.epoch != epoch
            if not killed or error.code not in GONE:
                raise
            self.unanswered += 1
            return None
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.idle.set()
        self.answered += 1
        for milestone, reached in self._milestones:
            if self.answered >= milestone:
                reached.set()
        return answer

    async def certainly(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer, asked for until there is one: for what may be done twice."""
        while True:
            answer = await self.attempt(request)
            if answer is not None:
                return answer

    async def progress(self, answered: int) -> None:
        """Wait until so many requests were answered."""
        if self.answered >= answered:
            return
        milestone = (answered, asyncio.Event())
        self._milestones.append(milestone)
        await milestone[1].wait()
        self._milestones.remove(milestone)

    async def kill(self, number: int) -> None:
        """Kill the server while requests are under way, and wait until all of them have met that."""
        self.up.clear()
        await asyncio.to_thread(self.server.run.end, number)
        await self.idle.wait()
        await self.close()

    async def resume(self) -> None:
        self.epoch += 1
        self.up.set()

    async def bundle(self) -> Bundle:
        request = bundle_api.GetBundleRequest()
        return Bundle.from_proto(await self.admin_unary(BUNDLE + "GetBundle", request, bundle_pb2.Bundle))

    async def entries(self) -> list[types_pb2.Entry]:
        found: list[types_pb2.Entry] = []
        request = entry_pb2.ListEntriesRequest(page_size=500)
        while True:
            page = await self.admin_unary(ENTRY + "ListEntries", request, entry_pb2.ListEntriesResponse)
            found.extend(page.entries)
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def check(self, machines: Sequence[Machine]) -> None:
        """Hold the server to the ledger, and each machine's SVIDs to the bundle."""
        self.ledger.check_entries(await self.entries())
        agents = await self.admin_unary(
            AGENT + "ListAgents", agent_pb2.ListAgentsRequest(), agent_pb2.ListAgentsResponse
        )
        self.ledger.check_nodes(agents.agents)
        bundle = await self.bundle()
        for machine in machines:
            machine.check_svids(bundle)


class Machine:
    """A node with its agent, over a day."""

    def __init__(self, day: Day, number: int) -> None:
        self._day = day
        self._number = number
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._csr = _csr(self._key)
        self._chain: tuple[bytes, ...] = ()
        self._channel: Channel | None = None
        self._channel_epoch = -1
        self._made = 0
        self._mine: list[str] = []
        self._x509: dict[str, tuple[bytes, ...]] = {}
        self._jwt = ""
        self.id = ""

    async def live(self) -> None:
        await self._attest()
        for _ in range(ENTRIES):
            await self._create()
        for half_hour in range(HALF_HOURS):
            await self._synchronise()
            await self._sign()
            await self._sign_jwt()
            await self._renew()
            if half_hour % 8 == self._number % 8:
                await self._delete(self._mine.pop(0))
                await self._create()
                await self._update(self._mine[0])
        if self._number % 10 == 0:
            await self._ban()
        await self._close()

    def check_svids(self, bundle: Bundle) -> None:
        """The last SVIDs that were acknowledged are good by the bundle of now."""
        roots = {bundle.trust_domain: [each.der for each in bundle.x509_authorities]}
        for chain in (*self._x509.values(), *([self._chain] if self._chain else [])):
            x509svid.verify(chain, roots, datetime.now(UTC))
        if self._jwt:
            jwtsvid.verify(self._jwt, {bundle.trust_domain: bundle.jwt_authorities}, ["day"], datetime.now(UTC))

    async def _attest(self) -> None:
        """With a new token where the server was killed: the old one may be used up. A token is good for one agent."""
        day = self._day
        while True:
            request = agent_pb2.CreateJoinTokenRequest(ttl=3600)
            token = await day.certainly(
                partial(day.admin_unary, AGENT + "CreateJoinToken", request, jointoken_pb2.JoinToken)
            )
            result = await day.attempt(partial(self._ask_for_svid, token.value))
            if result is not None:
                break
        self.id = f"spiffe://{result.svid.id.trust_domain}{result.svid.id.path}"
        self._chain = tuple(result.svid.cert_chain)
        day.ledger.nodes[self.id] = Node({self._serial()})
        if self._number % 10 == 1:
            await self._refused(partial(self._ask_for_svid, token.value), Code.INVALID_ARGUMENT)

    async def _ask_for_svid(self, token: str) -> agent_pb2.AttestAgentResponse.Result:
        params = agent_pb2.AttestAgentRequest.Params(
            data=attestation_pb2.AttestationData(type="join_token", payload=token.encode()),
            params=agent_pb2.AgentX509SVIDParams(csr=self._csr),
        )
        async with (
            self._connect(None) as channel,
            channel.bidi(AGENT + "AttestAgent", agent_pb2.AttestAgentResponse, timeout=TIMEOUT) as call,
        ):
            await call.send(agent_pb2.AttestAgentRequest(params=params))
            response = await call.recv()
            if response is None:
                raise RpcError(Code.UNAVAILABLE, "no answer")
            return response.result

    async def _renew(self) -> None:
        """Take a new SVID into use when it was acknowledged; until then the old one is good."""
        request = agent_pb2.RenewAgentRequest(params=agent_pb2.AgentX509SVIDParams(csr=self._csr))

        async def renew() -> agent_pb2.RenewAgentResponse:
            channel = await self._agent()
            return await channel.unary(AGENT + "RenewAgent", request, agent_pb2.RenewAgentResponse, timeout=TIMEOUT)

        answer = await self._day.attempt(renew)
        if answer is None:
            return
        self._chain = tuple(answer.svid.cert_chain)
        self._day.ledger.nodes[self.id].serials.add(self._serial())
        await self._close()
        # The first call with the new SVID makes it the only one.
        await self._synchronise()
        self._day.ledger.nodes[self.id].serials = {self._serial()}

    async def _refused(self, request: Callable[[], Awaitable[object]], code: Code) -> None:
        """A request that the server must not grant, killed or not."""
        with pytest.raises(RpcError) as caught:
            await self._day.certainly(request)
        assert caught.value.code is code, caught.value

    async def _authorized_entries(self) -> entry_pb2.GetAuthorizedEntriesResponse:
        channel = await self._agent()
        request = entry_pb2.GetAuthorizedEntriesRequest()
        response = entry_pb2.GetAuthorizedEntriesResponse
        return await channel.unary(ENTRY + "GetAuthorizedEntries", request, response, timeout=TIMEOUT)

    async def _synchronise(self) -> None:
        answer = await self._day.certainly(self._authorized_entries)
        assert {entry.id for entry in answer.entries} == set(self._mine), "not what was acknowledged"

    async def _sign(self) -> None:
        params = [svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=self._csr) for entry_id in self._mine]

        async def sign() -> svid_pb2.BatchNewX509SVIDResponse:
            channel = await self._agent()
            request = svid_pb2.BatchNewX509SVIDRequest(params=params)
            return await channel.unary(
                SVID + "BatchNewX509SVID", request, svid_pb2.BatchNewX509SVIDResponse, timeout=TIMEOUT
            )

        answer = await self._day.attempt(sign)
        if answer is None:
            return
        assert all(result.status.code == 0 for result in answer.results), answer.results
        chains = (tuple(result.svid.cert_chain) for result in answer.results)
        self._x509 = dict(zip(self._mine, chains, strict=True))

    async def _sign_jwt(self) -> None:
        async def sign() -> svid_pb2.NewJWTSVIDResponse:
            channel = await self._agent()
            request = svid_pb2.NewJWTSVIDRequest(entry_id=self._mine[0], audience=["day"])
            return await channel.unary(SVID + "NewJWTSVID", request, svid_pb2.NewJWTSVIDResponse, timeout=TIMEOUT)

        answer = await self._day.attempt(sign)
        if answer is not None:
            self._jwt = answer.svid.token

    async def _create(self) -> None:
        """An entry of this machine, with an ID of its own, so that asking twice makes one."""
        self._made += 1
        entry_id = f"machine-{self._number}-{self._made}"
        domain = self._day.server.trust_domain
        wanted = types_pb2.Entry(
            id=entry_id,
            parent_id=spiffeid_pb2.SPIFFEID(trust_domain=domain, path=self.id.removeprefix(f"spiffe://{domain}")),
            spiffe_id=spiffeid_pb2.SPIFFEID(trust_domain=domain, path=f"/workload/{entry_id}"),
            selectors=[selector_pb2.Selector(type="unix", value=f"uid:{number}") for number in range(3)],
            dns_names=[f"{entry_id}.example"],
        )
        request = entry_pb2.BatchCreateEntryRequest(entries=[wanted])
        self._day.ledger.doubt(entry_id, wanted)
        answer = await self._day.certainly(
            partial(self._day.admin_unary, ENTRY + "BatchCreateEntry", request, entry_pb2.BatchCreateEntryResponse)
        )
        (result,) = answer.results
        assert result.status.code in (Code.OK, Code.ALREADY_EXISTS), result.status
        self._day.ledger.settle(entry_id, result.entry)
        self._mine.append(entry_id)

    async def _update(self, entry_id: str) -> None:
        wanted = types_pb2.Entry()
        wanted.CopyFrom(self._day.ledger.entries[entry_id])
        wanted.x509_svid_ttl = 60 + (wanted.x509_svid_ttl or LIFE)
        wanted.hint = f"hint-{wanted.x509_svid_ttl}"
        request = entry_pb2.BatchUpdateEntryRequest(entries=[wanted])
        self._day.ledger.doubt(entry_id, wanted)
        answer = await self._day.certainly(
            partial(self._day.admin_unary, ENTRY + "BatchUpdateEntry", request, entry_pb2.BatchUpdateEntryResponse)
        )
        (result,) = answer.results
        assert result.status.code == 0, result.status
        self._day.ledger.settle(entry_id, result.entry)

    async def _delete(self, entry_id: str) -> None:
        request = entry_pb2.BatchDeleteEntryRequest(ids=[entry_id])
        self._day.ledger.doubt(entry_id, None)
        answer = await self._day.certainly(
            partial(self._day.admin_unary, ENTRY + "BatchDeleteEntry", request, entry_pb2.BatchDeleteEntryResponse)
        )
        (result,) = answer.results
        assert result.status.code in (Code.OK, Code.NOT_FOUND), result.status
        self._day.ledger.settle(entry_id, None)
        self._x509.pop(entry_id, None)

    async def _ban(self) -> None:
        domain = self._day.server.trust_domain
        spiffe_id = spiffeid_pb2.SPIFFEID(trust_domain=domain, path=self.id.removeprefix(f"spiffe://{domain}"))
        node = self._day.ledger.nodes[self.id]
        node.banned = None
        await self._day.certainly(
            partial(self._day.admin_unary, AGENT + "BanAgent", agent_pb2.BanAgentRequest(id=spiffe_id), empty_pb2.Empty)
        )
        node.banned = True
        await self._refused(self._authorized_entries, Code.PERMISSION_DENIED)

    async def _agent(self) -> Channel:
        """A connection with the SVID that was acknowledged last."""
        if self._channel is not None and self._channel_epoch != self._day.epoch:
            await self._close()
        if self._channel is None:
            self._channel_epoch = self._day.epoch
            self._channel = self._channel_with(InProcessIdentity(self._chain, pkcs8(self._key)))
        return self._channel

    async def _close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    @asynccontextmanager
    async def _connect(self, identity: InProcessIdentity | None) -> AsyncGenerator[Channel, None]:
        channel = self._channel_with(identity)
        try:
            yield channel
        finally:
            await channel.close()

    def _channel_with(self, identity: InProcessIdentity | None) -> Channel:
        context = client_context(identity)

        def check(chain: Sequence[bytes]) -> None:
            assert x509svid.leaf_id(chain[0]).path == "/spire/server"

        return Channel.tcp("127.0.0.1", self._day.server.port, tls=lambda: context, verify=check)

    def _serial(self) -> str:
        return str(der.certificate(self._chain[0]).serial_number)


def _csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)
