"""SVIDs as files, as docs/runbooks/svid-files.md has it: written, renewed, told of, and removed with the entry."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.integration.conftest import MakeAgent, MakeServer
from tests.simulators.spire import command, eventually

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbooks" / "svid-files.md"
NODE = "spiffe://example.org/node"


def runbook_block(directory: Path, record: Path) -> str:
    """The runbook's own block, with places, a command and an owner that a test can have."""
    found = re.search(r"```hcl\n(.*?)```", RUNBOOK.read_text(), re.DOTALL)
    assert found is not None
    block = found[1].replace("/run/spire/svids", str(directory)).replace('"www-data"', '""')
    copying = f'["cp", "-r", "{directory}/web", "{record}"]'
    changed = block.replace('["systemctl", "reload-or-restart", "nginx"]', copying)
    assert changed != block
    return changed


def leaf(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "svid.pem").read_bytes())


def test_files_follow_their_entry(make_server: MakeServer, make_agent: MakeAgent, tmp_path: Path) -> None:
    server = make_server()
    server.start()
    directory, record = tmp_path / "svids", tmp_path / "told"
    record.mkdir()
    keys = f'KeyManager "disk" {{ plugin_data {{ directory = "{tmp_path}" }} }}'
    blocks = keys + runbook_block(directory, record)
    agent = make_agent(server, token_value=server.join_token(NODE), key_manager=blocks)
    agent.start()
    entry = server.create_entry(
        NODE, "spiffe://example.org/web", "-storeSVID", "-x509SVIDTTL", "20", selectors=["disk:name:web"]
    )
    web = directory / "web"
    eventually((web / "svid.pem").exists, f"files: {agent.run.output()[-2000:]}")
    first = leaf(web)
    key = load_pem_private_key((web / "svid_key.pem").read_bytes(), None)
    assert key.public_key() == first.public_key()
    names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org/web"]
    done = command(
        "openssl", "verify", "-partial_chain", "-CAfile", str(web / "svid_bundle.pem"), "-untrusted",
        str(web / "svid.pem"), str(web / "svid.pem"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    eventually(lambda: (record / "web" / "svid.pem").exists(), "the command of on_change")

    eventually(lambda: leaf(web).serial_number != first.serial_number, "the renewed SVID")
    assert leaf(web).public_key() == load_pem_private_key((web / "svid_key.pem").read_bytes(), None).public_key()

    server.ask("entry", "delete", "-entryID", entry)
    eventually(lambda: not web.exists(), f"the files' end: {agent.run.output()[-2000:]}")
