"""Federation of a domain of ours with another's (SPIRE_SERVER_BIN, SPIRE_AGENT_BIN), each once in each part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators.spire import Program
from tests.simulators.two_domains import Programs, Traffic, federated, rotate_root

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]

OTHERS = os.environ.get("SPIRE_SERVER_BIN"), os.environ.get("SPIRE_AGENT_BIN")


def pairings() -> Iterator[tuple[str, Programs, Programs]]:
    """By name: the domain that serves by https_spiffe, and the one by https_web."""
    ours = Programs()
    server, agent = OTHERS
    if server and agent:
        theirs = Programs(server, agent)
        yield "ours-spiffe-theirs-web", ours, theirs
        yield "theirs-spiffe-ours-web", theirs, ours
    else:
        yield "ours", ours, ours


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    running: list[Program] = []
    yield running
    for program in reversed(running):
        if program.process is not None:
            program.end()


@pytest.mark.parametrize("pairing", list(pairings()), ids=lambda pairing: pairing[0])
def test_mutual_tls_while_both_roots_are_replaced(
    tmp_path: Path, programs: list[Program], pairing: tuple[str, Programs, Programs]
) -> None:
    _, first, second = pairing
    one, other = federated(tmp_path, programs, first, second)
    for mine, theirs in ((one, other), (other, one)):
        valid = theirs.agent.ask("api", "validate", "jwt", "-audience", "billing", "-svid", mine.token())
        assert mine.workload in valid.stdout
    traffic = Traffic((one, other))
    traffic.once()
    with traffic.flowing():
        rotate_root(one, other)
        rotate_root(other, one)
    assert len(traffic.leaves) >= 4
