"""`kill -9` at any moment costs nothing that was acknowledged."""

from __future__ import annotations

import random
import signal
import threading
from functools import partial

import pytest

from tests.integration.conftest import MakeAgent, MakeServer
from tests.simulators.spire import Server, eventually

NODE = "spiffe://example.org/node"
ROUNDS = 6


def create_until_it_fails(server: Server, first: int, acknowledged: list[str]) -> None:
    """Create entries one after another; keep the IDs of those that the server said it made."""
    for number in range(first, first + 1000):
        made = server.ask(
            *("entry", "create", "-parentID", NODE, "-spiffeID", f"spiffe://example.org/{number}"),
            *("-selector", f"unix:uid:{number}", "-entryID", f"entry-{number}"),
            check=False,
        )
        if made.returncode != 0:
            return
        acknowledged.append(f"entry-{number}")


def any_since(acknowledged: list[str], before: int) -> bool:
    return len(acknowledged) > before


@pytest.mark.timeout(600)
def test_acknowledged_entries_and_keys_survive(make_server: MakeServer) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    server = make_server()
    server.start()
    bundle = server.bundle()
    acknowledged: list[str] = []
    for number in range(ROUNDS):
        writer = threading.Thread(target=create_until_it_fails, args=(server, number * 1000, acknowledged))
        writer.start()
        eventually(partial(any_since, acknowledged, len(acknowledged)), "an entry")
        threading.Event().wait(chance.random())
        server.run.end(signal.SIGKILL)
        writer.join()
        server.start()
        assert server.bundle() == bundle
    present = {entry["id"] for entry in server.ask_json("entry", "show")["entries"]}
    assert set(acknowledged) <= present
    assert len(present) <= len(acknowledged) + ROUNDS, "at most the one under way at each kill"


@pytest.mark.timeout(600)
def test_a_killed_agent_serves_again(make_server: MakeServer, make_agent: MakeAgent) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    # An agent's SVID that lives for seconds is renewed all the time: kills meet renewals.
    server = make_server(settings='agent_ttl = "20s"\n  default_x509_svid_ttl = "10s"')
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE), settings='experimental { sync_interval = "1s" }')
    agent.start()
    server.create_entry(NODE, "spiffe://example.org/workload")
    for _ in range(ROUNDS):
        assert "spiffe://example.org/workload" in agent.fetch()
        threading.Event().wait(chance.random() * 8)
        agent.run.end(signal.SIGKILL)
        agent.start()
    assert "spiffe://example.org/workload" in agent.fetch()
    assert len(server.ask_json("agent", "list")["agents"]) == 1
