"""`spire-server tpm policy`: learn, check, show, on files."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from attestors.tpm import evidence
from attestors.tpm.evidence import Evidence
from operations.flags import Program
from operations.version import VERSION
from server.cli.main import COMMANDS, GROUPS
from tests.simulators.event_log import Boot
from tests.simulators.golden import FILES, taken

PROGRAM = Program("spire-server", VERSION, COMMANDS, GROUPS)


def run(*args: str | Path) -> int:
    return PROGRAM.run(["tpm", "policy", *map(str, args)])


def files(folder: Path, **found: Evidence) -> list[Path]:
    for name, each in found.items():
        evidence.write(folder / f"{name}.json", each)
    return [folder / f"{name}.json" for name in found]


def flags(paths: Sequence[Path]) -> list[str]:
    return [part for path in paths for part in ("-evidence", str(path))]


def test_from_golden_machines_to_a_policy_that_refuses_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = files(tmp_path, one=taken(ek="1"), two=taken(Boot(kernel=b"other"), ek="2"))
    bad = files(tmp_path, bad=taken(Boot(secure_boot=False), ek="3"))
    policy = tmp_path / "boot.hcl"
    assert run("learn", *flags(golden), "-policy", policy, "-name", "rack") == 0
    written = capsys.readouterr()
    assert written.out.startswith(f"Wrote {policy}. Review it, and try it: spire-server tpm policy check -policy ")
    assert written.err.count("without a quote") == 2
    assert stat.S_IMODE(policy.stat().st_mode) == 0o644

    assert run("check", *flags(golden), "-policy", policy) == 0
    passed = capsys.readouterr()
    assert passed.out.count("\n  passed   rack\n") == 2
    assert passed.err == ""

    assert run("check", *flags([*golden, *bad]), "-policy", policy) == 1
    refused = capsys.readouterr()
    assert "  FAILED   rack\n    policy rack: Secure Boot is off: secure_boot wants it on\n" in refused.out
    table = [line.split() for line in refused.out.splitlines()[-4:]]
    assert table == [
        ["EVIDENCE", "VERDICT", "POLICIES"],
        [str(golden[0]), "passed", "rack"],
        [str(golden[1]), "passed", "rack"],
        [str(bad[0]), "REFUSED", "none"],
    ]
    assert refused.err == f"Error: 1 of 3 machines would be refused: {bad[0]}\n"


def test_without_a_file_the_policy_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path, one=taken())
    assert run("learn", *flags(paths)) == 0
    printed = capsys.readouterr().out
    policy = tmp_path / "boot.hcl"
    policy.write_text(printed)
    assert run("check", *flags(paths), "-policy", policy) == 0
    assert run("learn", *flags(paths), "-output", "json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == {"policy": printed, "allowed_files": None, "written": []}


def test_a_long_list_of_files_is_written_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = {**FILES, **{f"/usr/lib/{number}": str(number).encode() for number in range(100)}}
    paths = files(tmp_path, one=taken(files=many))
    policy = tmp_path / "boot.hcl"
    assert run("learn", *flags(paths), "-policy", policy) == 0
    assert f"Wrote {policy} and {tmp_path / 'boot.allow'}." in capsys.readouterr().out
    assert run("check", *flags(paths), "-policy", policy) == 0
    capsys.readouterr()
    before = policy.read_text()
    assert run("learn", *flags(paths), "-policy", policy) == 1
    assert capsys.readouterr().err == f"Error: {policy} exists: name another file with -policy, or move it away\n"
    assert policy.read_text() == before


def test_a_check_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = files(tmp_path, good=taken(), bad=taken(files={"/tmp/x": b"x"}))
    policy = tmp_path / "boot.hcl"
    assert run("learn", "-evidence", good, "-policy", policy) == 0
    capsys.readouterr()
    assert run("check", *flags([good, bad]), "-policy", policy, "-output", "json") == 1
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert [each["passed"] for each in found["evidence"]] == [True, False]
    assert found["passed"] is False
    assert found["evidence"][0]["satisfied"] == ["golden"]
    assert 'the file "/tmp/x"' in found["evidence"][1]["failures"]["golden"][0]


def test_evidence_that_does_not_replay_is_refused_and_the_others_are_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = taken()
    broken.pcrs[7] = bytes(32)
    paths = files(tmp_path, broken=broken, good=taken())
    policy = tmp_path / "boot.hcl"
    assert run("learn", *flags(paths[1:]), "-policy", policy) == 0
    assert run("check", *flags(paths), "-policy", policy) == 1
    captured = capsys.readouterr()
    assert "  REFUSED  event log: PCR 7 (sha256) does not replay" in captured.out
    assert "  passed   golden" in captured.out
    assert run("learn", *flags(paths)) == 1
    assert f"Error: {paths[0]}: event log: PCR 7 (sha256) does not replay" in capsys.readouterr().err
    assert run("show", *flags(paths)) == 1
    assert f"Error: {paths[0]}: event log" in capsys.readouterr().err


def test_a_folder_is_a_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = tmp_path / "evidence"
    fleet.mkdir()
    policy = tmp_path / "boot.hcl"
    assert run("learn", "-evidence", fleet) == 1
    assert capsys.readouterr().err == f"Error: {fleet}: no evidence in this folder: its files are called ….json\n"
    files(fleet, **{f"node-{number:02}": taken(ek=str(number)) for number in range(12)})
    (fleet / "README").write_text("not evidence")
    assert run("learn", "-evidence", fleet, "-policy", policy) == 0
    assert run("check", "-evidence", fleet, "-policy", policy) == 0
    assert capsys.readouterr().out.count("\n  passed   golden\n") == 12
    policy.write_text('policy "golden" { events { secure_boot = false } }')
    assert run("check", "-evidence", fleet, "-policy", policy) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: 12 of 12 machines would be refused: {fleet}/node-00.json, ")
    assert error.endswith("/node-09.json and 2 more\n")


def test_nothing_is_learned_of_what_a_server_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = tmp_path / "evidence"
    fleet.mkdir()
    files(fleet, **{"00": taken(), "00.refused": taken(Boot(secure_boot=False))})
    policy = tmp_path / "boot.hcl"
    assert run("learn", "-evidence", fleet, "-policy", policy) == 0
    assert run("check", "-evidence", fleet, "-policy", policy) == 1
    assert capsys.readouterr().err.endswith(f"1 of 2 machines would be refused: {fleet}/00.refused.json\n")


def test_a_node_that_no_policy_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path, one=taken())
    policy = tmp_path / "boot.hcl"
    policy.write_text('policy "golden" { selectors = ["ek:11"] events { secure_boot = true } }')
    assert run("check", *flags(paths), "-policy", policy) == 1
    captured = capsys.readouterr()
    assert "  REFUSED  no policy is for this node" in captured.out
    assert captured.err == f"Error: the machine would be refused: {paths[0]}\n"


def test_what_a_policy_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "boot.hcl"
    policy.write_text(
        'policy "golden" { selectors = ["manufacturer:IFX"] pcr { "0" = "' + "aa" * 32 + '" }\n'
        'events { secure_boot = true } ima { exclude = ["/var/.*"] } }'
    )
    assert run("show", "-policy", policy) == 0
    shown = capsys.readouterr().out
    assert "pcrs: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14\n" in shown
    assert "  name: golden\n  selectors:\n    manufacturer:IFX\n" in shown
    assert "    secure_boot: yes\n" in shown
    assert run("show", "-policy", policy, "-output", "json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    golden = json.loads(out)["policies"][0]
    assert golden["pcr"] == {"0": ["aa" * 32]}
    assert golden["ima"] == {
        "allowed_files": 0,
        "exclude": ["/var/.*"],
        "signed_by_keys": False,
        "violations": "refuse",
    }


def test_what_evidence_proves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path, one=taken())
    assert run("show", *flags(paths)) == 0
    shown = capsys.readouterr().out
    for line in (
        "taken_at: 2026-09-21 14:13:20 +0000 UTC",
        "quoted: no",
        "tpm_firmware: 0x00070055_0011cb00",
        "  secure_boot: yes",
        "  firmware_version: Bench 1.0",
        "    /boot/vmlinuz root=/dev/vda1 ro quiet",
        "  entries: 3",
    ):
        assert f"{line}\n" in shown
    assert run("show", *flags(paths), "-output", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ima"] == {"entries": 3, "files": 3, "signed": 0, "violations": 0}
    assert found["event_log"]["images"][0]["name"] == "\\EFI\\debian\\shimx64.efi"
    assert run("show", *flags([*paths, *paths]), "-output", "json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["learn"], "evidence is required: name its file with -evidence"),
        (["check", "-policy", "x"], "evidence is required: name its file with -evidence"),
        (["check", "-evidence", "x"], "a policy is required: name its file with -policy"),
        (["show"], "name what to show: a policy with -policy, or evidence with -evidence"),
        (["show", "-policy", "x", "-evidence", "x"], "name what to show: a policy with -policy, or evidence"),
        (["show", "-policy", "/absent"], "/absent: cannot read the configuration: No such file or directory"),
        (["show", "-evidence", "/absent"], "/absent: cannot read the evidence: No such file or directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_missing_is_told_in_one_line(args: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*args) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"Error: {reason}")
    assert captured.err.count("\n") == 1


def test_a_faulty_policy_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path, one=taken())
    policy = tmp_path / "boot.hcl"
    policy.write_text('policy "golden" {\n  event { secure_boot = true }\n}\n')
    assert run("check", *flags(paths), "-policy", policy) == 1
    error = capsys.readouterr().err
    assert error == f'Error: {policy}:2: unknown key "event" in policy.golden: did you mean "events"?\n'
