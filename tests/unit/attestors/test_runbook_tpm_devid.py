"""The runbook says what the code does; its commands are run by tests/integration/test_18_tpm_devid.py."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from attestors.tpm_devid import agent

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "runbooks" / "tpm-devid.md").read_text()


def test_each_setting_has_its_row() -> None:
    _, rows = TEXT.split("| setting of the agent |")
    described = re.findall(
        r"`(\w+)`", " ".join(row.split("|")[1] for row in re.findall(r"^\| `.*", rows, re.MULTILINE))
    )
    fields = {field.name for field in msgspec.structs.fields(agent.Configuration)}
    assert fields <= set(described)


def test_the_lines_that_it_quotes_are_those_of_the_code() -> None:
    folders = (ROOT / "attestors" / "tpm_devid", ROOT / "keystores" / "tpm")
    code = "".join(path.read_text() for folder in folders for path in sorted(folder.glob("*.py")))
    code = re.sub(r'"\s+f?"', "", code).replace("{EK_CERTIFICATE:08x}", "01c00002")
    _, table = TEXT.split("| line | what to do |")
    quoted = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(quoted) >= 7
    for line in quoted:
        for part in line.split(": … "):
            assert part in code, part
