"""An echo server on a Unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.simulators.echo import EchoService
from tests.simulators.ports import free_port
from transport.client import Channel
from transport.server import Server


@pytest.fixture
def service() -> EchoService:
    return EchoService()


@pytest.fixture
async def socket_path(service: EchoService, tmp_path: Path) -> AsyncIterator[str]:
    """Where the echo service listens."""
    server = Server(service.router())
    path = str(tmp_path / "echo.sock")
    await server.listen_unix(path, mode=0o700)
    yield path
    await server.drain(5)


@pytest.fixture
async def channel(socket_path: str) -> AsyncIterator[Channel]:
    async with Channel.unix(socket_path) as opened:
        yield opened


@pytest.fixture
def unused_port() -> int:
    """A TCP port that nobody listens on."""
    return free_port()
