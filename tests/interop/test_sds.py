"""A client of Envoy's published types (go-control-plane) takes secrets, their successors and a new authority."""

from __future__ import annotations

import itertools
import subprocess
from typing import Any

import pytest

from tests.interop.conftest import HERE, Pair, lines
from tests.simulators.once import go_program
from tests.simulators.spire import Agent, Server, eventually

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]
Started = tuple[Server, Agent]
ID = "spiffe://example.org/workload"


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> str:
    return go_program(tmp_path_factory, HERE / "sds")


def check_rotation(updates: list[dict[str, Any]], count: int) -> None:
    """Each update is a new SVID, and came while the one before it was still good."""
    assert len(updates) == count
    assert {update["id"] for update in updates} == {ID}
    assert len({update["serial"] for update in updates}) == count
    for before, after in itertools.pairwise(updates):
        assert after["seen"] / 1000 < before["not_after"], "a gap: the old SVID had expired"


def test_a_stream_of_all_that_was_asked_for(started: Started, client: str) -> None:
    _, agent = started
    updates = lines(client, "-socket", agent.socket, "watch", "-updates", "3", "default", "ROOTCA")
    check_rotation(updates, 3)
    assert [update["version"] for update in updates] == ["1", "2", "3"]
    assert all(update["names"] == ["ROOTCA", "default"] for update in updates)


def test_what_was_rejected_comes_again_when_it_has_changed(started: Started, client: str) -> None:
    _, agent = started
    rejected, accepted = lines(client, "-socket", agent.socket, "reject", "default")
    assert (rejected["event"], accepted["event"]) == ("rejected", "accepted")
    assert (rejected["version"], accepted["version"]) == ("1", "2")


def test_two_parties_keep_mutual_tls_over_rotations(started: Started, client: str) -> None:
    _, agent = started
    (result,) = lines(client, "-socket", agent.socket, "mtls", "-seconds", "30")
    assert result["handshakes"] > 20
    assert result["svids"] >= 3


def test_two_parties_keep_mutual_tls_while_the_authority_is_replaced(started: Started, client: str) -> None:
    server, agent = started
    command = [client, "-socket", agent.socket, "mtls", "-seconds", "45"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parties:
        old = server.ask_json("localauthority", "x509", "show")["active"]["authority_id"]
        new = server.ask_json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
        eventually(lambda: authorities(client, agent) == 2, "the new authority")
        server.ask("localauthority", "x509", "activate", "-authorityID", new)
        server.ask("localauthority", "x509", "taint", "-authorityID", old)
        eventually(lambda: described(client, agent)["authority"] == new, "a certificate by the new authority")
        output, _ = parties.communicate(timeout=120)
    assert parties.returncode == 0, output
    assert '"authorities":2' in output
    server.ask("localauthority", "x509", "revoke", "-authorityID", old)
    eventually(lambda: authorities(client, agent) == 1, "the old authority to be gone")


def described(client: str, agent: Agent) -> dict[str, Any]:
    (update,) = lines(client, "-socket", agent.socket, "watch", "default", "ROOTCA")
    return update


def authorities(client: str, agent: Agent) -> int:
    return int(described(client, agent)["authorities"])


def test_a_stream_of_what_has_changed(pair: Pair, started: Started, client: str) -> None:
    """SPIRE's agent has none, and says so."""
    _, agent = started
    command = (client, "-socket", agent.socket, "delta", "-updates", "3", "default", "ROOTCA", "not-there")
    if pair.name == "other-agent":
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Unimplemented" in done.stdout
        return
    first, *others = lines(*command)
    assert first["came"] == ["ROOTCA", "default"]
    assert first["removed"] == ["not-there"]
    assert [(update["came"], update["removed"]) for update in others] == [(["default"], None)] * 2
    check_rotation([first, *others], 3)
