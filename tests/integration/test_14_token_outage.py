"""The server's token goes away under load, and its module crashes: agents and workloads are served on."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.integration.conftest import MakeAgent, MakeServer, pkcs11
from tests.simulators.faulty_hsm import FaultyHsm
from tests.simulators.softhsm import SoftHsm
from tests.simulators.spire import Agent, Server, eventually, free_port

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
RECOVERY = 25.0
"""Seconds from the token's return to the next signature."""
TWO_LOOKS = 150.0
"""Seconds in which the health checks look at least twice."""


@pytest.fixture
def faults(token: SoftHsm) -> Iterator[FaultyHsm]:
    with FaultyHsm.create(token.folder / "faults").installed() as installed:
        yield installed


@pytest.fixture
def server(make_server: MakeServer, token: SoftHsm, faults: FaultyHsm, tmp_path: Path) -> Server:
    return make_server(key_manager=pkcs11(token, tmp_path / "keys.json", module_path=faults.module_path))


@pytest.fixture
def agent(server: Server, make_agent: MakeAgent) -> Agent:
    port = free_port()
    server.blocks = (
        f'health_checks {{\n  listener_enabled = true\n  bind_address = "127.0.0.1"\n  bind_port = "{port}"\n}}'
    )
    server.configure()
    server.start()
    made = make_agent(server, token_value=server.join_token(NODE))
    made.start()
    return made


def ready(server: Server) -> tuple[int, Any]:
    port = server.blocks.rsplit('bind_port = "', 1)[1].split('"')[0]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=30) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def mints(server: Server) -> bool:
    return server.ask("x509", "mint", "-spiffeID", WORKLOAD, check=False).returncode == 0


@pytest.mark.timeout(400)
def test_the_token_goes_away_and_comes_back(server: Server, agent: Agent, token: SoftHsm) -> None:
    server.create_entry(NODE, WORKLOAD)
    assert WORKLOAD in agent.fetch()
    pid = server.run.process and server.run.process.pid
    eventually(lambda: ready(server)[0] == 200, "a ready server")

    away = token.folder / "away"
    shutil.move(token.tokens, away)
    for _ in range(4):
        began = time.monotonic()
        refused = server.ask("x509", "mint", "-spiffeID", WORKLOAD, check=False)
        assert refused.returncode != 0
        assert "Unavailable" in refused.stderr
        assert time.monotonic() - began < 30

    def said() -> bool:
        assert WORKLOAD in agent.fetch()
        return "sign_x509_svid_err" in ready(server)[1]["server.ca"]

    eventually(said, "health that tells of the token", TWO_LOOKS)
    assert "the token with token_label 'spire'" in ready(server)[1]["server.ca"]["sign_x509_svid_err"]
    assert server.run.output().count("The token is away") == 1

    shutil.move(away, token.tokens)
    began = time.monotonic()
    eventually(lambda: mints(server), "a signature")
    assert time.monotonic() - began < RECOVERY
    server.create_entry(NODE, f"{WORKLOAD}/2")
    eventually(lambda: f"{WORKLOAD}/2" in agent.fetch(), "the new workload's SVID")
    assert server.run.process is not None
    assert server.run.process.pid == pid


def test_a_crash_in_the_middle_of_a_batch_is_not_noticed(server: Server, agent: Agent, faults: FaultyHsm) -> None:
    names = [f"{WORKLOAD}/{number}" for number in range(30)]
    crash = faults.plant("C_Sign", "crash", "segv", skip=10, times=1)
    for name in names:
        server.create_entry(NODE, name)

    def all_there() -> bool:
        fetched = agent.fetch()
        return all(name in fetched for name in names)

    eventually(all_there, "an SVID for each")
    assert crash.hits > 10
    assert server.run.output().count("A PKCS#11 worker is given up") == 1
    assert agent.run.output().count("Unavailable") <= 1
    assert mints(server)
