"""What every test leaves as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.simulators import fault_matrix


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """A server in the test's own process sets the level for all that follow, and so does a call of its Logger API."""
    logger = logging.getLogger("spire")
    level = logger.level
    yield
    logger.setLevel(level)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    fault_matrix.print_tables(terminalreporter)
