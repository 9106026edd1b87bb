"""The language of boot policies: what it means, and what is said of faults."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestors.tpm.policy import loading
from attestors.tpm.policy.patterns import TEXT_LIMIT, Patterns, literal
from attestors.tpm.policy.rules import DigestRule, Policies
from operations import hcl
from operations.errors import ConfigurationError, InvalidArgument

A, B = "aa" * 32, "bb" * 32


def load(folder: Path, text: str) -> Policies:
    path = folder / "boot.hcl"
    path.write_text(text)
    return loading.load(str(path))


WHOLE = f"""
policy "golden-1" {{
  selectors = ["manufacturer:IFX", "manufacturer:STM", "model:SLB9670"]
  pcr = {{ "0" = "{A}", "7" = ["{A}", "{B.upper()}"] }}
  events {{
    secure_boot = true
    PK {{ allow_only = ["{A}"] }}
    KEK = {{ require_any = ["{A}", "{B}"] }}
    db = {{ require = ["{A}"], allow_only = ["{A}", "{B}"] }}
    dbx {{ require = ["{B}"] }}
    MokList {{ forbid = ["{B}"] }}
    authorities {{ allow_only = [] }}
    images {{ allow_only = ["{A}"] }}
    drivers {{ allow_only = ["{A}"] }}
    files {{ require = ["{"0a" * 20}"] }}
    command_line = ["quiet", "root=/dev/.* ro"]
    firmware_version = ["1\\\\..*"]
  }}
  tpm_firmware {{ minimum = "0x00070055_0011cb00" allow = ["0x000700550011CB01"] }}
  ima {{
    allow = {{ "/usr/bin/x" = ["sha256:{A}", "{"0b" * 20}"], "/usr/bin/y" = "sha512:{"0c" * 64}" }}
    allow_file = "files"
    exclude = ["/var/.*"]
    violations = "allow"
  }}
}}
policy "other" {{ pcr {{ "4" = "{A}" }} }}
"""


def test_every_part_of_the_language(tmp_path: Path) -> None:
    (tmp_path / "files").write_text(f"# ours\n\n{B}  /usr/bin/x\n{A} */opt/a b\n\\{A}  /opt/a\\\\b\\n\n")
    policies = load(tmp_path, WHOLE)
    assert policies.names == ("golden-1", "other")
    assert policies.wants_event_log
    assert policies.wants_ima
    assert policies.pcrs == {*range(11), 12, 14}
    golden = policies.policies[0]
    assert golden.selectors == {
        "manufacturer": {"manufacturer:IFX", "manufacturer:STM"},
        "model": {"model:SLB9670"},
    }
    a, b = bytes.fromhex(A), bytes.fromhex(B)
    assert golden.pcr == {0: {a}, 7: {a, b}}
    events = golden.events
    assert events is not None
    assert events.secure_boot is True
    assert set(events.variables) == {"PK", "KEK", "db", "dbx", "MokList"}
    assert events.variables["db"] == DigestRule(require=frozenset({a}), allow_only=frozenset({a, b}))
    assert events.variables["KEK"] == DigestRule(require_any=frozenset({a, b}))
    assert events.variables["MokList"] == DigestRule(forbid=frozenset({b}))
    assert events.authorities == DigestRule(allow_only=frozenset())
    assert events.images == events.drivers == DigestRule(allow_only=frozenset({a}))
    assert events.files == DigestRule(require=frozenset({b"\x0a" * 20}))
    assert events.command_line is not None
    assert [events.command_line.match(text) for text in ("quiet", "root=/dev/sda ro", "quiet x")] == [True, True, False]
    assert events.firmware_version is not None
    assert [events.firmware_version.match(text) for text in ("1.5", "15", "21.5")] == [True, False, False]
    assert golden.tpm_firmware is not None
    assert golden.tpm_firmware.minimum == 0x00070055_0011CB00
    assert golden.tpm_firmware.allow == {0x00070055_0011CB01}
    ima = golden.ima
    assert ima is not None
    assert ima.allow == {
        "sha256": {"/usr/bin/x": (a, b), "/opt/a_b": (a,), "/opt/a\\b\n": (a,)},
        "sha1": {"/usr/bin/x": (b"\x0b" * 20,)},
        "sha512": {"/usr/bin/y": (b"\x0c" * 64,)},
    }
    assert ima.allow_violations
    assert ima.keys is None


def test_json_is_as_good(tmp_path: Path) -> None:
    policies = load(tmp_path, '{"policy": {"golden": {"pcr": {"0": ["' + A + '"]}}}}')
    assert policies.policies[0].pcr == {0: {bytes.fromhex(A)}}


JSON_FORMS = {
    "an object": '{"policy": {"golden": RULES}}',
    "a list of objects": '{"policy": [{"golden": RULES}]}',
    "an object in a list": '{"policy": {"golden": [RULES]}}',
}


@pytest.mark.parametrize("case", JSON_FORMS)
def test_json_in_each_form_that_hcl_gives_it(case: str, tmp_path: Path) -> None:
    policies = load(tmp_path, JSON_FORMS[case].replace("RULES", '{"events": {"secure_boot": true}}'))
    assert policies.names == ("golden",)
    with pytest.raises(ConfigurationError, match=r"boot\.hcl:1: .*no PCR"):
        load(tmp_path, JSON_FORMS[case].replace("RULES", '{"pcr": {"x": "00"}}'))


def test_a_policy_twice_in_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match='policy "a" is in line 1 already'):
        load(tmp_path, '{"policy": [{"a": {"ima": {"exclude": ["a"]}}}, {"a": {}}]}')


def test_rules_about_values_alone_want_no_logs(tmp_path: Path) -> None:
    policies = load(tmp_path, f'policy "golden" {{ pcr = {{ "0" = "{A}", "17" = "{B}" }} }}')
    assert policies.pcrs == {0, 17}
    assert not policies.wants_event_log
    assert not policies.wants_ima


FAULTS = {
    "no policy": ("", "boot.hcl:1: policy must be configured"),
    "an unknown key": ("\nrule = 1", 'boot.hcl:2: unknown key "rule"'),
    "a misspelt rule": ('policy "a" { events {\nsecureboot = true } }', 'boot.hcl:2: unknown key "secureboot" in '),
    "a text for a switch": ('policy "a" { events {\nsecure_boot = "on" } }', "boot.hcl:2: .*expected true or false"),
    "no rules": ('\npolicy "a" {}', 'boot.hcl:2: policy "a" has no rule'),
    "no rules about events": ('\npolicy "a" {\nevents {} }', "boot.hcl:3: events has no rule"),
    "no digests": ('policy "a" { events {\ndb {} } }', "boot.hcl:2: it asks for nothing"),
    "no registers": ('policy "a" {\npcr {} }', "boot.hcl:2: pcr has no register"),
    "no files": ('policy "a" {\nima {} }', "boot.hcl:2: ima lets no file run"),
    "no versions": ('policy "a" {\ntpm_firmware {} }', "boot.hcl:2: tpm_firmware has no rule"),
    "an unknown register": (f'policy "a" {{ pcr {{\n"24" = "{A}" }} }}', 'boot.hcl:2: there is no PCR "24"'),
    "a register by name": (f'policy "a" {{ pcr {{\nsecure = "{A}" }} }}', 'boot.hcl:2: there is no PCR "secure"'),
    "a register twice": (f'policy "a" {{ pcr {{ "1" = "{A}"\n"01" = "{B}" }} }}', "boot.hcl:2: PCR 1 is written twice"),
    "a short digest": ('policy "a" { pcr {\n"0" = "aa" } }', 'boot.hcl:2: "aa" has 2 digits, not 40 or 64'),
    "no hex": ('policy "a" { pcr {\n"0" = "zz" } }', 'boot.hcl:2: "zz" is no digest in hex'),
    "blanks": (f'policy "a" {{ pcr {{\n"0" = " {A[1:]}" }} }}', "boot.hcl:2: .* is no digest in hex"),
    "a number for a digest": (
        'policy "a" { pcr {\n"0" = [1] } }',
        "boot.hcl:2: 0: expected a text, or a list of texts",
    ),
    "a digest of another bank": (
        f'policy "a" {{ events {{ db {{\nrequire = ["{"0a" * 20}"] }} }} }}',
        "boot.hcl:2: .*40",
    ),
    "a bad pattern": ('policy "a" { events {\ncommand_line = ["(a"] } }', 'boot.hcl:2: pattern "\\(a" cannot be used'),
    "an open quotation": (
        'policy "a" { events {\ncommand_line = ["\\\\Qa"] } }',
        "boot.hcl:2: pattern .* cannot be used",
    ),
    "a long pattern": (f'policy "a" {{ ima {{\nexclude = ["{"a" * 16385}"] }} }}', "boot.hcl:2: a pattern of 16385"),
    "a back reference": ('policy "a" { ima {\nexclude = ["(a)\\\\1"] } }', "boot.hcl:2: pattern .* cannot be used"),
    "a bad version": ('policy "a" { tpm_firmware {\nminimum = "7.85" } }', "boot.hcl:2: .*no TPM firmware version"),
    "a selector of another kind": (
        f'policy "a" {{\nselectors = ["pcr:sha256:0:{A}"] pcr {{ "0" = "{A}" }} }}',
        "boot.hcl:2: .*is no selector of a TPM's identity",
    ),
    "a selector without value": ('policy "a" {\nselectors = ["ek:"] ima { exclude = ["a"] } }', "boot.hcl:2: "),
    "a policy twice": ('policy "a" { ima { exclude = ["a"] } }\npolicy "a" {}', 'boot.hcl:2: policy "a" is in line 1'),
    "a name that is no selector": (
        'policy "a b" { ima { exclude = ["a"] } }',
        'boot.hcl:1: a policy cannot be called "a b"',
    ),
    "two names": ('policy "a" "b" { }', 'boot.hcl:1: policy "a" takes one label'),
    "an unknown hash": ('policy "a" { ima { allow {\n"/x" = "crc:00" } } }', 'boot.hcl:2: unknown hash "crc"'),
    "a hash of another length": (
        'policy "a" { ima { allow {\n"/x" = "sha256:00" } } }',
        "boot.hcl:2: .*64 digits, not 2",
    ),
    "a digest without its hash": ('policy "a" { ima { allow {\n"/x" = "00" } } }', "boot.hcl:2: .*write it as sha256:"),
    "an unknown word": ('policy "a" { ima {\nviolations = "ignore" } }', 'boot.hcl:2: .*unknown value "ignore"'),
    "an absent list": ('policy "a" { ima { allow_file = "absent" } }', "absent: cannot read the list of allowed files"),
    "an absent key": ('policy "a" { ima {\nsigned_by = ["absent"] } }', "boot.hcl:2: signed_by: cannot read .*absent"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_told_with_file_and_line(case: str, tmp_path: Path) -> None:
    text, reason = FAULTS[case]
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load(tmp_path, text)
    assert all(line.startswith(str(tmp_path)) for line in str(caught.value).splitlines())


def test_one_reading_tells_all_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, 'policy "a" { pcr {\n"24" = "x"\n"0" = "y" } events {\ncommand_line = ["("] } }')
    assert len(str(caught.value).splitlines()) == 3


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent.hcl: cannot read the configuration: No such file"):
        loading.load(str(tmp_path / "absent.hcl"))


def test_the_digest_is_of_everything_that_decides(tmp_path: Path) -> None:
    text = 'policy "a" { ima { allow_file = "list" } }'
    listed = tmp_path / "list"
    listed.write_text(f"{A}  /usr/bin/x\n")
    first = load(tmp_path, text)
    assert load(tmp_path, text).digest == first.digest
    assert load(tmp_path, text.replace('"a"', '"b"')).digest != first.digest
    listed.write_text(f"{B}  /usr/bin/x\n")
    assert load(tmp_path, text).digest != first.digest


LISTS = {
    "sha256sum": f"{A}  /usr/bin/x\n",
    "sha256sum, binary": f"{A.upper()} */usr/bin/x",
    "with the algorithm": f"sha256:{A}  /usr/bin/x\r\n",
    "IMA's own": f"10 {'0a' * 20} ima-ng sha256:{B} boot_aggregate\n10 {'0a' * 20} ima-ng sha256:{A} /usr/bin/x\n",
    "keylime": '{"meta": {"version": 1}, "digests": {"/usr/bin/x": ["' + A + '"]}, "excludes": [".*"]}',
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_tools_print(case: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(LISTS[case])
    ima = load(tmp_path, 'policy "a" { ima { allow_file = "list" } }').policies[0].ima
    assert ima is not None
    assert ima.allow == {"sha256": {"/usr/bin/x": (bytes.fromhex(A),)}}
    assert not ima.exclude.match("/usr/bin/y")


def test_paths_that_are_not_utf8(tmp_path: Path) -> None:
    """As the IMA list's reader writes them."""
    (tmp_path / "list").write_bytes(f"{A}  /opt/".encode() + b"\xff\n")
    ima = load(tmp_path, 'policy "a" { ima { allow_file = "list" } }').policies[0].ima
    assert ima is not None
    assert ima.allow == {"sha256": {"/opt/\\xff": (bytes.fromhex(A),)}}


BAD_LISTS = {
    "no line of a list": ("/usr/bin/x\n", "list:1: .*is neither a line of sha256sum"),
    "a digest cut short": (f"# x\n{A[2:]}  /usr/bin/x\n", "list:2: .*is no digest"),
    "an unknown hash": ("crc:00  /usr/bin/x\n", 'list:1: unknown hash "crc"'),
    "no runtime policy": ('{"digests": {"/x": "00"}}', "list: no runtime policy of keylime"),
    "a digest that is none": ('{"digests": {"/x": ["00"]}}', "list: no runtime policy of keylime: .*no digest"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_fault_of_a_list_is_told_with_its_line(case: str, tmp_path: Path) -> None:
    text, reason = BAD_LISTS[case]
    (tmp_path / "list").write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        load(tmp_path, 'policy "a" { ima { allow_file = "list" } }')


def test_a_list_of_a_device_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestors.tpm.policy.allow_lists.FILE_LIMIT", 1 << 20)
    (tmp_path / "list").symlink_to("/dev/zero")
    with pytest.raises(ConfigurationError, match="no list of files is"):
        load(tmp_path, 'policy "a" { ima { allow_file = "list" } }')


def test_a_list_that_sha256sum_made(tmp_path: Path) -> None:
    """The real tool, on a name that it has to escape."""
    strange = tmp_path / "a\\b\nc"
    strange.write_bytes(b"content")
    made = subprocess.run(["sha256sum", os.fspath(strange)], capture_output=True, check=True).stdout
    (tmp_path / "list").write_bytes(made)
    ima = load(tmp_path, 'policy "a" { ima { allow_file = "list" } }').policies[0].ima
    assert ima is not None
    assert ima.allow == {"sha256": {str(strange): (hashlib.sha256(b"content").digest(),)}}


def test_a_policy_that_was_damaged_is_one_or_is_refused(tmp_path: Path) -> None:
    """Each character left out, and each line: no other error, and none without its place."""
    (tmp_path / "files").write_text(f"{A}  /usr/bin/x\n")
    lines = WHOLE.splitlines(keepends=True)
    damaged = [WHOLE[:index] + WHOLE[index + 1 :] for index in range(0, len(WHOLE), 3)]
    damaged += ["".join(lines[:index] + lines[index + 1 :]) for index in range(len(lines))]
    damaged += [WHOLE[:index] for index in range(0, len(WHOLE), 5)]
    refused = 0
    for text in damaged:
        try:
            loading.read(hcl.parse(text, "boot.hcl"), tmp_path)
        except ConfigurationError as error:
            refused += 1
            assert all(re.match(r"(boot\.hcl:\d+|/.*): ", line) for line in str(error).splitlines())  # noqa: PT017
    assert refused > len(damaged) // 4


PLAIN = st.text(st.characters(exclude_characters="\0"), max_size=40)


@given(PLAIN, PLAIN)
def test_no_text_makes_a_pattern_raise_anything_else(pattern: str, text: str) -> None:
    try:
        found = Patterns([pattern, ".*x"])
    except InvalidArgument:
        return
    assert found.match(text + "x") or "\n" in text


def test_a_pattern_that_takes_others_for_ever_takes_no_time() -> None:
    """Python's re would think about it until the sun has gone out."""
    patterns = Patterns(["(a+)+b", "(/[^/]*)*x", "(.*)*y"])
    assert not patterns.match("a" * 5000)
    assert not patterns.match("/a" * 2500)


def test_a_text_longer_than_any_path_matches_nothing() -> None:
    assert Patterns([".*"]).match("a" * TEXT_LIMIT)
    assert not Patterns([".*"]).match("a" * (TEXT_LIMIT + 1))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF), max_size=40))
def test_a_literal_matches_itself_alone(text: str) -> None:
    patterns = Patterns([literal(text)])
    assert patterns.match(text)
    assert not patterns.match(text + "a")
    assert not patterns.match("a" + text)
