"""Certificates by ACME from Pebble: every rule of RFC 8555 that it holds clients to, and half of all nonces refused."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keystores.memory import MemoryKeyManager
from operations import logs
from operations.http import Request, Response
from plugins.acme_account import AcmeAccount
from tests.simulators.once import made_once
from tests.simulators.pebble import Pebble
from tests.simulators.ports import free_port
from tests.simulators.softhsm import MODULE, SoftHsm
from tests.simulators.spire import Server, eventually
from tests.simulators.web_clients import get
from transport.acme.certificate import AcmeCertificate, Times
from transport.acme.ordering import Patience
from transport.acme.settings import AcmeSettings
from transport.http import HttpServer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

NAME = "bundle.test"
ACCOUNT = "bundle-acme-acme_account+key"
SPKI = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
MODULES = "github.com/letsencrypt/pebble/v2/cmd"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At the version that go.mod pins. A Go toolchain that is missing is a failure."""

    def build(folder: Path) -> None:
        packages = [f"{MODULES}/pebble", f"{MODULES}/pebble-challtestsrv"]
        subprocess.run(["go", "build", "-o", f"{folder}/", *packages], cwd=Path(__file__).parent, check=True)

    return made_once(tmp_path_factory, "go-pebble", build)


@pytest.fixture
def pebble(programs: Path, tmp_path: Path) -> Iterator[Pebble]:
    with Pebble(programs, tmp_path / "pebble", free_port()) as running:
        yield running


def test_a_servers_bundle_is_had_with_a_certificate_from_pebble(pebble: Pebble, tmp_path: Path) -> None:
    """The account's key is in a token; a restart shows the same certificate, and the key is not to be disposed of."""
    token = SoftHsm.create(tmp_path / "hsm")
    keys = f"""KeyManager "pkcs11" {{ plugin_data {{
      module_path = "{MODULE}"
      token_label = "{token.label}"
      pin_file = "{token.pin_file}"
      keys_path = "{tmp_path}/keys.json"
    }} }}"""
    settings = f"""federation {{ bundle_endpoint {{
      address = "127.0.0.1"
      port = {pebble.validated}
      profile "https_web" {{ acme {{
        directory_url = "{pebble.directory}"
        domain_name = "{NAME}"
        email = "ops@example.org"
        tos_accepted = true
      }} }}
    }} }}"""
    environment = {"SSL_CERT_FILE": str(pebble.authority.file), "SOFTHSM2_CONF": str(token.configuration)}
    server = Server(tmp_path / "server", keys, settings, environment=environment)
    server.start()
    try:
        root = pebble.root()
        first, bundle = eventually(lambda: get(pebble.validated, NAME, root), f"the bundle: {server.run.output()}")
        assert [key["use"] for key in json.loads(bundle)["keys"]] == ["x509-svid", "jwt-svid"]
        assert (server.folder / "bundle-acme" / f"{NAME}.pem").stat().st_mode & 0o777 == 0o600
        used = {
            key["id"]: [use["purpose"] for use in key["used_by"]] for key in server.ask_json("keys", "list")["keys"]
        }
        assert used[ACCOUNT] == ["ACME account"]

        server.run.end()
        server.start()
        again, _ = eventually(lambda: get(pebble.validated, NAME, root), "the bundle after a restart")
        assert again == first
        refused = server.ask("keys", "dispose", "-id", ACCOUNT, check=False)
        assert refused.returncode == 1
        assert "is in use, by the active ACME account" in refused.stderr
    finally:
        server.run.end()
    assert pebble.output().count("Issued certificate serial") == 1


async def test_pebble_renews_and_refuses(
    programs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates of 6 seconds are renewed by one account; a name that is blocked is told with Pebble's reason."""
    caplog.set_level(logging.INFO, "spire")
    times = Times(look=0.1, retry=0.5, longest=1.0, patience=Patience(0.1, 1.0, 60.0))
    keys = AcmeAccount(MemoryKeyManager(), "bundle-acme-")

    async def hello(_: Request) -> Response:
        return Response(200, b"hello\n")

    with Pebble(programs, tmp_path / "pebble", free_port(), validity=6) as pebble:
        monkeypatch.setenv("SSL_CERT_FILE", str(pebble.authority.file))
        root = await asyncio.to_thread(pebble.root)
        settings = AcmeSettings(pebble.directory, NAME, "", tos_accepted=True)
        certificate = AcmeCertificate(settings, keys, tmp_path / "acme", logs.get("acme"), times=times)
        await certificate.start()
        server = HttpServer(hello)
        await server.listen_tcp("127.0.0.1", pebble.validated, "port", tls=certificate.tls)
        running = asyncio.create_task(certificate.run())
        seen: list[x509.Certificate] = []
        async with asyncio.timeout(120):
            while len(seen) < 3:
                found = await asyncio.to_thread(get, pebble.validated, NAME, root)
                if found is not None and found[0] not in seen:
                    seen.append(found[0])
                await asyncio.sleep(0.1)
        running.cancel()
        await server.close()
        assert len({each.public_key().public_bytes(*SPKI) for each in seen}) == 3

        assert pebble.output().count("accounts in memory") == 1

        settings = AcmeSettings(pebble.directory, "blocked.test", "", tos_accepted=True)
        refused = AcmeCertificate(settings, keys, tmp_path / "acme", logs.get("acme"), times=times)
        running = asyncio.create_task(refused.run())
        async with asyncio.timeout(60):
            said = ""
            while "rejectedIdentifier" not in said:
                await asyncio.sleep(0.1)
                said = str([getattr(record, "fields", {}) for record in caplog.records])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
