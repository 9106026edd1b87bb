"""The bundle endpoint as docs/runbooks/federation.md has it, asked with curl: https_spiffe; by files; by ACME."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MakeServer
from tests.simulators.acme import AcmeServer
from tests.simulators.ports import free_port
from tests.simulators.spire import Server, command, eventually
from tests.simulators.web_pki import WebAuthority

RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbooks" / "federation.md").read_text()
TYPE = "%{http_code} %{content_type}"


def runbook_block(profile: str, **changes: str) -> str:
    """The runbook's own block for a profile, with places that a test can have."""
    blocks: list[str] = re.findall(r"```hcl\n(.*?)```", RUNBOOK, re.DOTALL)
    [block] = [each for each in blocks if re.search(rf'^\s+profile "{profile}"', each, re.MULTILINE)]
    for old, new in changes.items():
        changed = re.sub(rf"({old}\s*=\s*)\S+", rf"\g<1>{new}", block)
        assert changed != block, old
        block = changed
    return block


def curl(*arguments: str) -> str:
    done = command("curl", "-sS", "--noproxy", "*", "--max-time", "60", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_shown(server: Server) -> dict[str, Any]:
    """The document of `bundle show`, without a refresh hint, which it has of the datastore."""
    document: dict[str, Any] = json.loads(server.ask("bundle", "show", "-format", "spiffe").stdout)
    document.pop("spiffe_refresh_hint", None)
    return document


@pytest.fixture
def port() -> int:
    return free_port()


def test_https_spiffe_shows_the_servers_own_svid(make_server: MakeServer, port: int, tmp_path: Path) -> None:
    server = make_server(settings=runbook_block("https_spiffe", address='"127.0.0.1"', port=str(port)))
    server.start()
    url = f"https://127.0.0.1:{port}/"
    document = json.loads(curl("--insecure", url))
    assert document.pop("spiffe_refresh_hint") == 300
    assert document == as_shown(server)
    # Who has the bundle can verify who serves it: by SPIFFE ID, and not by a name of the DNS.
    roots = tmp_path / "roots.pem"
    roots.write_text(server.ask("bundle", "show").stdout)
    seen = command("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(roots), "-showcerts")
    assert "Verify return code: 0 (ok)" in seen.stdout, seen.stdout
    leaf = tmp_path / "leaf.pem"
    leaf.write_text(seen.stdout)
    names = command("openssl", "x509", "-in", str(leaf), "-noout", "-ext", "subjectAltName").stdout
    assert "URI:spiffe://example.org/spire/server" in names
    # A rotation is seen by the next who asks.
    server.ask("localauthority", "x509", "prepare")
    assert len(json.loads(curl("--insecure", url))["keys"]) == len(document["keys"]) + 1
    assert curl("--insecure", "-o", str(tmp_path / "body"), "-w", TYPE, "-X", "DELETE", url).startswith(
        "405 text/plain"
    )


def test_https_web_shows_the_certificate_of_the_files(make_server: MakeServer, port: int, tmp_path: Path) -> None:
    ca = WebAuthority(tmp_path)
    made = ca.issue("bundle", "localhost")
    certificate, key = tmp_path / "live.pem", tmp_path / "live.key"
    shutil.copy(made.certificate, certificate)
    block = runbook_block(
        "https_web",
        address='"127.0.0.1"',
        port=str(port),
        cert_file_path=f'"{certificate}"',
        key_file_path=f'"{key}"',
        file_sync_interval='"100ms"',
    )
    server = make_server(settings=block)
    invalid = command(server.program, "validate", "-config", str(server.config), environment=server.environment)
    missing = f"federation.bundle_endpoint: cannot read {key}: no such file or directory"
    assert (invalid.returncode, missing in invalid.stderr) == (1, True), invalid.stderr
    shutil.copy(made.key, key)
    server.start()
    url = f"https://localhost:{port}/"
    trusting = ("--cacert", str(ca.file))
    document = json.loads(curl(*trusting, "--http2", url))
    assert document["keys"] == as_shown(server)["keys"]

    def serial() -> str:
        return curl(*trusting, "-o", str(tmp_path / "body"), "-w", "%{certs}", url)

    before = serial()
    shutil.copy(ca.issue("other", "localhost").key, key)
    eventually(lambda: "what was shown stays" in server.run.output(), "a line about the pair")
    assert serial() == before
    renewed = ca.issue("renewed", "localhost")
    shutil.copy(renewed.key, key)
    shutil.copy(renewed.certificate, certificate)
    eventually(lambda: serial() != before, "the new certificate")
    assert server.run.end() == 0


def test_https_web_orders_its_certificate_by_acme(make_server: MakeServer, port: int, tmp_path: Path) -> None:
    name = "bundle.test"
    with AcmeServer(tmp_path, port=port) as ca:
        server = make_server(
            settings=f"""federation {{ bundle_endpoint {{ address = "127.0.0.1"  port = {port}
                profile "https_web" {{ acme {{ directory_url = "{ca.directory}"  domain_name = "{name}"
                    email = "ops@example.org"  tos_accepted = true }} }} }} }}"""
        )
        server.run.environment["SSL_CERT_FILE"] = str(ca.authority.file)
        server.start()
        trusting = ("--cacert", str(ca.authority.file), "--resolve", f"{name}:{port}:127.0.0.1")
        url = f"https://{name}:{port}/"

        def served() -> bool:
            return command("curl", "-sSf", "--noproxy", "*", *trusting, url).returncode == 0

        eventually(served, f"a certificate: {server.run.output()[-2000:]}")
        assert json.loads(curl(*trusting, url))["keys"] == as_shown(server)["keys"]
        # The account's key is one of the token's, and it is known what for.
        account = ("keys", "show", "-id", "bundle-acme-acme_account+key")
        assert "ACME account" in server.ask(*account).stdout
        # What was had is shown by the next start, at once and without another order.
        assert server.run.end() == 0
        server.start()
        eventually(served, f"the certificate again: {server.run.output()[-2000:]}")
        assert "ACME account" in server.ask(*account).stdout
        assert ca.orders == 1
        assert len(ca.contacts) <= 2
