"""A client on the published spire-api-sdk meets on our server, step for step, what it meets on SPIRE's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators import spire
from tests.simulators.once import go_program

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]
HERE = Path(__file__).parent / "apisdk"
PROGRAMS = {"ours": spire.SERVER} | ({"other": other} if (other := os.environ.get("SPIRE_SERVER_BIN")) else {})


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> str:
    return go_program(tmp_path_factory, HERE)


@pytest.fixture(params=list(PROGRAMS.values()), ids=list(PROGRAMS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[spire.Server]:
    made = spire.Server(tmp_path / "server", program=str(request.param))
    try:
        made.start()
        yield made
    finally:
        if made.run.process is not None:
            made.run.end()


def test_each_step_ends_as_with_spire(server: spire.Server, client: str) -> None:
    done = spire.command(client, "-socket", server.socket, "-address", f"127.0.0.1:{server.port}", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = (HERE / "steps.txt").read_text().splitlines()
    assert [line.rstrip() for line in done.stdout.splitlines()] == wanted
