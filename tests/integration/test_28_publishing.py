"""The bundle where others look, as docs/runbooks/publishing-bundles.md has it: by file and HTTPS, at every change."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from identity.bundles import Bundle, from_pem
from identity.spiffeid import TrustDomain
from tests.simulators.bundle_sink import BundleSink, Sent
from tests.simulators.spire import MEMORY, SERVER, Program, Server, command, eventually
from tests.simulators.web_pki import WebAuthority

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "runbooks" / "publishing-bundles.md"

EXTERNAL = f"""
BundlePublisher "py" {{
  plugin_cmd = "{sys.executable}"
  plugin_args = ["-m", "tests.simulators.plugin"]
}}
Notifier "py" {{
  plugin_cmd = "{sys.executable}"
  plugin_args = ["-m", "tests.simulators.plugin"]
}}
"""


def blocks(tmp_path: Path, sink: BundleSink, authority: WebAuthority) -> str:
    """The runbook's own blocks, with places that a test can have."""
    token = tmp_path / "token"
    token.write_text("sesame\n")
    token.chmod(0o600)
    text = "\n".join(re.findall(r"```hcl\n(.*?)```", RUNBOOK.read_text(), re.DOTALL))
    for old, new in {
        "/var/www/html/": f"{tmp_path}/",
        "/run/spire/": f"{tmp_path}/",
        "/etc/spire/web-ca.pem": str(authority.file),
        "/etc/spire/bundles.token": str(token),
        "https://bundles.example.org/": f"{sink.url}/",
        "https://hooks.example.org/": f"{sink.url}/",
    }.items():
        assert old in text
        text = text.replace(old, new)
    return text


def bodies(sent: Sequence[Sent], method: str) -> list[Sent]:
    return [each for each in sent if each.method == method]


def test_others_have_each_bundle(tmp_path: Path, programs: list[Program]) -> None:
    authority = WebAuthority(tmp_path)
    trust_domain = TrustDomain("example.org")
    with (
        BundleSink(authority.issue("sink", "localhost"), clients=authority.file) as sink,
        # The hook is not for clients below the trust domain alone: it asks nobody for a certificate.
        BundleSink(authority.issue("hook", "localhost")) as hook,
    ):
        text = blocks(tmp_path, sink, authority).replace(f"{sink.url}/spire", f"{hook.url}/spire")
        server = Server(
            tmp_path / "server", key_manager=MEMORY + text + EXTERNAL, environment={"PYTHONPATH": str(ROOT)}
        )
        programs.append(server.run)
        server.start()

        # The notifiers were told before anybody was served.
        pem, document = tmp_path / "bundle.pem", tmp_path / "bundle.json"
        roots = from_pem(pem.read_text())
        assert len(roots) == 1
        event = json.loads(bodies(hook.sent, "POST")[0].body)
        assert (event["event"], event["trust_domain"]) == ("bundle_loaded", "example.org")
        loaded = Bundle.from_jwks(trust_domain, json.dumps(event["bundle"]))
        assert [each.der for each in loaded.x509_authorities] == roots

        eventually(document.exists, "the published file")
        published = Bundle.from_jwks(trust_domain, document.read_text())
        assert [each.der for each in published.x509_authorities] == roots
        assert published.jwt_authorities
        assert published.refresh_hint == 300
        assert document.stat().st_mode & 0o777 == 0o644

        # The place knows the server's SVID once it has the bundle.
        eventually(lambda: "Failed to publish bundle" in server.run.output(), "a refused client")
        sink.trust(pem)
        eventually(lambda: bodies(sink.sent, "PUT"), "a bundle by HTTPS", 40)
        put = sink.sent[-1]
        assert put.client == ("spiffe://example.org/spire/server",)
        assert (put.path, put.headers["Authorization"]) == ("/example.org.json", "Bearer sesame")
        eventually(lambda: "Bundle is published again" in server.run.output(), "the line of its end")

        server.ask("localauthority", "x509", "prepare")

        def everywhere() -> bool:
            texts: list[str | bytes] = [
                document.read_text(),
                sink.sent[-1].body,
                json.dumps(json.loads(hook.sent[-1].body)["bundle"]),
            ]
            found = [Bundle.from_jwks(trust_domain, each) for each in texts]
            return len(from_pem(pem.read_text())) == 2 and all(len(each.x509_authorities) == 2 for each in found)

        eventually(everywhere, "the new authority in all four places", 40)
        assert json.loads(hook.sent[-1].body)["event"] == "bundle_updated"
        output = server.run.output
        for line in ("loaded example.org [1, ", "published example.org [2, ", "updated example.org [2, "):
            eventually(lambda: line in output(), f"an external plugin that is told: {line}")  # noqa: B023
        assert server.run.output().count("Failed to publish bundle") <= 2
        assert "sesame" not in server.run.output()


def test_validate_tells_what_is_wrong_with_a_place(tmp_path: Path) -> None:
    plugin = """Notifier "disk" {
  plugin_data {
    path = "/nonexistent/bundle.pem"
  }
}
BundlePublisher "https" {
  plugin_data {
    url = "http://bundles.example.org/"
    format = "spiffe"
  }
}
BundlePublisher "aws_s3" { plugin_data { bucket = "b" } }"""
    server = Server(tmp_path / "server", key_manager=f"{MEMORY}\n{plugin}")
    done = command(SERVER, "validate", "-config", str(server.config))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert 'Notifier "disk": there is no folder /nonexistent: make it, or correct path' in said
    assert "url must begin with https://" in said
    assert 'no built-in plugin "aws_s3" for type "BundlePublisher": this version has disk, https' in said


def test_a_notifier_that_fails_keeps_the_server_from_starting(tmp_path: Path, programs: list[Program]) -> None:
    authority = WebAuthority(tmp_path)
    with BundleSink(authority.issue("hook", "localhost"), status=403) as hook:
        notifier = (
            f'Notifier "https" {{ plugin_data {{ url = "{hook.url}/spire" ca_cert_path = "{authority.file}" }} }}'
        ).replace('" ca', '"\nca')
        server = Server(tmp_path / "server", key_manager=f"{MEMORY}\n{notifier}")
        programs.append(server.run)
        server.run.start()
        eventually(lambda: not server.run.running, "the end of the server")
        output = server.run.output()
        assert "one or more notifiers returned an error" in output
        assert "answered 403 to POST" in output
        assert "Traceback" not in output
