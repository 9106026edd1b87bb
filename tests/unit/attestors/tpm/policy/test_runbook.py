"""The runbook says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

import attestors.tpm.policy
from attestors.tpm.policy import configuration, loading
from operations import hcl

ROOT = Path(__file__).parents[5]
TEXT = (ROOT / "docs" / "runbooks" / "boot-policy.md").read_text()


def test_its_policy_is_one(tmp_path: Path) -> None:
    [example] = re.findall(r"```hcl\n(.*?)```", TEXT, re.DOTALL)
    policies = loading.read(hcl.parse(example, "boot-policy.md"), tmp_path)
    assert policies.names == ("golden",)


def test_every_rule_is_in_it() -> None:
    """As a row of a table, or in the example."""
    rows = " ".join(row.split("|")[1] for row in TEXT.splitlines() if row.startswith("| `"))
    described = set(re.findall(r"`(\w+)`", rows))
    for model in (configuration.Events, configuration.Digests, configuration.Ima):
        assert {field.encode_name for field in msgspec.structs.fields(model)} <= described
    for name in ("selectors", "pcr", "events", "tpm_firmware", "ima"):
        assert re.search(rf"^  {name}\b", TEXT, re.MULTILINE), name
    assert {field.encode_name for field in msgspec.structs.fields(configuration.Policy)} == {
        *("selectors", "pcr", "events", "tpm_firmware", "ima"),
    }


def test_the_reasons_that_it_quotes_are_those_of_the_code() -> None:
    folder = Path(attestors.tpm.policy.__path__[0])
    code = re.sub(r'"\s+f?"', "", "".join(path.read_text() for path in sorted(folder.glob("*.py"))))
    for words in (
        "the firmware's code is another",
        "Secure Boot is ",
        "not proven by the event log",
        "there is no event log",
        "there is no IMA list",
        "is not among the allowed files",
        "files that were measured earlier",
        "no policy is for this node",
    ):
        assert words in code
        assert words in TEXT
