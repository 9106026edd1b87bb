"""docs/parity.md tells the truth: it is what the code gives, and each row that does not work says why."""

from __future__ import annotations

import pytest

from agent.catalog import BUILTINS as AGENT_BUILTINS
from operations.errors import ConfigurationError
from operations.hcl import parse
from plugins import blocks, catalog
from server.catalog import BUILTINS as SERVER_BUILTINS
from tests.parity.report import reason_of, report
from tests.parity.rows import ROOT, Row, Standing, plugins, reasons, rows

ROWS = [row for found in rows().values() for row in found]


def test_the_document_is_what_the_code_gives() -> None:
    """Where this fails, `make generate` makes it anew."""
    assert (ROOT / "docs" / "parity.md").read_text() == report()


def test_each_reason_is_needed() -> None:
    why = reasons()
    used = {reason_of(row, why) for row in ROWS if row.standing is not Standing.WORKS}
    assert used == set(why.values())


@pytest.mark.parametrize(
    "row", [row for row in plugins() if row.missing == "the plugin"], ids=lambda row: row.name.replace(" ", "-")
)
def test_a_plugin_that_is_not_built_in_is_refused_by_name(row: Row) -> None:
    program, kind, name = row.name.split(" ")
    declared = blocks.read(parse(f'{kind} "{name}" {{ plugin_data {{}} }}', "spire.conf"))
    types, builtins = (catalog.SERVER, SERVER_BUILTINS) if program == "server" else (catalog.AGENT, AGENT_BUILTINS)
    with pytest.raises(ConfigurationError, match=f'spire.conf:1: .*"{name}"'):
        catalog.check(declared, types, builtins, "spire.conf")
