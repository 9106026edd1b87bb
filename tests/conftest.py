"""What every test leaves as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.simulators import fault_matrix

# Machines that run tests are busy: how long an example takes says nothing about it.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


_READABLE = 40


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names no test by what a key or certificate is made of: it is another one in each process that runs tests."""
    return argname if isinstance(val, bytes) and len(val) > _READABLE else None


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """A server in the test's own process sets the level for all that follow, and so does a call of its Logger API."""
    logger = logging.getLogger("spire")
    level = logger.level
    yield
    logger.setLevel(level)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    fault_matrix.print_tables(terminalreporter)
