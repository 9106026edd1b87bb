"""A server whose keys are in a Vault, and whose authority a Vault signs: from the start over an outage to a restart."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators import openbao
from tests.simulators.openbao import Bao
from tests.simulators.spire import Server, command, eventually


@pytest.fixture
def bao() -> Bao:
    return openbao.shared()


@pytest.fixture
def server(bao: Bao, tmp_path: Path) -> Iterator[Server]:
    """Of its secrets only one is in the configuration, and that in a file of its own mode; the other in the
    environment."""
    login = f'vault_addr = "{bao.url}"\n ca_cert_path = "{bao.ca}"'
    role = "\n".join(f'{name} = "{value}"' for name, value in bao.approle(token_ttl="10m").items())
    made = Server(
        tmp_path,
        key_manager=f"""
KeyManager "hashicorp_vault" {{ plugin_data {{
  {login}
  key_identifier_file = "{tmp_path}/server-id"
  token_auth {{ }}
}} }}
UpstreamAuthority "vault" {{ plugin_data {{
  {login}
  approle_auth {{
    {role}
  }}
}} }}
""",
        environment={"VAULT_TOKEN": bao.token()},
    )
    yield made
    if made.run.process is not None:
        made.run.end()


def test_a_server_on_a_vault(server: Server, bao: Bao, tmp_path: Path) -> None:
    assert (
        "valid"
        in command(server.program, "validate", "-config", str(server.config), environment=server.environment).stdout
    )
    server.start()
    token = server.environment["VAULT_TOKEN"]
    minted = server.ask("x509", "mint", "-spiffeID", "spiffe://example.org/w")
    # The leaf, the server's own certificate, and Vault's root.
    assert minted.stdout.count("BEGIN CERTIFICATE") == 3
    root = bao.ask("GET", "pki/cert/ca")["data"]["certificate"].strip()
    assert root in minted.stdout
    assert server.ask("jwt", "mint", "-spiffeID", "spiffe://example.org/w", "-audience", "a").stdout.count(".") >= 2
    server_id = (tmp_path / "server-id").read_text()
    assert str(uuid.UUID(server_id)) == server_id
    before = eventually(lambda: bao.transit_keys(server_id), "keys in the engine")
    assert {re.sub("^.{74}", "", name) for name in before} >= {"x509-CA-A", "JWT-Signer-A"}

    # The same keys, and so the same authority, after a restart.
    assert server.run.end() == 0
    server.start()
    assert sorted(bao.transit_keys(server_id)) == sorted(before)
    assert server.ask("x509", "mint", "-spiffeID", "spiffe://example.org/w").returncode == 0
    log = server.run.output()
    assert token not in log
    assert "Traceback" not in log
