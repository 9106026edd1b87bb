"""Operators rotate authorities whose keys are in a token, while an agent and its workload go on."""

from __future__ import annotations

import json
import random
import signal
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import jwt
import pytest

from identity import bundles, tainting, x509svid
from identity.spiffeid import TrustDomain
from tests.integration.conftest import MakeAgent, MakeServer
from tests.simulators.spire import Agent, Server, eventually

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
ROUNDS = 6


def authority(server: Server, kind: str, state: str) -> str:
    found: str = server.ask_json("localauthority", kind, "show").get(state, {}).get("authority_id", "")
    return found


def rotate(server: Server, kind: str) -> str:
    """Prepare and activate; returns the old authority's id."""
    prepared = server.ask_json("localauthority", kind, "prepare")["prepared_authority"]["authority_id"]
    server.ask("localauthority", kind, "activate", "-authorityID", prepared)
    assert authority(server, kind, "active") == prepared
    return authority(server, kind, "old")


def signed_by(agent: Agent, key_id: str) -> bool:
    """Whether the workload's SVID is signed by that authority."""
    folder = agent.folder / "svid"
    folder.mkdir(exist_ok=True)
    done = agent.ask("api", "fetch", "x509", "-write", str(folder), check=False)
    if done.returncode != 0:
        return False
    [leaf, *_] = bundles.from_pem((folder / "svid.0.pem").read_text())
    return tainting.authority_key_id(leaf) == key_id


def serial(server: Server) -> str:
    """That of the agent's own SVID."""
    [agent] = server.ask_json("agent", "list")["agents"]
    return str(agent["x509svid_serial_number"])


def test_a_taint_renews_workload_agent_and_server(make_server: MakeServer, make_agent: MakeAgent) -> None:
    server = make_server()
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE), settings='experimental { sync_interval = "1s" }')
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    first = authority(server, "x509", "active")
    eventually(partial(signed_by, agent, first), "the workload's SVID")
    assert rotate(server, "x509") == first
    assert signed_by(agent, first), "an activation alone renews nothing"

    before = serial(server)
    server.ask("localauthority", "x509", "taint", "-authorityID", first)
    second = authority(server, "x509", "active")
    eventually(partial(signed_by, agent, second), "a renewed SVID of the workload")
    eventually(lambda: serial(server) != before, "a renewed SVID of the agent")
    eventually(lambda: "Server SVID signed using a tainted authority" in server.run.output(), "the server's own")
    server.ask("localauthority", "x509", "revoke", "-authorityID", first)
    assert len(bundles.from_pem(server.bundle())) == 1

    # Both go on with what is left, and so do their restarts.
    server.create_entry(NODE, f"{WORKLOAD}2")
    eventually(lambda: f"{WORKLOAD}2" in agent.fetch(), "an entry after the revocation")
    server.run.end()
    server.start()
    assert authority(server, "x509", "active") == second
    agent.run.end()
    agent.start()
    eventually(partial(signed_by, agent, second), "the workload's SVID after the restarts")


def test_a_tainted_jwt_authoritys_tokens_are_replaced(make_server: MakeServer, make_agent: MakeAgent) -> None:
    server = make_server()
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE), settings='experimental { sync_interval = "1s" }')
    agent.start()
    server.create_entry(NODE, WORKLOAD)

    def key_id() -> str:
        done = agent.ask("api", "fetch", "jwt", "-audience", "a", "-output", "json", check=False)
        if done.returncode != 0:
            return ""
        [svids, _] = json.loads(done.stdout)
        return str(jwt.get_unverified_header(svids["svids"][0]["svid"])["kid"])

    first = authority(server, "jwt", "active")
    eventually(lambda: key_id() == first, "a JWT-SVID")
    assert rotate(server, "jwt") == first
    second = authority(server, "jwt", "active")
    assert key_id() == first, "an activation alone drops nothing"
    server.ask("localauthority", "jwt", "taint", "-authorityID", first)
    eventually(lambda: key_id() == second, "a new JWT-SVID")
    server.ask("localauthority", "jwt", "revoke", "-authorityID", first)


def rotate_until_it_fails(server: Server, chance: random.Random, acknowledged: list[str]) -> None:
    """Prepare and activate both kinds in turn; keep the ids of the authorities that were said to be active."""
    while True:
        kind = chance.choice(("x509", "jwt"))
        prepared = server.ask("localauthority", kind, "prepare", "-output", "json", check=False)
        if prepared.returncode != 0:
            return
        authority_id = json.loads(prepared.stdout)["prepared_authority"]["authority_id"]
        done = server.ask("localauthority", kind, "activate", "-authorityID", authority_id, check=False)
        if done.returncode != 0:
            return
        acknowledged.append(authority_id)


@pytest.mark.timeout(600)
def test_a_kill_between_any_two_steps_costs_nothing(make_server: MakeServer, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    keys = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{tmp_path}/keys.json" }} }}'
    server = make_server(key_manager=keys)
    server.start()
    for _ in range(ROUNDS):
        acknowledged: list[str] = []
        operator = threading.Thread(
            target=rotate_until_it_fails, args=(server, random.Random(chance.random()), acknowledged)
        )
        operator.start()
        eventually(partial(list[str], acknowledged), "a rotation")
        threading.Event().wait(chance.random())
        server.run.end(signal.SIGKILL)
        operator.join()
        server.start()
        # What was acknowledged last signs, unless the activation after it was saved and not acknowledged any more.
        states = [authority(server, kind, state) for kind in ("x509", "jwt") for state in ("active", "old")]
        assert acknowledged[-1] in states
        folder = tmp_path / "minted"
        folder.mkdir(exist_ok=True)
        server.ask("x509", "mint", "-spiffeID", WORKLOAD, "-write", str(folder))
        chain = bundles.from_pem((folder / "svid.pem").read_text())
        roots = {TrustDomain("example.org"): bundles.from_pem(server.bundle())}
        assert str(x509svid.verify(chain, roots, datetime.now(UTC))) == WORKLOAD
