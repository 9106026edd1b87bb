"""A server on PostgreSQL, as its operator has it: the database restarts, the server is killed, and life goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators import postgres
from tests.simulators.postgres import Cluster
from tests.simulators.spire import Agent, Server, command, eventually

NODE = "spiffe://example.org/node"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with postgres.started() as started:
        yield started


def on_postgres(server: Server, connection_string: str) -> None:
    lines = [
        'connection_string = "' + connection_string + '"' if "connection_string" in line else line
        for line in server.config.read_text().replace('"sqlite3"', '"postgres"').splitlines()
    ]
    server.config.write_text("\n".join(lines))


@pytest.fixture
def server(cluster: Cluster, tmp_path: Path) -> Iterator[Server]:
    keys = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{tmp_path}/keys.json" }} }}'
    made = Server(tmp_path / "server", key_manager=keys)
    on_postgres(made, cluster.database())
    made.start()
    yield made
    made.run.end()


def test_a_restart_of_the_database_is_survived(cluster: Cluster, server: Server, tmp_path: Path) -> None:
    server.create_entry(NODE, "spiffe://example.org/before")
    agent = Agent(tmp_path / "agent", server, server.join_token(NODE))
    agent.start()
    try:
        assert "spiffe://example.org/before" in agent.fetch()
        cluster.stop()
        refused = server.ask("entry", "count", check=False)
        assert refused.returncode == 1
        assert "code = Unavailable" in refused.stderr
        assert "cannot be reached" in refused.stderr
        # What the server read last is good for a second.
        eventually(lambda: server.ask("healthcheck", check=False).returncode == 1, "a server that is not healthy")
        assert "spiffe://example.org/before" in agent.fetch()
        token = agent.ask("api", "fetch", "jwt", "-audience", "signed-without-a-database")
        assert "spiffe://example.org/before" in token.stdout
        cluster.start()
        eventually(server.healthy, "a healthy server")
        server.create_entry(NODE, "spiffe://example.org/after")
        eventually(lambda: "spiffe://example.org/after" in agent.fetch(), "the new entry at the workload")
    finally:
        agent.run.end()


def test_a_killed_server_comes_back_at_once_with_all_it_had(server: Server) -> None:
    bundle = server.bundle()
    made = [server.create_entry(NODE, f"spiffe://example.org/{number}") for number in range(3)]
    server.run.end(signal.SIGKILL)
    server.start()
    assert server.bundle() == bundle
    assert {entry["id"] for entry in server.ask_json("entry", "show")["entries"]} == set(made)


def test_a_database_that_is_away_at_the_start_ends_it_in_one_line(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    on_postgres(server, f"host={tmp_path} dbname=spire user=spire password=topsecret")
    done = command(server.program, "run", "-config", str(server.config))
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if "level=error" in line]
    assert f"the database spire on {tmp_path}:5432 cannot be reached" in line
    assert "topsecret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
