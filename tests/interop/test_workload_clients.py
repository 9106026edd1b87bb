"""The published clients fetch, watch and rotate against the agent, in every pairing of halves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from tests.interop.conftest import lines, python_client
from tests.simulators.spire import Agent, Server

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]
Started = tuple[Server, Agent]
ID = "spiffe://example.org/workload"


def check_rotation(updates: list[dict[str, Any]], count: int) -> None:
    """Each update is a new SVID, and came while the one before it was still good."""
    assert len(updates) == count
    assert {update["id"] for update in updates} == {ID}
    assert len({update["serial"] for update in updates}) == count
    for before, after in itertools.pairwise(updates):
        assert after["seen"] / 1000 < before["not_after"], "a gap: the old SVID had expired"


def test_go_spiffe_watches_rotations(started: Started, go_workload: str) -> None:
    _, agent = started
    check_rotation(lines(go_workload, "-socket", agent.address, "watch", "-updates", "4"), 4)


def test_go_spiffe_keeps_mutual_tls_over_rotations(started: Started, go_workload: str) -> None:
    _, agent = started
    (result,) = lines(go_workload, "-socket", agent.address, "mtls", "-seconds", "30")
    assert result["id"] == ID
    assert result["handshakes"] > 20
    assert result["svids"] >= 3


def test_go_spiffe_jwt_svids(started: Started, go_workload: str) -> None:
    _, agent = started
    (result,) = lines(go_workload, "-socket", agent.address, "jwt", "-audience", "billing")
    assert result["id"] == ID
    assert result["audience"] == ["billing"]
    assert "InvalidArgument" in result["wrong_audience"]


def test_go_spiffe_bundles(started: Started, go_workload: str) -> None:
    _, agent = started
    (bundle,) = lines(go_workload, "-socket", agent.address, "bundles")
    assert bundle["trust_domain"] == "example.org"
    assert bundle["x509_authorities"] == 1
    assert len(bundle["jwt_keys"]) == 1


def test_python_spiffe_watches_rotations(started: Started) -> None:
    _, agent = started
    check_rotation(python_client(agent.address, "watch", "3"), 3)


def test_python_spiffe_jwt_svids(started: Started) -> None:
    _, agent = started
    (result,) = python_client(agent.address, "jwt", "billing")
    assert result["id"] == ID
    assert result["audience"] == ["billing"]


def test_rust_spiffe_watches_rotations(started: Started, rust_workload: str) -> None:
    _, agent = started
    check_rotation(lines(rust_workload, agent.address, "watch", "3"), 3)


def test_java_spiffe_watches_rotations(started: Started, java_workload: Sequence[str]) -> None:
    _, agent = started
    check_rotation(lines(*java_workload, f"unix:{agent.socket}", "watch", "3"), 3)


def test_rust_spiffe_jwt_svids(started: Started, rust_workload: str) -> None:
    _, agent = started
    (result,) = lines(rust_workload, agent.address, "jwt", "billing")
    assert (result["id"], result["audience"]) == (ID, ["billing"])


def test_java_spiffe_keeps_mutual_tls_over_rotations(started: Started, java_workload: Sequence[str]) -> None:
    _, agent = started
    (result,) = lines(*java_workload, f"unix:{agent.socket}", "mtls", "30")
    assert result["id"] == ID
    assert result["handshakes"] > 20
    assert result["svids"] >= 3


def test_java_spiffe_jwt_svids(started: Started, java_workload: Sequence[str]) -> None:
    _, agent = started
    (result,) = lines(*java_workload, f"unix:{agent.socket}", "jwt", "billing")
    assert (result["id"], result["audience"]) == (ID, ["billing"])
