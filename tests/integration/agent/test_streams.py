"""A thousand streaming workloads: each has what changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulators import spire
from tests.simulators.crowd import gathered

NODE = "spiffe://example.org/node"


@pytest.mark.parametrize(("processes", "each"), [(1000, 1), (10, 100)], ids=["processes", "connections"])
def test_every_one_of_a_thousand_streams_has_the_update(
    tmp_path: Path, programs: list[spire.Program], processes: int, each: int
) -> None:
    server = spire.Server(tmp_path / "server")
    programs.append(server.run)
    server.start()
    agent = spire.Agent(tmp_path / "agent", server, token=server.join_token(NODE))
    programs.append(agent.run)
    agent.start()
    server.create_entry(NODE, "spiffe://example.org/first")
    agent.fetch()
    with gathered(agent.socket, processes, each) as crowd:
        crowd.until(1)
        entry = server.create_entry(NODE, "spiffe://example.org/second")
        assert len({arrival.size for arrival in crowd.until(2).values()}) == 1, "all have the same"
        server.ask("entry", "delete", "-entryID", entry)
        crowd.until(1)
