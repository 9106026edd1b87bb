"""AttestAgent with attestors that ask back, refuse or misname agents; and the attestor of join tokens by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from attestors.join_token.server import JoinTokenAttestor
from generated.spire.api.server.agent.v1 import agent_pb2 as api
from identity import der
from identity.selectors import Selector
from identity.spiffeid import SpiffeId
from keystores.memory import MemoryKeyManager
from operations import logs
from operations.errors import InvalidArgument, Refused, TemporarilyUnavailable
from operations.logs import Logger
from plugins.nodeattestor import CLIENT_ADDRESS, RECORD_LIMIT, AttestedNode, Challenge, ServerNodeAttestor
from server.authority_store import DatastoreAuthorities
from server.authorization import Caller
from server.ca.certificate_authority import ApprovedX509, CaSettings, CertificateAuthority, IssuedX509
from server.datastore.store import DataStore
from server.nodes import AttestedNodes, StoredNodeRecords, WithIdAsSelector
from server.rpc.attest import AgentSigner, Attestation
from server.rpc.call import Call
from tests.simulators.house import TRUST_DOMAIN, csr
from tests.simulators.pki import PrivateKey, ec_key, spki
from transport.status import Code, RpcError


class Sum:
    """Asks for the payload's numbers, one by one, and believes who knows them."""

    name = "sum"

    def __init__(self, verdict: AttestedNode) -> None:
        self._verdict = verdict

    async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        for number in payload:
            if await challenge(bytes((number,))) != bytes((number + 1,)):
                raise Refused("that is not the next number")
        return self._verdict


class Bench:
    def __init__(self, store: DataStore, authority: CertificateAuthority) -> None:
        self.store = store
        self.nodes = AttestedNodes(store)
        self._signer = AgentSigner(authority)

    async def attest(
        self,
        attestor: ServerNodeAttestor,
        payload: bytes,
        answers: list[bytes],
        host: str = "127.0.0.1",
        key: PrivateKey | None = None,
    ) -> list[api.AttestAgentResponse]:
        call = Call(logs.get(), Caller(None), None, f"{host}:1", host, None, None)
        attestation = Attestation(TRUST_DOMAIN, self.nodes, self._signer, call)
        attestors: Mapping[str, ServerNodeAttestor] = {attestor.name: attestor}
        requests = _requests(attestor.name, payload, answers, key)
        return [response async for response in attestation.run(attestors, requests)]


async def _requests(
    kind: str, payload: bytes, answers: list[bytes], key: PrivateKey | None = None
) -> AsyncIterator[api.AttestAgentRequest]:
    first = api.AttestAgentRequest()
    first.params.data.type, first.params.data.payload = kind, payload
    first.params.params.csr = csr(key or ec_key())
    yield first
    for answer in answers:
        yield api.AttestAgentRequest(challenge_response=answer)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await DataStore.open(str(tmp_path / "datastore.sqlite3"))
    authority = CertificateAuthority(
        CaSettings(trust_domain=TRUST_DOMAIN), MemoryKeyManager(), DatastoreAuthorities(store, TRUST_DOMAIN)
    )
    await authority.start()
    yield Bench(store, authority)
    await store.close()


def verdict(path: str = "/spire/agent/sum/a", *, trust_domain: str = "example.org") -> AttestedNode:
    selector = Selector("sum", "right")
    return AttestedNode(f"spiffe://{trust_domain}{path}", [selector, selector], can_reattest=True)


async def test_challenges_are_carried_both_ways(bench: Bench) -> None:
    *challenges, last = await bench.attest(Sum(verdict()), b"\x01\x07", [b"\x02", b"\x08"])
    assert [each.challenge for each in challenges] == [b"\x01", b"\x07"]
    assert last.result.reattestable
    assert last.result.svid.id.path == "/spire/agent/sum/a"
    node = await bench.store.get_node("spiffe://example.org/spire/agent/sum/a")
    assert node is not None
    assert node.can_reattest
    assert node.selectors == (Selector("sum", "right"),)


async def test_an_agent_that_attests_again_has_a_new_svid_only(bench: Bench) -> None:
    serials: list[str] = []
    for _ in range(2):
        await bench.attest(Sum(verdict()), b"\x01", [b"\x02"])
        node = await bench.nodes.get("spiffe://example.org/spire/agent/sum/a")
        assert node is not None
        serials.append(node.serial_number)
    assert len(set(serials)) == 2
    assert await bench.store.count_nodes() == 1


async def test_a_ban_that_comes_while_the_svid_is_signed_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.attest(Sum(verdict()), b"\x01", [b"\x02"])
    sign = AgentSigner.sign

    async def slow(
        signer: AgentSigner, agent_id: SpiffeId, request: bytes, log: Logger, *, attested_key: bytes | None
    ) -> IssuedX509:
        issued = await sign(signer, agent_id, request, log, attested_key=attested_key)
        await bench.nodes.ban(str(agent_id))
        return issued

    monkeypatch.setattr(AgentSigner, "sign", slow)
    with pytest.raises(RpcError, match="agent is banned") as error:
        await bench.attest(Sum(verdict()), b"\x01", [b"\x02"])
    assert error.value.code is Code.PERMISSION_DENIED
    node = await bench.nodes.get("spiffe://example.org/spire/agent/sum/a")
    assert node is not None
    assert node.banned


async def test_a_wrong_response_and_none(bench: Bench) -> None:
    for answers, code, message in (
        ([b"\x09"], Code.PERMISSION_DENIED, "nodeattestor(sum): that is not the next number"),
        ([], Code.INTERNAL, "failed to receive challenge from agent: EOF"),
    ):
        with pytest.raises(RpcError) as error:
            await bench.attest(Sum(verdict()), b"\x01", answers)
        assert (error.value.code, error.value.message) == (code, message)
    assert await bench.store.count_nodes() == 0


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (verdict("/spire/server"), "agent ID cannot collide with the server ID"),
        (verdict(""), 'invalid agent ID: "spiffe://example.org" is not a member of trust domain'),
        (verdict(trust_domain="other.org"), 'invalid agent ID: "spiffe://other.org/spire/agent/sum/a" is not a member'),
        (verdict(trust_domain="A"), "invalid agent ID: trust domain characters"),
    ],
)
async def test_an_attestor_that_misnames_an_agent(bench: Bench, named: AttestedNode, message: str) -> None:
    with pytest.raises(RpcError) as error:
        await bench.attest(Sum(named), b"\x01", [b"\x02"])
    assert error.value.code is Code.INTERNAL
    assert error.value.message.startswith(message)


async def test_a_caller_that_goes_away_ends_the_attestation(bench: Bench) -> None:
    """No task waits for a response that cannot come any more."""
    before = asyncio.all_tasks()
    call = Call(logs.get(), Caller(None), None, "127.0.0.1:1", "127.0.0.1", None, None)
    attestation = Attestation(TRUST_DOMAIN, bench.nodes, AgentSigner.__new__(AgentSigner), call)

    async def silent() -> AsyncIterator[api.AttestAgentRequest]:
        async for request in _requests("sum", b"\x01", []):
            yield request
        await asyncio.Event().wait()

    attestor: ServerNodeAttestor = Sum(verdict())
    responses = attestation.run({"sum": attestor}, silent())
    assert (await anext(responses)).challenge == b"\x01"
    await responses.aclose()
    await asyncio.wait_for(asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True), 30)


async def test_an_agent_that_stops_answering(bench: Bench) -> None:
    """Its call ends by itself, before the first message or in the midst of a challenge, and nothing is written down."""
    call = Call(logs.get(), Caller(None), None, "127.0.0.1:1", "127.0.0.1", None, None)

    async def silent(after: int) -> AsyncIterator[api.AttestAgentRequest]:
        async for request in _requests("sum", b"\x01\x07", [b"\x02"]):
            if not after:
                break
            after -= 1
            yield request
        await asyncio.Event().wait()

    attestor: ServerNodeAttestor = Sum(verdict())
    for after, message in (
        (0, "failed to receive request from stream: the agent sent nothing for 0.1 s"),
        (1, "failed to receive challenge from agent: the agent sent nothing for 0.1 s"),
        (2, "failed to receive challenge from agent: the agent sent nothing for 0.1 s"),
    ):
        before = asyncio.all_tasks()
        attestation = Attestation(TRUST_DOMAIN, bench.nodes, AgentSigner.__new__(AgentSigner), call, patience=0.1)
        with pytest.raises(RpcError) as error:
            async for _ in attestation.run({"sum": attestor}, silent(after)):
                pass
        assert (error.value.code, error.value.message) == (Code.DEADLINE_EXCEEDED, message)
        assert asyncio.all_tasks() == before
    assert await bench.store.count_nodes() == 0


async def test_a_second_attestation_while_the_first_runs(bench: Bench) -> None:
    """Both are answered; the one that ends last has the active SVID, and there is one agent."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Sum):
        async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
            reached.set()
            await go_on.wait()
            return await super().attest(payload, challenge)

    first = asyncio.create_task(bench.attest(Slow(verdict()), b"\x01", [b"\x02"]))
    await reached.wait()
    (_, second) = await bench.attest(Sum(verdict()), b"\x01", [b"\x02"])
    go_on.set()
    (_, last) = await first
    node = await bench.nodes.get("spiffe://example.org/spire/agent/sum/a")
    assert node is not None
    assert node.serial_number == str(der.certificate(last.result.svid.cert_chain[0]).serial_number)
    assert second.result.svid.cert_chain != last.result.svid.cert_chain
    assert await bench.store.count_nodes() == 1


class Addresses(Sum):
    async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        await challenge(b"")
        return AttestedNode(f"spiffe://example.org/spire/agent/sum/at-{CLIENT_ADDRESS.get()}", (), can_reattest=True)


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1"), ("[fe80::1%eth0]", "fe80::1"), ("10.0.0.7", "10.0.0.7")]
)
async def test_the_attestor_knows_where_the_agent_calls_from(bench: Bench, host: str, address: str) -> None:
    if ":" in address:
        with pytest.raises(RpcError, match="path segment characters"):  # no ID can hold it, but it came through
            await bench.attest(Addresses(verdict()), b"\x01", [b""], host)
        return
    *_, last = await bench.attest(Addresses(verdict()), b"\x01", [b""], host)
    assert last.result.svid.id.path == f"/spire/agent/sum/at-{address}"
    assert not CLIENT_ADDRESS.get(), "other calls do not see it"


async def test_an_agent_can_be_selected_by_its_id(bench: Bench) -> None:
    attestor = WithIdAsSelector(Sum(verdict()))
    assert attestor.name == "sum"
    await bench.attest(attestor, b"\x01", [b"\x02"])
    name = "spiffe://example.org/spire/agent/sum/a"
    node = await bench.store.get_node(name)
    assert node is not None
    assert node.selectors == (Selector("spiffe_id", name), Selector("sum", "right"))


async def test_an_svid_is_for_the_attested_key_alone(bench: Bench) -> None:
    """And what the attestor remembers is kept by the admission, not by a refusal."""
    key = ec_key()
    name = "spiffe://example.org/spire/agent/sum/a"
    bound = Sum(AttestedNode(name, (), can_reattest=True, public_key=spki(key), record=b"1"))
    for attestor in (bound, WithIdAsSelector(bound)):
        with pytest.raises(
            RpcError, match="failed to attest: the CSR is for another key than the attested one"
        ) as error:
            await bench.attest(attestor, b"\x01", [b"\x02"])
        assert error.value.code is Code.PERMISSION_DENIED
        assert await bench.store.get_node(name) is None
        assert await bench.store.get_node_record(name) is None
        (_, last) = await bench.attest(attestor, b"\x01", [b"\x02"], key=key)
        assert der.certificate(last.result.svid.cert_chain[0]).public_key() == key.public_key()
        assert await bench.store.get_node_record(name) == b"1"
        await bench.attest(Sum(verdict()), b"\x01", [b"\x02"])
        assert await bench.store.get_node_record(name) == b"1"
        await bench.nodes.delete(name)


async def test_records_of_nodes_as_attestors_have_them(bench: Bench) -> None:
    records = StoredNodeRecords(bench.store, bench.nodes)
    name = "spiffe://example.org/spire/agent/sum/a"
    await records.put(name, b"of nobody")
    await records.evict(name)
    assert await records.get(name) is None
    await bench.attest(Sum(verdict()), b"\x01", [b"\x02"])
    await records.put(name, b"1")
    assert await records.get(name) == b"1"
    with pytest.raises(InvalidArgument, match="longer than 65536"):
        await records.put(name, bytes(RECORD_LIMIT + 1))
    known = await bench.nodes.get(name)
    await records.evict(name)
    evicted = await bench.nodes.get(name)
    assert known is not None
    assert evicted is not None
    assert evicted.serial_number not in {known.serial_number, ""}
    assert await records.get(name) == b"1"


async def test_selectors_are_sorted(bench: Bench) -> None:
    """As `agent show` has them in SPIRE."""
    selectors = [Selector("sum", text) for text in ("subject:cn:x", "serialnumber:1", "ca:fingerprint:2")]
    named = AttestedNode("spiffe://example.org/spire/agent/sum/a", selectors, can_reattest=True)
    await bench.attest(Sum(named), b"\x01", [b"\x02"])
    node = await bench.store.get_node(named.spiffe_id)
    assert node is not None
    assert [each.value for each in node.selectors] == ["ca:fingerprint:2", "serialnumber:1", "subject:cn:x"]


class Away:
    """An authority whose device is away."""

    async def issue_x509(self, approved: Sequence[ApprovedX509]) -> list[IssuedX509]:
        raise TemporarilyUnavailable("the token is away")


async def test_a_device_that_is_away(bench: Bench) -> None:
    """The agent may try again: nothing is written down, and the status says that it passes."""
    away = Bench(bench.store, cast(CertificateAuthority, Away()))
    with pytest.raises(RpcError) as error:
        await away.attest(Sum(verdict()), b"\x01", [b"\x02"])
    assert error.value.code is Code.UNAVAILABLE
    assert error.value.message == "failed to sign X509 SVID: the token is away"
    assert await bench.store.count_nodes() == 0


class Tokens:
    def __init__(self, **tokens: int) -> None:
        self._tokens = tokens

    async def take(self, token: str) -> int | None:
        return self._tokens.pop(token, None)


async def _no_challenge(challenge: bytes) -> bytes:
    raise AssertionError(challenge)


async def test_a_token_that_no_id_can_hold() -> None:
    attestor = JoinTokenAttestor(TRUST_DOMAIN, Tokens(**{"a b": 4_000_000_000, "good": 4_000_000_000}))
    assert attestor.name == "join_token"
    with pytest.raises(InvalidArgument, match="path segment characters"):
        await attestor.attest(b"a b", _no_challenge)
    with pytest.raises(InvalidArgument, match="does not exist or has already been used"):
        await attestor.attest(b"\xff\xfe", _no_challenge)
    node = await attestor.attest(b"good", _no_challenge)
    assert node == AttestedNode("spiffe://example.org/spire/agent/join_token/good", (), can_reattest=False)
