"""Node and workload attestors and SVID stores of others: their answers, and what becomes of wrong ones."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest

from agent.workload_attestation import WorkloadAttestation
from identity.selectors import Selector
from operations.errors import InvalidArgument, NotFound, TemporarilyUnavailable
from plugins.external import conversation, process, workloadattestor
from plugins.nodeattestor import CLIENT_ADDRESS
from plugins.svidstore import StoredX509Svid
from tests.simulators.spire import eventually
from tests.unit.plugins.external.conftest import Load, Log
from transport import unix
from transport.errors import status_of
from transport.peer import Peer, Process
from transport.status import Code, RpcError

PROCESS = Process(pid=4711, uid=0, gid=0, started=1)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.5)


async def answer(challenge: bytes) -> bytes:
    return b"response to " + challenge


async def never(_challenge: bytes) -> bytes:
    raise AssertionError("no challenge was expected")


async def test_a_server_half(load: Load) -> None:
    attestor = await load("NodeAttestor")
    challenges: list[bytes] = []

    async def noted(challenge: bytes) -> bytes:
        challenges.append(challenge)
        return b"response"

    node = await attestor.attest(b"spire/agent/py/1", noted)
    assert challenges == [b"challenge 0"]
    assert node.spiffe_id == "spiffe://example.org/spire/agent/py/1"
    assert node.selectors == [Selector("py", "one"), Selector("py", "two")]
    assert node.can_reattest


async def test_a_server_half_hears_where_the_agent_calls_from(load: Load, log: Log) -> None:
    attestor = await load("NodeAttestor")
    CLIENT_ADDRESS.set("192.0.2.7")
    await attestor.attest(b"spire/agent/py/1", answer)
    told = "[INFO] told [('x-forwarded-client-ip', '192.0.2.7'), ('x-untrusted-forwarded-host', '')]"
    await asyncio.to_thread(eventually, lambda: log.named(told), "the plugin's line")


async def test_many_challenges(load: Load) -> None:
    attestor = await load("NodeAttestor", "many-challenges")
    assert (await attestor.attest(b"a", answer)).spiffe_id == "spiffe://example.org/a"


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("closes", "code = Internal desc = nodeattestor(py): plugin closed stream unexpectedly"),
        (
            "says-nothing",
            "code = Internal desc = nodeattestor(py): plugin response missing challenge or agent attributes",
        ),
        ("no-agent-id", "code = Internal desc = nodeattestor(py): plugin response missing agent ID"),
        ("lacks-permission", "code = PermissionDenied desc = nodeattestor(py): this node is not welcome"),
        ("dies-in-attest", "code = Unavailable desc = nodeattestor(py): "),
        ("hangs-in-attest", "code = DeadlineExceeded desc = nodeattestor(py): the plugin gave no answer within 2 s"),
    ],
)
async def test_a_server_half_that_misbehaves(
    load: Load, word: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "ANSWER_TIMEOUT", 2.0 if word.startswith("hangs") else 60.0)
    attestor = await load("NodeAttestor", word)
    with pytest.raises(RpcError) as error:
        await attestor.attest(b"payload", answer)
    assert str(error.value).startswith(f"rpc error: {fault}")


async def test_an_empty_payload_is_not_passed_on(load: Load) -> None:
    attestor = await load("NodeAttestor")
    with pytest.raises(InvalidArgument, match="payload cannot be empty"):
        await attestor.attest(b"", never)


async def test_the_agents_error_keeps_its_name(load: Load) -> None:
    attestor = await load("NodeAttestor")

    async def lost(_challenge: bytes) -> bytes:
        raise RpcError(Code.INTERNAL, "failed to receive challenge from agent: EOF")

    with pytest.raises(RpcError) as error:
        await attestor.attest(b"payload", lost)
    assert error.value.message == "failed to receive challenge from agent: EOF"


async def test_an_agent_half(load: Load, log: Log) -> None:
    attestor = await load("NodeAttestor", side="agent")
    attestation = await attestor.begin()
    assert attestation.payload == b"payload"
    assert await attestation.respond(b"one") == b"response to one"
    assert await attestation.respond(b"two") == b"response to two"
    del attestation
    gc.collect()
    # Nobody holds the attestation any more: the plugin's stream ends.
    await asyncio.to_thread(eventually, lambda: log.named("[INFO] attestation ended"), "the end of the stream")


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("closes", "code = Internal desc = nodeattestor(py): plugin closed stream before returning attestation data"),
        ("no-payload", "code = Internal desc = nodeattestor(py): plugin response missing attestation payload"),
        ("no-response", "code = Internal desc = nodeattestor(py): plugin response missing challenge response"),
        ("dies-in-attest", "code = Unavailable desc = nodeattestor(py): "),
        ("hangs-in-attest", "code = DeadlineExceeded desc = nodeattestor(py): the plugin gave no answer within 2 s"),
    ],
)
async def test_an_agent_half_that_misbehaves(
    load: Load, word: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "ANSWER_TIMEOUT", 2.0 if word.startswith("hangs") else 60.0)
    attestor = await load("NodeAttestor", word, side="agent")
    with pytest.raises(RpcError) as error:
        await (await attestor.begin()).respond(b"challenge")
    assert str(error.value).startswith(f"rpc error: {fault}")


async def test_an_attestation_that_failed_has_ended(load: Load) -> None:
    attestation = await (await load("NodeAttestor", "no-response", side="agent")).begin()
    with pytest.raises(RpcError, match="missing challenge response"):
        await attestation.respond(b"challenge")
    with pytest.raises(InvalidArgument, match="the attestation has ended"):
        await attestation.respond(b"challenge")


async def test_a_workload_attestor(load: Load) -> None:
    attestor = await load("WorkloadAttestor", side="agent")
    assert await attestor.attest(PROCESS) == [Selector("py", "pid:4711")]


async def test_workload_attestors_that_fail_cost_their_own_selectors(
    load: Load, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloadattestor, "TIMEOUT", 5.0)
    attestors = [
        await load("WorkloadAttestor", *words, side="agent") for words in ([], ["dies-in-attest"], ["hangs-in-attest"])
    ]
    ends = socket.socketpair()
    try:
        peer = Peer("test", process=unix.caller(ends[0]))
    finally:
        for end in ends:
            end.close()
    assert peer.process is not None
    assert await WorkloadAttestation(attestors).attest(peer) == {Selector("py", f"pid:{peer.process.pid}")}
    codes = sorted(str(fields["error"]).split(" desc")[0] for fields in log.named('workload attestor "py" failed'))
    assert codes == ["rpc error: code = DeadlineExceeded", "rpc error: code = Unavailable"]
    with pytest.raises(TemporarilyUnavailable):
        await WorkloadAttestation(attestors[1:2]).attest(peer)


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("more-selectors", "code = ResourceExhausted desc = workloadattestor(py): the plugin gave 10001 selectors"),
        ("flood-of-selectors", "code = ResourceExhausted desc = workloadattestor(py): the plugin gave 4194304 sel"),
        ("no-utf8-selectors", "code = Internal desc = workloadattestor(py): "),
    ],
)
async def test_selectors_that_cannot_be(load: Load, word: str, fault: str) -> None:
    attestor = await load("WorkloadAttestor", word, side="agent")
    with pytest.raises(RpcError) as error:
        await attestor.attest(PROCESS)
    assert str(error.value).startswith(f"rpc error: {fault}")


async def test_many_selectors(load: Load) -> None:
    attestor = await load("WorkloadAttestor", "most-selectors", side="agent")
    assert len(await attestor.attest(PROCESS)) == 10_000


async def test_odd_selectors_are_just_selectors(load: Load) -> None:
    attestor = await load("WorkloadAttestor", "odd-selectors", side="agent")
    values = ["", ":", "a\0b", "two\nlines", 'quoted" level=info', "ü\u202e", "x" * 1_000_000]
    assert await attestor.attest(PROCESS) == [Selector("py", value) for value in values]


async def test_an_svid_store(load: Load, log: Log) -> None:
    store = await load("SVIDStore", side="agent")
    svid = StoredX509Svid(
        spiffe_id="spiffe://example.org/w",
        chain=[b"leaf", b"intermediate"],
        private_key=b"secret",
        bundle=[b"root"],
        expires_at=1_800_000_000,
        federated_bundles={"spiffe://two.test": [b"a", b"b"]},
    )
    assert "secret" not in repr(svid)
    await store.put(svid, ["secretname:one"])
    put = "[INFO] put spiffe://example.org/w ['spiffe://two.test']"
    await asyncio.to_thread(eventually, lambda: log.named(put), "the plugin's line")
    await store.delete(["secretname:one"])
    with pytest.raises(RpcError) as error:
        await store.delete(["secretname:one"])
    assert status_of(error.value).code is Code.NOT_FOUND
    assert error.value.message == "svidstore(py): nothing is stored there"
    assert not isinstance(error.value, NotFound)
