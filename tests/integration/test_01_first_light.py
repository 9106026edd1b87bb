"""A workload gets an X509-SVID whose chain ends in a key that is in the token and cannot leave it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.conftest import MakeAgent, MakeServer, pkcs11
from tests.simulators.softhsm import SoftHsm
from tests.simulators.spire import command

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"


def private_keys(token: SoftHsm) -> list[str]:
    """pkcs11-tool's paragraphs about the token's private keys."""
    listing = token.tool("--list-objects", "--type", "privkey")
    return [part for part in re.split(r"(?=Private Key Object)", listing) if part.startswith("Private Key Object")]


def verify(folder: Path) -> None:
    done = command("openssl", "verify", "-CAfile", str(folder / "bundle.0.pem"), str(folder / "svid.0.pem"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_workload_gets_an_svid_signed_in_the_token(
    make_server: MakeServer, make_agent: MakeAgent, token: SoftHsm, tmp_path: Path
) -> None:
    server = make_server()
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE))
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    assert WORKLOAD in agent.fetch()
    written = tmp_path / "written"
    written.mkdir()
    agent.ask("api", "fetch", "x509", "-write", str(written))
    verify(written)
    assert (written / "svid.0.key").stat().st_mode & 0o077 == 0


def test_private_keys_are_in_the_token_and_not_extractable(make_server: MakeServer, token: SoftHsm) -> None:
    server = make_server()
    server.start()
    keys = private_keys(token)
    assert len(keys) == 2, "the X.509 CA's and the JWT authority's"
    for key in keys:
        access = re.search(r"Access:\s*(.*)", key)
        usage = re.search(r"Usage:\s*(.*)", key)
        assert access is not None
        assert usage is not None
        assert {"sensitive", "always sensitive", "never extractable", "local"} <= set(access[1].split(", "))
        assert usage[1].strip() == "sign"
    assert b"PRIVATE KEY" not in b"".join(path.read_bytes() for path in server.folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("ca_key_type", "jwt_key_type"), [("ec-p384", "rsa-2048"), ("rsa-2048", "ec-p384"), ("rsa-4096", "rsa-4096")]
)
def test_every_key_type_signs_in_the_token(
    make_server: MakeServer, make_agent: MakeAgent, tmp_path: Path, ca_key_type: str, jwt_key_type: str
) -> None:
    server = make_server(settings=f'ca_key_type = "{ca_key_type}"\n  jwt_key_type = "{jwt_key_type}"')
    server.start()
    written = tmp_path / "minted"
    written.mkdir()
    server.ask("x509", "mint", "-spiffeID", WORKLOAD, "-write", str(written))
    done = command("openssl", "verify", "-CAfile", str(written / "bundle.pem"), str(written / "svid.pem"))
    assert done.returncode == 0, done.stdout + done.stderr
    agent = make_agent(server, token_value=server.join_token(NODE))
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    agent.fetch()
    minted = server.ask("jwt", "mint", "-spiffeID", WORKLOAD, "-audience", "billing").stdout.strip()
    assert "SVID is valid" in agent.ask("api", "validate", "jwt", "-audience", "billing", "-svid", minted).stdout


def test_an_agent_keeps_its_own_key_in_a_token(
    make_server: MakeServer, make_agent: MakeAgent, token: SoftHsm, tmp_path: Path
) -> None:
    server = make_server()
    server.start()
    before = len(private_keys(token))
    agent = make_agent(
        server,
        token_value=server.join_token(NODE),
        key_manager=pkcs11(token, tmp_path / "agent-keys.json", namespace="agent-a"),
    )
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    assert WORKLOAD in agent.fetch()
    assert len(private_keys(token)) == before + 1
