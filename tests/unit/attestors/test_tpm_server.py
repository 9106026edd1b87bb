"""The server half of NodeAttestor "tpm": what it asks for, what it remembers, and whom it lets in."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from msgspec.structs import replace

from attestors.tpm import configuration, records, sources
from attestors.tpm.exchange import LARGEST_ASK
from attestors.tpm.messages import PART_LIMIT, Activate, Ask, Part, Proof
from operations.errors import ConfigurationError, InvalidArgument, Refused, TemporarilyUnavailable
from plugins.nodeattestor import RECORD_LIMIT, AttestedNode
from tests.simulators.pki import ec_key, spki
from tests.simulators.soft_tpm import SoftTpm
from tests.simulators.tpm_node import Attesting, TpmNode

ALLOWED = """
policy "golden" {{
  pcr = {{ "4" = "{pcr4}" }}
  {rest}
}}
"""


@pytest.fixture
def node() -> TpmNode:
    return TpmNode().started()


@pytest.fixture
def attesting(tmp_path: Path, node: TpmNode) -> Attesting:
    made = Attesting(tmp_path)
    made.know(node)
    return made


def golden(node: TpmNode, rest: str = "") -> str:
    return ALLOWED.format(pcr4=node.tpm.pcrs["sha256"][4].hex(), rest=rest)


def files_of(node: TpmNode, *more: str) -> str:
    """An IMA rule that lets everything run that is in /usr, and `more`."""
    paths = ", ".join(f'"{each}"' for each in ("/usr/.*", *more))
    return f"ima {{ exclude = [{paths}] }}"


def values(verdict: AttestedNode) -> set[str]:
    assert {each.type for each in verdict.selectors} == {"tpm"}
    return {each.value for each in verdict.selectors}


async def test_a_node_is_its_endorsement_key(attesting: Attesting, node: TpmNode) -> None:
    verdict = await attesting.attest(node)
    assert verdict.spiffe_id == node.id
    assert verdict.can_reattest
    assert verdict.public_key is None
    found = values(verdict)
    assert f"ek:{node.hash}" in found
    assert "secureboot:true" in found
    quoted = {each for each in found if each.startswith("pcr:")}
    assert {f"pcr:sha256:{number}:{node.tpm.pcrs['sha256'][number].hex()}" for number in (*range(10), 12, 14)} == quoted


async def test_an_rsa_endorsement_key(tmp_path: Path) -> None:
    node = TpmNode(SoftTpm(rsa.generate_private_key(65537, 2048))).started()
    attesting = Attesting(tmp_path)
    attesting.know(node)
    assert (await attesting.attest(node)).spiffe_id == node.id


async def test_logs_are_asked_for_only_as_far_as_they_are_new(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(ima=True)
    await attesting.attest(node)
    whole = len(node.boot.ima)
    assert node.asked_for == [("event_log", 0, len(node.boot.event_log)), ("ima", 0, whole)]
    verdict = await attesting.attest(node)
    assert node.asked_for == []
    assert "secureboot:true" in values(verdict), "the log's facts are remembered"
    node.boot.run("/usr/bin/true")
    await attesting.attest(node)
    assert node.asked_for == [("ima", whole, len(node.boot.ima) - whole)]


async def test_another_boot_is_looked_at_anew(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(ima=True)
    await attesting.attest(node)
    node.reboot()
    await attesting.attest(node)
    assert node.asked_for == [("event_log", 0, len(node.boot.event_log)), ("ima", 0, len(node.boot.ima))]
    node.tpm.extend(12, dict.fromkeys(("sha256",), bytes(32)))
    with pytest.raises(Refused, match="PCR 12"):
        await attesting.attest(node)
    assert node.asked_for, "a register that has changed is not in the log that was verified"


async def test_logs_come_in_parts(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(ima=True)
    for number in range(12_000):
        node.boot.run(f"/usr/share/{number:0>60}")
    assert len(node.boot.ima) > PART_LIMIT
    await attesting.attest(node)
    parts = [each for each in node.asked_for if each[0] == "ima"]
    assert parts == [("ima", 0, LARGEST_ASK), ("ima", LARGEST_ASK, len(node.boot.ima) - LARGEST_ASK)]


async def test_a_list_that_grows_meanwhile(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(golden(node, files_of(node)))

    def grown(proof: Proof, _asked: Activate) -> Proof:
        node.boot.run("/opt/not-allowed")
        return replace(proof, ima_size=len(node.boot.ima))

    size = len(node.boot.ima)
    node.alter_proof = grown
    await attesting.attest(node)
    node.alter_proof = lambda proof, _: proof
    with pytest.raises(Refused, match=r"/opt/not-allowed"):
        await attesting.attest(node)
    assert node.asked_for == [("ima", size, len(node.boot.ima) - size)]


async def test_a_prefix_that_does_not_go_on_is_asked_for_anew(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(ima=True)
    await attesting.attest(node)
    record = records.load(attesting.records.kept[node.id])
    assert record.boot is not None
    wrong = replace(record.boot.ima, value=bytes(32))
    damaged = replace(record, boot=replace(record.boot, ima=wrong))
    attesting.records.kept[node.id] = records.dump(damaged)
    node.boot.run("/usr/bin/true")
    await attesting.attest(node)
    assert [(log, offset) for log, offset, _ in node.asked_for] == [
        ("ima", wrong.size),
        ("event_log", 0),
        ("ima", 0),
    ]


async def test_policies_name_and_refuse(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(golden(node, files_of(node)))
    verdict = await attesting.attest(node)
    assert {"policy:golden", "ima:golden"} <= values(verdict)
    assert not {each for each in values(verdict) if each.startswith("pcr:sha256:10:")}
    before = attesting.records.kept[node.id]
    node.reboot(b"another loader")
    with pytest.raises(Refused, match="policy golden: PCR 4 is ") as error:
        await attesting.attest(node)
    assert len(str(error.value)) <= 300
    record = records.load(attesting.records.kept[node.id])
    assert record.failure is not None
    assert any("PCR 4" in reason for reason in record.failure.reasons)
    assert replace(record, failure=None) == records.load(before), "what was verified stays"
    assert not attesting.records.evicted


async def test_observed_policies_refuse_nobody(
    attesting: Attesting, node: TpmNode, caplog: pytest.LogCaptureFixture
) -> None:
    policy = golden(node, files_of(node))
    node.boot.measure(4, 0x0D, b"another loader")
    await attesting.start(policy, mode="observe", evict_on_failure=True)
    with caplog.at_level(logging.WARNING):
        verdict = await attesting.attest(node)
    assert "policy:golden" not in values(verdict)
    assert "A node that would be refused is let in" in caplog.text
    record = records.load(attesting.records.kept[node.id])
    assert record.failure is not None
    assert not attesting.records.evicted


async def test_a_log_that_does_not_replay_is_observed_too(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(mode="observe")
    node.tpm.extend(0, {"sha256": bytes(32)})
    verdict = await attesting.attest(node)
    assert not {each for each in values(verdict) if each.startswith("secureboot")}
    await attesting.start(mode="enforce")
    with pytest.raises(Refused, match="PCR 0"):
        await attesting.attest(node)


async def test_a_failure_evicts_by_choice(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(golden(node), evict_on_failure=True)
    await attesting.attest(node)
    node.boot.measure(4, 0x0D, b"another loader")
    with pytest.raises(Refused):
        await attesting.attest(node)
    assert attesting.records.evicted == {node.id}


class Guessing(SoftTpm):
    """Who has not the endorsement key that he says he has."""

    def activate(self, asked: Activate) -> bytes:
        return asked.nonce


async def test_a_stranger_evicts_nobody(attesting: Attesting, node: TpmNode) -> None:
    """Whoever knows a node's EK can begin an attestation in its name; the credential stays shut to him."""
    await attesting.start(evict_on_failure=True)
    await attesting.attest(node)
    before = dict(attesting.records.kept)
    stranger = TpmNode(Guessing()).started()
    stranger.alter_hello = lambda hello: replace(hello, ek_public=node.tpm.ek_public)
    with pytest.raises(Refused, match="the credential was not opened"):
        await attesting.attest(stranger)
    assert stranger.asked_for == []
    assert (attesting.records.kept, attesting.records.evicted) == (before, set())


async def test_a_changed_policy_begins_from_nothing(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(golden(node, files_of(node)))
    await attesting.attest(node)
    await attesting.start(golden(node, files_of(node, "/opt/.*")))
    await attesting.attest(node)
    assert node.asked_for == [("event_log", 0, len(node.boot.event_log)), ("ima", 0, len(node.boot.ima))]


async def test_changed_files_are_taken_up_while_it_runs(
    attesting: Attesting, node: TpmNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sources, "INTERVAL", 0.0)
    await attesting.start(golden(node))
    await attesting.attest(node)
    attesting.policy.write_text("policy {")
    await attesting.attest(node)
    assert "The changed boot policy cannot be used" in caplog.text
    attesting.policy.write_text(golden(TpmNode(tpm=node.tpm)).replace("4", "5"))
    with pytest.raises(Refused, match="PCR 5"):
        await attesting.attest(node)
    attesting.policy.write_text(golden(node))
    attesting.hashes.write_text(f"{'0' * 64}\n")
    with pytest.raises(Refused):
        await attesting.attest(node)


async def test_files_that_a_policy_names_are_watched(
    attesting: Attesting, node: TpmNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "INTERVAL", 0.0)
    listed = attesting.folder / "lists" / "allowed"
    listed.parent.mkdir()
    listed.write_text("")
    assert sources.policy_files(str(_written(attesting, golden(node, 'ima { allow_file = "lists/allowed" }')))) == (
        str(attesting.policy),
        str(listed),
    )


def _written(attesting: Attesting, policy: str) -> Path:
    attesting.policy.write_text(policy)
    return attesting.policy


async def test_a_certified_key_binds(attesting: Attesting, node: TpmNode) -> None:
    await attesting.start(require_tpm_key=True)
    with pytest.raises(Refused, match="require_tpm_key"):
        await attesting.attest(node)
    node.svid_key = ec_key()
    assert (await attesting.attest(node)).public_key == spki(node.svid_key)
    await attesting.start(require_tpm_key=False)
    assert (await attesting.attest(node)).public_key == spki(node.svid_key)


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x80", b"\x81\xa7version\x02", b"x" * 1000])
async def test_a_damaged_record_is_none(
    attesting: Attesting, node: TpmNode, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await attesting.attest(node)
    attesting.records.kept[node.id] = damage
    await attesting.attest(node)
    assert node.asked_for == [("event_log", 0, len(node.boot.event_log))]
    if damage != b"\x80":  # an empty map is a record of nothing
        assert "attested as if it were unknown" in caplog.text


async def test_a_clock_that_went_back(attesting: Attesting, node: TpmNode) -> None:
    await attesting.attest(node)
    node.tpm.clock -= 500_000
    with pytest.raises(Refused, match="clock went back"):
        await attesting.attest(node)
    attesting.records.kept.clear()  # as `agent evict` has it
    await attesting.attest(node)


async def test_an_attestation_has_an_end(attesting: Attesting, node: TpmNode) -> None:
    attestor = await attesting.start(timeout=timedelta(seconds=0.2))

    async def silent(_challenge: bytes) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(TemporarilyUnavailable, match="did not end within"):
        await attestor.attest(node.payload, silent)
    await attesting.attest(node)


async def test_memory_for_logs_is_shared(attesting: Attesting, node: TpmNode) -> None:
    """A second one waits for the room that the first has, and both come in."""
    other = TpmNode().started()
    attesting.know(node, other)
    size = len(node.boot.event_log)
    await attesting.start(max_event_log_size=size, max_ima_size=size, max_logs_size=size)
    holding = 0

    def held(part: Part, _ask: Ask) -> Part:
        assert holding == 1
        return part

    node.alter_part = other.alter_part = held
    attestor = attesting.attestor
    assert attestor is not None
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow(challenge: bytes) -> bytes:
        if node.asked:
            reached.set()
            await go_on.wait()
        return await node.respond(challenge)

    holding = 1
    first = asyncio.create_task(attestor.attest(node.payload, slow))
    await reached.wait()
    second = asyncio.create_task(attestor.attest(other.payload, other.respond))
    done, _ = await asyncio.wait([second], timeout=1)
    assert not done
    assert not other.asked_for
    go_on.set()
    assert {(await first).spiffe_id, (await second).spiffe_id} == {node.id, other.id}


async def test_many_nodes_at_once(tmp_path: Path) -> None:
    """With room for a few of their logs, all come in, and a node that attests twice at once does so in turn."""
    nodes = [TpmNode().started() for _ in range(24)]
    attesting = Attesting(tmp_path)
    attesting.know(*nodes)
    room = 2 * max(len(node.boot.event_log) for node in nodes)
    await attesting.start(ima=True, max_event_log_size=room, max_ima_size=room, max_logs_size=room)
    attestor = attesting.attestor
    assert attestor is not None
    found = await asyncio.gather(*(attestor.attest(node.payload, node.respond) for node in (*nodes, *nodes)))
    assert {each.spiffe_id for each in found} == {node.id for node in nodes}


async def test_nobody_is_known(tmp_path: Path, node: TpmNode, caplog: pytest.LogCaptureFixture) -> None:
    attesting = Attesting(tmp_path)
    await attesting.start()
    assert "every TPM is going to be refused" in caplog.text
    with pytest.raises(Refused):
        await attesting.attest(node)


def test_a_record_is_never_too_long(node: TpmNode) -> None:
    boot = records.Boot(policies=b"", state=b"", standing=tuple(f"policy-{number:050}" for number in range(2000)))
    whole = records.Record(ak=b"name", boot=boot, failure=records.failure(1, ("x" * 10_000,) * 100))
    data = records.dump(whole)
    assert len(data) <= RECORD_LIMIT
    kept = records.load(data)
    assert kept.boot is None
    assert kept.ak == b"name"
    assert kept.failure is not None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_ima_size": 0}, "max_ima_size must be greater than 0"),
        ({"max_ima_size": 2 << 30}, "at most"),
        ({"max_logs_size": 1}, "max_logs_size must be at least"),
        ({"timeout": timedelta()}, "timeout must be"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        replace(configuration.Configuration(), **settings)


async def test_files_that_are_not_there(attesting: Attesting, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for key in ("endorsement_hash_path", "endorsement_ca_path", "policy_path", "evidence_path"):
        made = replace(configuration.Configuration(), **{key: missing})
        with pytest.raises(ConfigurationError, match="missing"):
            made.check_files()
    for key in ("endorsement_hash_path", "endorsement_ca_path", "policy_path", "evidence_path"):
        fresh = Attesting(tmp_path)
        with pytest.raises(ConfigurationError, match="missing"):
            await fresh.start(**{key: missing})
