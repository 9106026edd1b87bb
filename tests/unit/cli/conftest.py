"""Commands run as a process would run them, against a server that answers from a table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.cli.main import COMMANDS as AGENT_COMMANDS
from generated.grpc.health.v1 import health_pb2
from generated.spiffe.workload import workload_pb2
from generated.spire.api.agent.debug.v1 import debug_pb2 as agent_debug_pb2
from generated.spire.api.agent.logger.v1 import logger_pb2 as agent_logger_pb2
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.server.debug.v1 import debug_pb2
from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.server.localauthority.v1 import localauthority_pb2
from generated.spire.api.server.logger.v1 import logger_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.server.trustdomain.v1 import trustdomain_pb2
from generated.spire.keys.v1 import keys_pb2
from operations.flags import Program
from operations.version import VERSION
from server.cli.main import COMMANDS as SERVER_COMMANDS
from server.cli.main import WIT_COMMANDS
from tests.simulators.canned import Canned, Run, command

SERVICES = (
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    agent_pb2.DESCRIPTOR.services_by_name["Agent"],
    bundle_pb2.DESCRIPTOR.services_by_name["Bundle"],
    entry_pb2.DESCRIPTOR.services_by_name["Entry"],
    localauthority_pb2.DESCRIPTOR.services_by_name["LocalAuthority"],
    svid_pb2.DESCRIPTOR.services_by_name["SVID"],
    trustdomain_pb2.DESCRIPTOR.services_by_name["TrustDomain"],
    debug_pb2.DESCRIPTOR.services_by_name["Debug"],
    logger_pb2.DESCRIPTOR.services_by_name["Logger"],
    keys_pb2.DESCRIPTOR.services_by_name["Keys"],
    agent_debug_pb2.DESCRIPTOR.services_by_name["Debug"],
    agent_logger_pb2.DESCRIPTOR.services_by_name["Logger"],
    workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"],
)


@pytest.fixture
async def canned(tmp_path: Path) -> AsyncIterator[Canned]:
    async with Canned.serve(tmp_path / "api.sock", SERVICES) as server:
        yield server


@pytest.fixture
def spire_server(canned: Canned, capsys: pytest.CaptureFixture[str]) -> Run:
    return command(Program("spire-server", VERSION, (*SERVER_COMMANDS, *WIT_COMMANDS)), canned, capsys)


@pytest.fixture
def spire_agent(canned: Canned, capsys: pytest.CaptureFixture[str]) -> Run:
    return command(Program("spire-agent", VERSION, AGENT_COMMANDS), canned, capsys)
