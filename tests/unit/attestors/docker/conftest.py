from __future__ import annotations

from collections.abc import Generator

import pytest

from attestors.docker import attestor
from tests.simulators.contained import DOCKERS, process_in
from tests.simulators.docker_daemon import Daemon, docker
from transport.peer import Process


@pytest.fixture
def daemon() -> Generator[Daemon, None, None]:
    with docker() as running:
        yield running


@pytest.fixture
def process() -> Generator[Process, None, None]:
    """One in a container of Docker's."""
    with process_in(DOCKERS) as running:
        yield running


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestor, "_WAITS", (0.0, 0.0, 0.0))
