"""Workloads are told by the tokens of an OIDC issuer, by the agent itself or by the plugin for agents of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import MakeServer
from tests.simulators import spire
from tests.simulators.issuer import issuing
from tests.simulators.oidc_workloads import jobs_get_their_identity


@pytest.mark.timeout(300)
@pytest.mark.parametrize("external", [False, True], ids=["built in", "plugin"])
def test_a_job_gets_its_identity_by_its_token(tmp_path: Path, make_server: MakeServer, *, external: bool) -> None:
    server = make_server(key_manager=spire.MEMORY)
    server.start()
    with issuing(tmp_path) as issuer:
        jobs_get_their_identity(server, tmp_path, issuer, external=external)
