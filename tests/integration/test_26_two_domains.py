"""Two trust domains that federate: their workloads speak mutual TLS, also while both domains' roots are replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulators.spire import Program
from tests.simulators.two_domains import Traffic, federated, rotate_root


@pytest.mark.timeout(600)
def test_workloads_of_both_speak_mutual_tls_while_both_roots_are_replaced(
    tmp_path: Path, programs: list[Program]
) -> None:
    one, other = federated(tmp_path, programs)
    token = one.token()
    assert one.workload in other.agent.ask("api", "validate", "jwt", "-audience", "billing", "-svid", token).stdout
    traffic = Traffic((one, other))
    traffic.once()
    with traffic.flowing():
        rotate_root(one, other)
        rotate_root(other, one, polled=True)
    assert traffic.handshakes > 10
    assert len(traffic.leaves) >= 4, "each workload had an SVID of its old root and one of its new"
