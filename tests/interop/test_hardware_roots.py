"""Chains below a root in a token, of each kind of key and under name constraints, are what the clients verify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.interop.conftest import lines
from tests.simulators import ceremony, softhsm, spire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

KINDS = ("EC:secp384r1", "EC:edwards25519", "rsa:3072")


@pytest.fixture(params=KINDS)
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[spire.Agent]:
    """An agent with one entry for this user's processes; SVIDs live 20 s."""
    token = softhsm.SoftHsm.create(tmp_path / "token")
    certificate = ceremony.in_token(token, tmp_path, {"EC:secp384r1": request.param})
    plugin = f"""UpstreamAuthority "pkcs11" {{ plugin_data {{
      module_path = "{softhsm.MODULE}"
      token_label = "{token.label}"
      pin_file = "{token.pin_file}"
      key_label = "root-2026"
      cert_file_path = "{certificate}"
      path_length = 0
      permitted_uris = ["example.org"]
    }} }}"""
    server = spire.Server(
        tmp_path / "server",
        key_manager=f"{spire.MEMORY}\n  {plugin}",
        environment={"SOFTHSM2_CONF": str(token.configuration)},
    )
    try:
        server.start()
        parent = "spiffe://example.org/node"
        made = spire.Agent(tmp_path / "agent", server, token=server.join_token(parent))
        server.create_entry(parent, "spiffe://example.org/workload", "-x509SVIDTTL", "20")
        try:
            made.start()
            made.fetch()
            yield made
        finally:
            made.run.end()
    finally:
        server.run.end()


def test_go_spiffe_verifies_them(agent: spire.Agent, go_workload: str) -> None:
    (result,) = lines(go_workload, "-socket", agent.address, "mtls", "-seconds", "5")
    assert result["id"] == "spiffe://example.org/workload"
    assert result["handshakes"] > 2


def test_java_spiffe_verifies_them(agent: spire.Agent, java_workload: Sequence[str]) -> None:
    (result,) = lines(*java_workload, f"unix:{agent.socket}", "mtls", "5")
    assert result["id"] == "spiffe://example.org/workload"
    assert result["handshakes"] > 2
