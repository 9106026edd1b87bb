from __future__ import annotations

import asyncio
import http.server
import ipaddress
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from agent import download
from agent.bootstrap import TrustBundleSource, bootstrap_bundle
from agent.storage import Bootstrapping, Use
from identity.bundles import Bundle, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, TemporarilyUnavailable
from tests.simulators import pki
from tests.simulators.fake_server import Authority

TD = TrustDomain("example.org")


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority(TD)


def source(**more: str) -> TrustBundleSource:
    return TrustBundleSource(TD, "server.example.org", 8081, **more)


async def asked_for(source: TrustBundleSource, asking: Bootstrapping | None = None) -> tuple[bytes, ...] | None:
    return await bootstrap_bundle(source, asking or Bootstrapping(Use.BOOTSTRAP, started=1_700_000_000, attempts=1))


class _Handler(http.server.BaseHTTPRequestHandler):
    pages: dict[str, tuple[int, str]] = {}
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status, content = self.pages.get(urlsplit(self.path).path, (404, ""))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", content)
        body = content.encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def address_string(self) -> str:
        return "test"


@contextmanager
def served(server: socketserver.BaseServer, pages: dict[str, tuple[int, str]]) -> Generator[list[str], None, None]:
    _Handler.pages, _Handler.asked = pages, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield _Handler.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def https(folder: Path) -> tuple[http.server.HTTPServer, str]:
    """A server on 127.0.0.1, and the file with its certificate."""
    key = pki.ec_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "tls.pem"
    encoding = serialization.Encoding.PEM
    path.write_bytes(
        certificate.public_bytes(encoding)
        + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server = http.server.HTTPServer(("127.0.0.1", 0), _Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server, str(path)


class _UnixServer(socketserver.UnixStreamServer):
    def get_request(self) -> tuple[socket.socket, str]:
        request, _ = super().get_request()
        return request, "unix"


async def test_pem_file(tmp_path: Path, root: Authority) -> None:
    path = tmp_path / "bundle.pem"
    path.write_text(root.pem)
    assert await asked_for(source(path=str(path))) == (root.der,)


async def test_spiffe_file(tmp_path: Path, root: Authority) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(Bundle(TD, (X509Authority(root.der),)).to_jwks())
    assert await asked_for(source(path=str(path), format="spiffe")) == (root.der,)


async def test_no_source_is_insecure_bootstrap() -> None:
    assert await asked_for(source()) is None


async def test_a_file_that_is_not_there_may_come_later(tmp_path: Path) -> None:
    with pytest.raises(TemporarilyUnavailable, match="trust_bundle_path"):
        await asked_for(source(path=str(tmp_path / "absent")))


@pytest.mark.parametrize("kind", ["pem", "spiffe"])
@pytest.mark.parametrize("content", ["", "nonsense", '{"keys": []}', "-----BEGIN CERTIFICATE-----\n"])
async def test_what_is_no_bundle_is_refused(tmp_path: Path, kind: str, content: str) -> None:
    path = tmp_path / "bundle"
    path.write_text(content)
    with pytest.raises(InvalidArgument, match="bundle"):
        await asked_for(source(path=str(path), format=kind))


async def test_url(tmp_path: Path, root: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    server, certificate = https(tmp_path)
    port = server.server_address[1]
    pages = {
        "/bundle": (200, root.pem),
        "/moved": (302, "/bundle"),
        "/plain": (302, f"http://127.0.0.1:{port}/bundle"),
        "/loop": (302, f"https://127.0.0.1:{port}/loop"),
        "/gone": (500, ""),
        "/nowhere": (302, "https://127.0.0.1:99999/"),
        "/no-label": (302, "https://a..b/"),
        "/no-path": (302, f"https://127.0.0.1:{port}/a b"),
        "/no-url": (302, "https://[x/"),
    }
    with served(server, pages):
        with pytest.raises(TemporarilyUnavailable, match="unable to fetch trust bundle URL"):
            await asked_for(source(url=f"https://127.0.0.1:{port}/bundle"))
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert await asked_for(source(url=f"https://127.0.0.1:{port}/bundle")) == (root.der,)
        assert await asked_for(source(url=f"https://127.0.0.1:{port}/moved")) == (root.der,)
        refusals = {
            "plain": "without TLS",
            "loop": "too often",
            "gone": "500 Internal Server Error",
            "nowhere": "Port out of range",
            "no-label": "unable to fetch trust bundle URL https://a..b/: ",
            "no-path": "characters that HTTP does not allow",
            "no-url": "no-url leads to 'https://",
        }
        for page, text in refusals.items():
            with pytest.raises(TemporarilyUnavailable, match=text):
                await asked_for(source(url=f"https://127.0.0.1:{port}/{page}"))


async def test_a_download_that_trickles_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    closing = asyncio.Event()

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while not closing.is_set():
                writer.write(b"-")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(trickle, path):
        with pytest.raises(TemporarilyUnavailable, match=r"unable to fetch trust bundle URL .* within 0\.5 s"):
            await asked_for(source(url="http://localhost/bundle", unix_socket=path))
        closing.set()


async def test_url_over_a_unix_socket_says_who_asks(tmp_path: Path, root: Authority) -> None:
    path = str(tmp_path / "s")
    with served(_UnixServer(path, _Handler), {"/bundle": (200, root.pem)}) as asked:
        found = await asked_for(source(url="http://localhost/bundle?more=1", unix_socket=path))
    assert found == (root.der,)
    assert parse_qs(urlsplit(asked[0]).query) == {
        "more": ["1"],
        "spire-attest-mode": ["bootstrap"],
        "spire-attest-start-time": ["2023-11-14T22:13:20Z"],
        "spire-connection-attempts": ["1"],
        "spire-server-address": ["server.example.org"],
        "spire-server-port": ["8081"],
        "spiffe-trust-domain": ["example.org"],
    }


async def test_an_unreachable_source_may_come_back(tmp_path: Path) -> None:
    with pytest.raises(TemporarilyUnavailable, match="unable to fetch"):
        await asked_for(source(url="http://localhost/", unix_socket=str(tmp_path / "absent")))


@pytest.mark.parametrize("url", ["https://host:99999/x", "https://a..b/x", f"https://{'a' * 64}.example/x"])
async def test_a_url_that_cannot_be_is_said_in_a_line(url: str) -> None:
    with pytest.raises(TemporarilyUnavailable, match="unable to fetch trust bundle URL https://"):
        await asked_for(source(url=url))


def test_a_download_that_hangs_does_not_hold_up_the_end_of_the_process(tmp_path: Path) -> None:
    path = str(tmp_path / "silent.sock")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()

        async def give_up() -> None:
            async with asyncio.timeout(0.5):
                await asked_for(source(url="http://localhost/bundle", unix_socket=path))

        began = time.monotonic()
        # The end of a loop waits for its threads.
        with pytest.raises(TimeoutError):
            asyncio.run(give_up())
        assert time.monotonic() - began < 20
