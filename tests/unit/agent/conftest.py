from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from operations import metrics
from operations.metric_rules import Ruled
from operations.prometheus import Prometheus
from operations.sections import Telemetry
from tests.simulators.fake_server import FakeServer
from tests.simulators.in_process_agent import Home, RunningAgent


@pytest.fixture
async def server() -> AsyncGenerator[FakeServer, None]:
    async with FakeServer().running() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, server: FakeServer) -> Home:
    return Home(tmp_path, server)


@pytest.fixture
async def agent(home: Home) -> AsyncGenerator[RunningAgent, None]:
    home.server.add_entry("a")
    async with home.running() as running:
        yield running


@pytest.fixture
def sink() -> Iterator[Prometheus]:
    made = Prometheus()
    metrics.use([Ruled(made, Telemetry(), service="spire_agent", trust_domain="example.org", host="")])
    yield made
    metrics.use(())
