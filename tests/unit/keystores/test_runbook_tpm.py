"""The runbook says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from keystores.tpm import configuration
from keystores.tpm.configuration import Configuration

TEXT = (Path(__file__).parents[3] / "docs" / "runbooks" / "tpm.md").read_text()
ROWS = [row for row in TEXT.splitlines() if row.startswith("| `")]


def test_each_setting_has_its_row_and_its_default() -> None:
    described = {name for row in ROWS for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    fields = msgspec.structs.fields(Configuration)
    assert described == {field.name for field in fields}
    for field in fields:
        [row] = [each for each in ROWS if f"`{field.name}`" in each.split("|")[1]]
        if isinstance(field.default, str):
            assert f"`{field.default}`" in row.split("|")[3]


def test_what_it_suggests_is_understood() -> None:
    [pcrs] = set(re.findall(r"such as `(sha256:[\d,]+)`", TEXT))
    assert configuration.pcrs(pcrs) == pcrs
    for tcti in re.findall(r"`((?:device|tabrmd|swtpm|mssim):[^`]+)`", TEXT):
        assert configuration.tcti(tcti) == tcti


def test_the_lines_that_it_quotes_are_those_of_the_code() -> None:
    folder = Path(configuration.__file__).parent
    code = re.sub(r'"\s+f?"', "", "".join(path.read_text() for path in sorted(folder.glob("*.py"))))
    quoted = [part for line in re.findall(r'"(the \w[^"…]+)[…"]', TEXT) for part in [line.strip()]]
    assert len(quoted) >= 4
    for line in quoted:
        assert line in code, line
