"""A certificate in files, changed under the server that shows it, in all the ways in which files change."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from operations import logs
from operations.errors import ConfigurationError, TemporarilyUnavailable
from operations.http import Request, Response
from tests.simulators.web_pki import Files, WebAuthority
from transport.http import HttpServer
from transport.serving_files import FilesCertificate

INTERVAL = timedelta(seconds=0.1)
STAYS = "The certificate files cannot be used; what was shown stays"


@pytest.fixture
def ca(tmp_path: Path) -> WebAuthority:
    return WebAuthority(tmp_path)


@pytest.fixture
def live(tmp_path: Path, ca: WebAuthority) -> Files:
    """The pair that is served; others are put in its place."""
    made = ca.issue("first", "localhost")
    folder = tmp_path / "live"
    folder.mkdir()
    files = Files(folder / "cert.pem", folder / "key.pem")
    shutil.copy(made.certificate, files.certificate)
    shutil.copy(made.key, files.key)
    files.key.chmod(0o600)
    return files


def of(files: Files) -> FilesCertificate:
    return FilesCertificate(str(files.certificate), str(files.key), INTERVAL, logs.get("test"))


async def hello(_: Request) -> Response:
    return Response(200, b"hello\n")


class Shown:
    def __init__(self, port: int) -> None:
        self._port = port

    async def name(self) -> str:
        """The common name of the certificate that a client sees now."""
        text = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", self._port), timeout=30)
        [name] = x509.load_pem_x509_certificate(text.encode()).subject
        return str(name.value)

    async def becomes(self, name: str) -> None:
        async with asyncio.timeout(60):
            while await self.name() != name:  # noqa: ASYNC110 - asked over the network
                await asyncio.sleep(0.05)


@asynccontextmanager
async def shown(files: Files) -> AsyncGenerator[Shown]:
    certificate = of(files)
    with pytest.raises(TemporarilyUnavailable):
        certificate.tls()
    await certificate.start()
    server = HttpServer(hello)
    port = await server.listen_tcp("127.0.0.1", 0, "port", tls=certificate.tls)
    running = asyncio.create_task(certificate.run())
    try:
        yield Shown(port)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.close()


async def told(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> None:
    async with asyncio.timeout(60):
        while sum(text in record.getMessage() for record in caplog.records) < times:  # noqa: ASYNC110 - a list
            await asyncio.sleep(0.05)


async def test_a_renewed_pair_is_shown(live: Files, ca: WebAuthority, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with shown(live) as seen:
        assert await seen.name() == "first"
        new = ca.issue("second", "localhost")
        new.certificate.rename(live.certificate)
        await told(caplog, STAYS)  # caught half-way: the key is still the old one
        assert await seen.name() == "first"
        new.key.rename(live.key)
        await seen.becomes("second")
    assert sum(STAYS in record.getMessage() for record in caplog.records) == 1


async def test_links_are_followed_to_where_they_lead_now(tmp_path: Path, ca: WebAuthority) -> None:
    for name in ("first", "second"):
        made = ca.issue(name, "localhost")
        (tmp_path / f"..{name}").mkdir()
        # Both of the same age and size, as archives unpack them.
        for source, file in ((made.certificate, "cert.pem"), (made.key, "key.pem")):
            os.utime(source.rename(tmp_path / f"..{name}" / file), (1, 1))
    data = tmp_path / "..data"
    data.symlink_to("..first")
    async with shown(Files(data / "cert.pem", data / "key.pem")) as seen:
        assert await seen.name() == "first"
        (tmp_path / "next").symlink_to("..second")
        (tmp_path / "next").rename(data)
        await seen.becomes("second")


def emptied(files: Files) -> None:
    files.certificate.write_bytes(b"")


def cut_short(files: Files) -> None:
    files.certificate.write_bytes(files.certificate.read_bytes()[:100])


def without_certificate(files: Files) -> None:
    files.certificate.unlink()


def without_key(files: Files) -> None:
    files.key.unlink()


def swapped(files: Files) -> None:
    content = files.certificate.read_bytes()
    files.certificate.write_bytes(files.key.read_bytes())
    files.key.write_bytes(content)


def another_key(files: Files) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def with_passphrase(files: Files) -> None:
    key = load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))


def a_folder(files: Files) -> None:
    files.key.unlink()
    files.key.mkdir()


def a_pipe(files: Files) -> None:
    files.certificate.unlink()
    os.mkfifo(files.certificate)


def endless(files: Files) -> None:
    with files.certificate.open("r+b") as file:
        file.truncate(1 << 34)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (emptied, "cert.pem has no PEM certificates that can be read"),
        (cut_short, "cert.pem has no PEM certificates that can be read"),
        (without_certificate, "cert.pem: no such file or directory"),
        (without_key, "key.pem: no such file or directory"),
        (swapped, "cert.pem has no PEM certificates that can be read"),
        (another_key, "is not that of the first certificate in"),
        (with_passphrase, "has a passphrase: write it without one"),
        (a_folder, "key.pem: is a directory"),
        (a_pipe, "cert.pem is no file"),
        (endless, "cert.pem is longer than 1 MiB"),
    ],
)
async def test_what_cannot_be_used(
    live: Files, spoil: Callable[[Files], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start it ends the start; later it changes nothing, and is told once."""
    async with shown(live) as seen:
        spoil(live)
        await told(caplog, STAYS)
        [record] = [record for record in caplog.records if STAYS in record.getMessage()]
        assert reason in str(vars(record))
        assert await seen.name() == "first"
    with pytest.raises(ConfigurationError, match="pem") as error:
        await of(live).start()
    assert reason in str(error.value)


async def test_an_expired_certificate_is_shown_and_told_of(
    live: Files, ca: WebAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    old = ca.issue("old", "localhost", expired=True)
    old.certificate.rename(live.certificate)
    old.key.rename(live.key)
    async with shown(live) as seen:
        assert await seen.name() == "old"
        await asyncio.sleep(3 * INTERVAL.total_seconds())  # more looks, no more lines
        assert sum("has expired and is shown all the same" in record.getMessage() for record in caplog.records) == 1
        new = ca.issue("new", "localhost")
        new.certificate.rename(live.certificate)
        new.key.rename(live.key)
        await seen.becomes("new")


async def test_a_key_that_anybody_may_read_is_warned_of(live: Files, caplog: pytest.LogCaptureFixture) -> None:
    live.key.chmod(0o640)
    await of(live).start()
    assert not caplog.records
    live.key.chmod(0o644)
    await of(live).start()
    assert "Anybody on this machine may read the key" in caplog.text
