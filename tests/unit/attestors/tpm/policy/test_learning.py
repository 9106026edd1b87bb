"""A policy that is learned lets in the machines that it is of, and no machine that booted something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestors.tpm.event_log import parser
from attestors.tpm.event_log import replay as event_log
from attestors.tpm.evidence import Evidence
from attestors.tpm.pcrs import initial
from attestors.tpm.policy import allow_lists, judging, learning, loading, replaying, writing
from attestors.tpm.policy.model import Judgement
from attestors.tpm.policy.rules import Policies
from operations import hcl
from operations.errors import ConfigurationError, InvalidArgument, Refused
from tests.simulators.booted import MACHINES
from tests.simulators.event_log import Boot, certificate
from tests.simulators.golden import FILES, TAKEN_AT, taken, told
from tests.simulators.shared_data import shared_data


def learned(folder: Path, *evidence: Evidence) -> Policies:
    found = learning.learn("golden", [replaying.replay(each) for each in evidence], "boot.allow")
    if found.allowed is not None:
        (folder / "boot.allow").write_text(found.allowed)
    (folder / "boot.hcl").write_text(found.policy)
    return loading.load(str(folder / "boot.hcl"))


def judged(policies: Policies, evidence: Evidence) -> Judgement:
    return judging.judge(policies, replaying.replay(evidence).observed(policies))


BOOTS = (
    Boot(),
    Boot(kernel=b"another kernel", command_line="/boot/vmlinuz root=UUID=0fc63daf-8483-4772-8e79-3d69d8477de4 ro"),
    Boot(allowed=(certificate("vendor CA"), certificate("other CA")), forbidden=(b"\x01" * 32, b"\x02" * 32)),
)
OTHERS = {
    "Secure Boot off": Boot(secure_boot=False),
    "another platform key": Boot(platform_key=certificate("attacker")),
    "another exchange key": Boot(exchange_keys=(certificate("attacker"),)),
    "another trusted key": Boot(allowed=(certificate("vendor CA"), certificate("attacker"))),
    "revocations taken back": Boot(forbidden=()),
    "another shim": Boot(shim=b"attacker"),
    "another boot loader": Boot(grub=b"attacker"),
    "another kernel": Boot(kernel=b"attacker"),
    "another initrd": Boot(initrd=b"attacker"),
    "another command line": Boot(command_line="/boot/vmlinuz root=/dev/vda1 ro quiet init=/bin/sh"),
    "other firmware": Boot(firmware="Bench 2.0"),
}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_golden_machines_satisfy_what_was_learned_of_them(count: int, tmp_path: Path) -> None:
    golden = [taken(boot, ek=str(number)) for number, boot in enumerate(BOOTS[:count])]
    policies = learned(tmp_path, *golden)
    for evidence in golden:
        assert judged(policies, evidence) == Judgement(("golden",), ("golden",), {})


@pytest.mark.parametrize("case", OTHERS)
def test_a_machine_that_booted_otherwise_does_not(case: str, tmp_path: Path) -> None:
    judgement = judged(learned(tmp_path, taken(), taken(BOOTS[1])), taken(OTHERS[case]))
    assert not judgement.passed
    assert judgement.reasons


def test_a_machine_that_ran_something_else_does_not(tmp_path: Path) -> None:
    policies = learned(tmp_path, taken())
    for files in ({**FILES, "/tmp/x": b"x"}, {**FILES, "/usr/bin/sh": b"another sh"}):
        judgement = judged(policies, taken(files=files))
        assert not judgement.passed
        assert all("the file" in reason for reason in judgement.reasons)
    assert judged(policies, taken(files={})).passed


def test_another_disk_is_no_other_machine(tmp_path: Path) -> None:
    line = "/boot/vmlinuz root=UUID={} ro"
    first = taken(Boot(command_line=line.format("0fc63daf-8483-4772-8e79-3d69d8477de4")))
    second = taken(Boot(command_line=line.format("21686148-6449-6e6f-744e-656564454649")))
    policies = learned(tmp_path, first)
    # GRUB's commands have the UUID too, so PCR 8 differs; the policy judges the command line.
    assert judged(policies, second).passed


def test_another_make_is_for_another_policy(tmp_path: Path) -> None:
    policies = learned(tmp_path, taken())
    other = msgspec.structs.replace(taken(), selectors=("ek:00", "manufacturer:STM", "model:SLB9670"))
    judgement = judged(policies, other)
    assert not judgement.passed
    assert judgement.failures == {}


def test_many_files_go_beside_the_policy(tmp_path: Path) -> None:
    files = {f"/usr/lib/lib_{number}\\.so\n": str(number).encode() for number in range(100)}
    policies = learned(tmp_path, taken(files=files))
    assert len((tmp_path / "boot.allow").read_text().splitlines()) == 100
    assert 'allow_file = "boot.allow"' in (tmp_path / "boot.hcl").read_text()
    assert judged(policies, taken(files=files)).passed
    assert learning.learn("golden", [replaying.replay(taken(files=files))]).allowed is None


def test_registers_that_differ_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    golden = [msgspec.structs.replace(taken(), event_log=b"", ima=b"") for _ in range(2)]
    golden[1].pcrs[3] = b"\x03" * 32
    policies = learned(tmp_path, *golden)
    text = (tmp_path / "boot.hcl").read_text()
    assert set(policies.policies[0].pcr) == {0, 2, 4, 7, 8, 9, 12, 13, 14}
    assert "# PCR 3 left out: the values differ between the machines." in text
    assert "# PCR 1 is left out: it has the machine's settings and serial numbers." in text
    assert "# No events: not every machine has an event log that proves any." in text
    assert not policies.wants_event_log
    assert not policies.wants_ima


def test_nothing_in_common_makes_no_policy() -> None:
    nothing = replaying.replay(
        msgspec.structs.replace(taken(), event_log=b"", ima=b"", pcrs={10: bytes(32)}, tpm_firmware=0)
    )
    with pytest.raises(InvalidArgument, match="nothing can be learned"):
        learning.learn("golden", [nothing])


def test_older_firmware_of_the_tpm_is_not_let_in(tmp_path: Path) -> None:
    policies = learned(tmp_path, taken())
    older = msgspec.structs.replace(taken(), tpm_firmware=0x00070055_0011CAFF)
    assert "older than tpm_firmware.minimum" in judged(policies, older).reasons[0]


def test_evidence_of_two_banks_makes_no_policy() -> None:
    other = msgspec.structs.replace(taken(), bank="sha1", pcrs={0: bytes(20)}, event_log=b"", ima=b"")
    with pytest.raises(InvalidArgument, match=r"several PCR banks \(sha1, sha256\)"):
        learning.learn("golden", [replaying.replay(taken()), replaying.replay(other)])


def test_a_name_that_is_no_selector_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="a policy cannot be called"):
        learning.learn('x" {}', [replaying.replay(taken())])


def test_names_that_a_machine_chose_stay_comments(tmp_path: Path) -> None:
    """A boot loader tells the names of files: one with a line end must not become a rule."""
    machine = replaying.replay(taken())
    assert machine.facts is not None
    file = replace(machine.facts.files[0], name='x\n}\npolicy "all" { ima { exclude = [".*"] } }\n#')
    evil = replace(machine, facts=replace(machine.facts, files=(file,)))
    (tmp_path / "boot.hcl").write_text(learning.learn("golden", [evil]).policy)
    assert loading.load(str(tmp_path / "boot.hcl")).names == ("golden",)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@given(st.lists(TEXTS, min_size=1, max_size=3), st.lists(st.tuples(TEXTS, TEXTS), max_size=3))
def test_every_text_comes_back_as_it_was_written(values: Sequence[str], lines: Sequence[tuple[str, str]]) -> None:
    text = writing.text(
        [writing.Comment("".join(values)), writing.Rule("values", values), writing.Line("lines", lines)]
    )
    body = hcl.parse(text, "x.hcl")
    assert body.attributes["values"].value == tuple(values)
    assert body.attributes["lines"].value == tuple(value for value, _ in lines)


def test_a_dollar_before_a_brace_comes_back() -> None:
    body = hcl.parse(writing.text([writing.Rule("value", 'a ${"b \\${ c')]), "x.hcl")
    assert body.attributes["value"].value == 'a ${"b \\${ c'


def test_evidence_that_does_not_hold_together_is_no_evidence() -> None:
    whole = taken()
    for change, reason in (
        ({"pcrs": {**whole.pcrs, 4: bytes(32)}}, r"PCR 4 \(sha256\) does not replay"),
        ({"pcrs": {**whole.pcrs, 10: b"\x01" * 32}}, "no beginning of it replays to the quoted PCR 10"),
        ({"pcrs": {number: value for number, value in whole.pcrs.items() if number != 10}}, "without PCR 10"),
        ({"event_log": whole.event_log[:-10]}, "event log"),
        ({"ima": b"x" * 100}, "IMA list"),
        ({"quote": b"x", "signature": b"x"}, "."),
        ({"signature": b"x"}, "."),
    ):
        with pytest.raises((Refused, InvalidArgument), match=reason):
            replaying.replay(msgspec.structs.replace(whole, **change))


def test_machines_that_really_booted(tmp_path: Path) -> None:
    """Learned from one boot, at two times of it: others by their own command line, kernel or firmware state."""
    golden, later = told("golden"), told("golden", later=True)
    policies = learned(tmp_path, golden, later)
    assert judged(policies, golden).passed
    assert judged(policies, later).passed
    for machine, reason in (
        ("command-line", "command line"),
        ("other-kernel", "which images.allow_only has not"),
        ("insecure", "Secure Boot is off: secure_boot wants it on"),
    ):
        judgement = judged(policies, told(machine))
        assert not judgement.passed
        assert any(reason in each for each in judgement.reasons), machine


def test_a_boot_that_went_on_is_judged_by_its_files(tmp_path: Path) -> None:
    policies = learned(tmp_path, told("golden"))
    judgement = judged(policies, told("golden", later=True))
    assert not judgement.passed
    assert any("changed while it was measured (a violation)" in reason for reason in judgement.reasons)
    assert all("file" in reason or "more" in reason for reason in judgement.reasons)


@pytest.mark.parametrize(
    "machine", ["golden", "command-line", "other-kernel", "insecure", "seabios-ngv2", "seabios-evm"]
)
def test_every_machine_satisfies_its_own_policy(machine: str, tmp_path: Path) -> None:
    assert judged(learned(tmp_path, told(machine)), told(machine)) == Judgement(("golden",), ("golden",), {})


def test_signed_files_of_a_machine_need_no_digests(tmp_path: Path) -> None:
    """Those that evmctl signed there, by RSA and by ECDSA."""
    evidence = told("golden")
    unsigned = [
        entry
        for entry in replaying.replay(evidence).ima or ()
        if entry.signature is None and not entry.path.startswith("boot_aggregate")
    ]
    lines = (allow_lists.line(entry.algorithm, entry.digest, entry.path) for entry in unsigned)
    (tmp_path / "list").write_text("\n".join(lines))
    text = 'policy "golden" {{ ima {{ allow_file = "list" {} }} }}'
    signers = [str(MACHINES / f"signer-{kind}.pem") for kind in ("rsa", "ec")]

    def tried(signed_by: str) -> Judgement:
        (tmp_path / "boot.hcl").write_text(text.format(signed_by))
        return judged(loading.load(str(tmp_path / "boot.hcl")), evidence)

    assert tried(f'signed_by = ["{signers[0]}", "{signers[1]}"]').passed
    assert len(tried("").reasons) == 2
    [reason] = tried(f'signed_by = ["{signers[0]}"]').reasons
    assert '"/usr/bin/signed-ec"' in reason
    assert reason.endswith("is not among the allowed files, nor is it signed by a key of signed_by")


def test_a_file_of_keys_that_has_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "keys.pem").write_text("no key")
    (tmp_path / "boot.hcl").write_text('policy "golden" { ima {\nsigned_by = ["keys.pem"] } }')
    with pytest.raises(ConfigurationError, match=r"boot\.hcl:2: signed_by: .*keys\.pem: no certificate"):
        loading.load(str(tmp_path / "boot.hcl"))


def test_logs_of_real_machines(tmp_path: Path) -> None:
    """Where they are at hand: each that replays satisfies the policy that is learned of it, and not another's."""
    found: dict[str, Evidence] = {}
    for path in shared_data("eventlogs"):
        data = path.read_bytes()
        try:
            log = parser.parse(data)
            bank = "sha256" if "sha256" in log.banks else log.banks[0]
            quoted = {number: initial(bank, number, log.locality) for number in range(24)}
            quoted.update(event_log.replay(log, bank).values)
            evidence = Evidence(taken_at=TAKEN_AT, bank=bank, pcrs=quoted, event_log=data)
            replaying.replay(evidence)
        except (Refused, InvalidArgument):
            continue
        found[path.name] = evidence
    assert found or not shared_data("eventlogs")
    policies = {name: learned(tmp_path, evidence) for name, evidence in found.items()}
    for name, evidence in found.items():
        assert judged(policies[name], evidence).passed, name
    distinct = {evidence.pcrs[4]: evidence for evidence in found.values()}.values()
    for one in distinct:
        others = [policies[name] for name, evidence in found.items() if evidence.pcrs[4] != one.pcrs[4]]
        assert not any(judged(policy, one).passed for policy in others)
