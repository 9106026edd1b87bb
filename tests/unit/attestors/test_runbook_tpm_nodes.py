"""The runbook says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from attestors.tpm.agent import Configuration
from operations import duration

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "runbooks" / "tpm-nodes.md").read_text()
ROWS = [row for row in TEXT.splitlines() if row.startswith("| `")]


def test_each_setting_has_its_row_and_its_default() -> None:
    described = {name for row in ROWS for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    fields = {field.name: field.default for field in msgspec.structs.fields(Configuration)}
    assert described == set(fields)
    told = {name: row.split("|")[3].strip(" `") for row in ROWS for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    for name, default in fields.items():
        if name == "reattest_interval":
            assert duration.parse(told[name]) == default
        else:
            assert told[name] == (default or "none")


def test_the_lines_that_it_quotes_are_those_of_the_code() -> None:
    folders = [ROOT / "attestors" / "tpm", ROOT / "keystores" / "tpm", ROOT / "agent"]
    code = re.sub(r'"\s+f?"', "", "".join(path.read_text() for folder in folders for path in folder.glob("*.py")))
    quoted = re.findall(r'^\| "([^"…]+?) ?[…"]', TEXT, re.MULTILINE)
    assert len(quoted) == 7
    for line in quoted:
        words = line.replace("Could not reattest agent", "reattest agent").replace(" 20 quotes", "")
        assert words in code, line
