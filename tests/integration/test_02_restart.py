"""Restarts and `kill -9` go on where the programs were."""

from __future__ import annotations

import signal

import pytest

from tests.integration.conftest import MakeAgent, MakeServer
from tests.integration.test_01_first_light import private_keys
from tests.simulators.softhsm import SoftHsm
from tests.simulators.spire import MEMORY, eventually

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_the_ca_keeps_its_keys(make_server: MakeServer, make_agent: MakeAgent, token: SoftHsm, number: int) -> None:
    server = make_server()
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE))
    agent.start()
    bundle, keys = server.bundle(), private_keys(token)
    minted = server.ask("jwt", "mint", "-spiffeID", WORKLOAD, "-audience", "billing").stdout.strip()
    entry = server.create_entry(NODE, WORKLOAD)
    status = server.run.end(number)
    assert status == (0 if number == signal.SIGTERM else -number)
    server.start()
    assert server.bundle() == bundle
    assert private_keys(token) == keys
    assert entry in [shown["id"] for shown in server.ask_json("entry", "show")["entries"]]
    agent.fetch()
    assert "SVID is valid" in agent.ask("api", "validate", "jwt", "-audience", "billing", "-svid", minted).stdout


def test_a_server_with_keys_in_memory_makes_new_ones_and_keeps_the_old_authority_trusted(
    make_server: MakeServer,
) -> None:
    server = make_server(key_manager=MEMORY)
    server.start()
    before = server.bundle()
    server.run.end()
    server.start()
    after = server.bundle()
    assert after.count("BEGIN CERTIFICATE") == 2
    assert before.strip() in after


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_an_agent_goes_on_without_its_spent_join_token(
    make_server: MakeServer, make_agent: MakeAgent, number: int
) -> None:
    server = make_server()
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE))
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    agent.fetch()
    agent.run.end(number)
    agent.start()
    assert WORKLOAD in agent.fetch()
    assert len(server.ask_json("agent", "list")["agents"]) == 1


def test_an_agent_serves_on_while_its_server_is_away(make_server: MakeServer, make_agent: MakeAgent) -> None:
    server = make_server()
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE), settings='experimental { sync_interval = "1s" }')
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    agent.fetch()
    server.run.end(signal.SIGKILL)
    assert WORKLOAD in agent.ask("api", "fetch", "x509").stdout
    server.start()
    server.create_entry(NODE, "spiffe://example.org/later")
    eventually(lambda: "spiffe://example.org/later" in agent.ask("api", "fetch", "x509").stdout, "the later entry")
