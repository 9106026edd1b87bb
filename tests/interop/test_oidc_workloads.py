"""The OIDC attestor's plugin below another's agent; needs SPIRE_AGENT_BIN."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.simulators import spire
from tests.simulators.issuer import issuing
from tests.simulators.oidc_workloads import jobs_get_their_identity

PROGRAMS = {"ours": spire.AGENT} | ({"other": other} if (other := os.environ.get("SPIRE_AGENT_BIN")) else {})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_agent_loads_the_plugin(tmp_path: Path, program: str) -> None:
    server = spire.Server(tmp_path / "server", spire.MEMORY)
    server.start()
    try:
        with issuing(tmp_path) as issuer:
            jobs_get_their_identity(server, tmp_path, issuer, external=True, program=PROGRAMS[program])
    finally:
        server.run.end()
