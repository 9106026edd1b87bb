"""Asking registries: log-ins, redirects, and what they may not have us do."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from attestors.sigstore.configuration import RegistryCredential
from attestors.sigstore.credentials import Keychain
from attestors.sigstore.references import Reference
from attestors.sigstore.registry import Registry
from operations.errors import NotFound, Refused, TemporarilyUnavailable
from operations.logs import get
from tests.simulators import registry as simulated
from tests.simulators.registry import Answer, Asked, BearerLogin, WebServer
from tests.simulators.sigstore import new_key
from transport.web.client import HttpClient
from transport.web.urls import Url

USER = ("somebody", "hunter2")
CREDENTIAL = RegistryCredential(username=USER[0], password=USER[1])


@pytest.fixture
def images(server: WebServer) -> simulated.Registry:
    images = simulated.Registry()
    images.push_image()
    images.blobs[digest(b"blob")] = b"blob"
    server.routes.append(images.route)
    return images


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def asking(
    host: str, credentials: Mapping[str, RegistryCredential] | None = None, environment: Mapping[str, str] | None = None
) -> Registry:
    environment = environment or {}
    repository = Reference.parse(f"{host}/app:latest").repository
    return Registry(repository, HttpClient(environment), Keychain(credentials or {}, environment, get()))


async def test_an_open_registry(server: WebServer, images: simulated.Registry) -> None:
    assert await asking(server.host).manifest("latest") == images.manifests["latest"]
    assert await asking(server.host).blob(digest(b"blob"), 4) == b"blob"
    with pytest.raises(NotFound, match="there is none"):
        await asking(server.host).manifest("missing")


@pytest.mark.usefixtures("images")
async def test_a_token_for_anybody(server: WebServer) -> None:
    server.routes.insert(0, BearerLogin(lambda: server.url).route)
    registry = asking(server.host)
    assert await registry.blob(digest(b"blob"), 4) == b"blob"
    assert await registry.blob(digest(b"blob"), 4) == b"blob"
    (token,) = (asked for asked in server.asked if asked.path.startswith("/token"))
    assert token.query == {"service": ["registry"], "scope": ["repository:app:pull"]}
    assert "Authorization" not in token.headers


@pytest.mark.usefixtures("images")
async def test_a_token_for_a_users_password(server: WebServer) -> None:
    server.routes.insert(0, BearerLogin(lambda: server.url, user=USER).route)
    assert await asking(server.host, {server.host: CREDENTIAL}).blob(digest(b"blob"), 4) == b"blob"
    with pytest.raises(Refused, match="access is refused") as refusal:
        await asking(server.host).blob(digest(b"blob"), 4)
    assert "set registry_credentials" in str(refusal.value)


@pytest.mark.usefixtures("images")
async def test_a_token_that_has_expired_is_got_anew(server: WebServer) -> None:
    login = BearerLogin(lambda: server.url)
    server.routes.insert(0, login.route)
    registry = asking(server.host)
    await registry.blob(digest(b"blob"), 4)
    login.token = "another"
    assert await registry.blob(digest(b"blob"), 4) == b"blob"


@pytest.mark.usefixtures("images")
async def test_a_password_at_every_request(server: WebServer) -> None:
    basic = "Basic c29tZWJvZHk6aHVudGVyMg=="

    def ask_for_password(asked: Asked) -> Answer | None:
        known = asked.headers.get("Authorization") == basic
        return None if known else Answer(401, headers={"WWW-Authenticate": 'Basic realm="registry"'})

    server.routes.insert(0, ask_for_password)
    assert await asking(server.host, {server.host: CREDENTIAL}).blob(digest(b"blob"), 4) == b"blob"
    with pytest.raises(Refused, match="access is refused"):
        await asking(server.host).blob(digest(b"blob"), 4)


@pytest.fixture
def elsewhere() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.mark.usefixtures("images")
async def test_blobs_may_be_elsewhere_and_credentials_stay_here(server: WebServer, elsewhere: WebServer) -> None:
    server.routes.insert(0, BearerLogin(lambda: server.url, user=USER).route)
    redirect = Answer(307, headers={"Location": f"{elsewhere.url}/somewhere"})
    server.routes.insert(1, lambda asked: redirect if "/blobs/" in asked.path else None)
    elsewhere.routes.append(lambda _: Answer(body=b"blob"))
    assert await asking(server.host, {server.host: CREDENTIAL}).blob(digest(b"blob"), 4) == b"blob"
    (asked,) = elsewhere.asked
    assert "Authorization" not in asked.headers
    assert any("Authorization" in asked.headers for asked in server.asked)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data", "which is an internal address"),
        ("http://10.0.0.1/", "which is an internal address"),
        ("http://[::1]:9/", "which is an internal address"),
        ("http://100.100.100.200/", "which is an internal address"),
        ("http://[::ffff:169.254.169.254]/", "which is an internal address"),
        ("http://2852039166/", "redirects to what is no URL"),
        ("http://0xa9fea9fe/", "redirects to what is no URL"),
        ("http://169.254.0xa9fe/", "redirects to what is no URL"),
        ("http://169.254.43518./", "redirects to what is no URL"),
        ("file:///etc/passwd", "redirects to what is no URL"),
        ("http://user:password@host.example/", "redirects to what is no URL"),
        ("//host.example:99999/", "redirects to what is no URL"),
        ("/v2/app/blobs/again", "redirects too often"),
    ],
)
async def test_redirects_that_are_not_followed(server: WebServer, location: str, reason: str) -> None:
    server.routes.append(lambda asked: Answer() if asked.path == "/v2/" else None)
    server.routes.append(lambda _: Answer(302, headers={"Location": location}))
    with pytest.raises(Refused, match=reason):
        await asking(server.host).blob(digest(b"blob"), 4)


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        ('Bearer realm="http://169.254.169.254/token"', "which is an internal address"),
        ('Bearer realm="gopher://host/"', "names no place to log in"),
        ("Bearer", "names no place to log in"),
        ("Negotiate", "access is refused"),
        ('Bearer realm="http://host.example/token"', "credentials are not sent to http://host.example, without TLS"),
    ],
)
async def test_log_ins_that_are_not_made(server: WebServer, challenge: str, reason: str) -> None:
    server.routes.append(lambda _: Answer(401, headers={"WWW-Authenticate": challenge}))
    with pytest.raises(Refused, match=reason):
        await asking(server.host, {server.host: CREDENTIAL}).manifest("latest")


@pytest.mark.parametrize(
    "token",
    [
        b"[]",
        b"{}",
        b"\xff",
        b'{"token": "\xff"}',
        b'{"x": ' + b"[" * 50_000,
        b'{"token": "a\\r\\nb"}',
        b'{"token": 1}',
    ],
)
async def test_a_token_that_is_none(server: WebServer, token: bytes) -> None:
    server.routes.append(lambda asked: Answer(body=token) if asked.path.startswith("/token") else None)
    server.routes.append(BearerLogin(lambda: server.url).route)
    with pytest.raises(TemporarilyUnavailable, match="gave no proper token"):
        await asking(server.host).manifest("latest")


async def test_what_is_not_what_was_asked_for_is_refused(server: WebServer) -> None:
    server.routes.append(lambda _: Answer(body=b"something else"))
    with pytest.raises(Refused, match="sent something else"):
        await asking(server.host).blob(digest(b"blob"), 100)
    with pytest.raises(Refused, match="sent something else"):
        await asking(server.host).manifest(digest(b"manifest"))
    with pytest.raises(Refused, match="not of SHA-256"):
        await asking(server.host).blob("md5:x", 100)


def endless(server: WebServer) -> Iterator[bytes]:
    while not server.closing.is_set():
        yield bytes(1 << 16)


async def test_an_endless_answer_is_cut_off(server: WebServer) -> None:
    server.routes.append(lambda asked: Answer() if asked.path == "/v2/" else Answer(body=endless(server)))
    with pytest.raises(Refused, match="sent more than 1000000 bytes"):
        await asking(server.host).blob(digest(b"blob"), 1_000_000)


async def test_an_endless_head_is_cut_off(server: WebServer) -> None:
    long = {f"X-{number}": "x" * 8000 for number in range(20)}
    server.routes.append(lambda _: Answer(headers=long))
    with pytest.raises(TemporarilyUnavailable, match="gave no proper answer"):
        await asking(server.host).manifest("latest")


@pytest.mark.parametrize(
    "garbage", [b"", b"HTTP/1.1 200", b"\x15\x03\x01\0\2\2\x16", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
async def test_garbage_is_no_answer(garbage: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(garbage)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(TemporarilyUnavailable, match="gave no proper answer"):
            await asking(f"localhost:{port}").manifest("latest")


async def test_a_registry_that_trickles_is_left_at_the_deadline(server: WebServer) -> None:
    def trickle() -> Iterator[bytes]:
        while not server.closing.wait(0.05):
            yield b"x"

    server.routes.append(lambda asked: Answer() if asked.path == "/v2/" else Answer(body=trickle()))
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await asking(server.host).blob(digest(b"blob"), 1_000_000)
    assert time.monotonic() - begun < 60


async def test_nobody_there() -> None:
    with pytest.raises(TemporarilyUnavailable, match="cannot reach http://localhost:9"):
        await asking("localhost:9").manifest("latest")
    with pytest.raises(TemporarilyUnavailable, match=r"cannot reach https://registry\.invalid"):
        await asking("registry.invalid").manifest("latest")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_trouble_is_not_held_against_the_image(server: WebServer, status: int) -> None:
    server.routes.append(lambda _: Answer(status))
    with pytest.raises(TemporarilyUnavailable, match=f"status {status}"):
        await asking(server.host).manifest("latest")


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and registry.example that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    now = datetime.datetime.now(datetime.UTC)
    names = [
        x509.DNSName("localhost"),
        x509.DNSName("registry.example"),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    return folder / "tls.crt", folder / "tls.key"


async def test_tls_by_the_hosts_authorities(
    tls: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = simulated.Registry()
    images.push_image()
    with WebServer(images.route, tls=tls) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(tls[0]))
        assert await asking(server.host).manifest("latest") == images.manifests["latest"]
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
        with pytest.raises(TemporarilyUnavailable):
            await asking(server.host).manifest("latest")


async def test_tls_does_not_end_by_a_redirect(tls: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls[0]))
    leave = Answer(302, headers={"Location": "http://blobs.example/x"})
    challenge = Answer(401, headers={"WWW-Authenticate": 'Bearer realm="http://auth.example/token"'})
    with WebServer(lambda asked: Answer() if asked.path == "/v2/" else leave, tls=tls) as server:
        with pytest.raises(Refused, match=r"leads to http://blobs\.example, without TLS"):
            await asking(server.host).manifest("latest")
        server.routes.insert(0, lambda _: challenge)
        with pytest.raises(Refused, match=r"wants a log-in at http://auth\.example, without TLS"):
            await asking(server.host).manifest("latest")


async def through_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heads: list[bytes]) -> None:
    """A proxy to which every name is this host's."""
    head = await reader.readuntil(b"\r\n\r\n")
    heads.append(head)
    method, target, _ = head.split(b"\r\n")[0].split(b" ")
    if method != b"CONNECT" or b"Proxy-Authorization: Basic dTpw" not in head:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        return
    port = int(target.rpartition(b":")[2])
    other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.gather(copy(reader, other_writer), copy(other_reader, writer), return_exceptions=True)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_a_proxy_carries_tls(tls: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls[0]))
    images = simulated.Registry()
    images.push_image()
    heads: list[bytes] = []
    proxy = await asyncio.start_server(lambda r, w: through_proxy(r, w, heads), "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    with WebServer(images.route, tls=tls) as server:
        async with proxy:
            environment = {"HTTPS_PROXY": f"http://u:p@127.0.0.1:{port}"}
            registry = asking(f"registry.example:{server.port}", environment=environment)
            assert await registry.manifest("latest") == images.manifests["latest"]
            assert heads[0].startswith(b"CONNECT registry.example:%d HTTP/1.1" % server.port)
            environment = {"HTTPS_PROXY": f"http://u:wrong@127.0.0.1:{port}"}
            client = HttpClient(environment)
            with pytest.raises(TemporarilyUnavailable, match="answered 407"):
                await client.get(Url.parse("https://registry.example/v2/"), largest=100)
