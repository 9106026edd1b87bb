"""One Sigstore for all, one repository for each test, over real sockets on this host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.simulators.registry import Registry, WebServer
from tests.simulators.signed_images import House
from tests.simulators.sigstore import Sigstore


@pytest.fixture(scope="session")
def sigstore() -> Sigstore:
    return Sigstore()


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
async def house(sigstore: Sigstore, server: WebServer, tmp_path: Path) -> AsyncIterator[House]:
    registry = Registry()
    server.routes.append(registry.route)
    house = House(sigstore, registry, server, sigstore.environment(tmp_path / "trust"), [])
    yield house
    await asyncio.gather(*(verifier.close() for verifier in house.verifiers))
