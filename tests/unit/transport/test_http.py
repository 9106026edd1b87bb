"""HTTP/1.1 for health and metrics: requests answered, bad ones refused, slow ones and too many bounded, TLS judged."""

from __future__ import annotations

import asyncio
import http.client
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from identity.spiffeid import TrustDomain
from operations import sections
from operations.errors import ConfigurationError, NotFound, Refused
from operations.http import Request, Response
from tests.simulators.pki import NOW, Authority, Certificate, PrivateKey, ec_key, pkcs8
from transport.endpoints import SvidSource, serve_metrics
from transport.http import HEAD_BYTES, Authorize, HttpServer, Times
from transport.limits import Limits
from transport.tls import InProcessIdentity, TlsContext, web_context

LATER = NOW.replace(year=NOW.year + 20)
REQUEST = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"


async def hello(request: Request) -> Response:
    if request.path == "/broken":
        raise ValueError("broken")
    if request.path == "/slow":
        await asyncio.sleep(600)
    body = b"x" * 1_000_000 if request.path == "/big" else f"{request.method} {request.path}\n".encode()
    return Response(200, body)


@asynccontextmanager
async def serving(
    *,
    tls: Callable[[], TlsContext] | None = None,
    authorize: Authorize | None = None,
    times: Times | None = None,
    connections: int = 64,
) -> AsyncGenerator[int]:
    limits = Limits(connections=connections, handshake=10.0)
    server = HttpServer(hello, authorize=authorize, limits=limits, times=times)
    port = await server.listen_tcp("127.0.0.1", 0, "port", tls=tls)
    try:
        yield port
    finally:
        await server.close()


async def exchange(port: int, data: bytes) -> bytes:
    """What comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def test_requests_over_one_connection() -> None:
    async with serving() as port:

        def ask() -> list[tuple[int, bytes, str | None]]:
            connection = http.client.HTTPConnection("127.0.0.1", port, 30)
            answers: list[tuple[int, bytes, str | None]] = []
            for method, path in (("GET", "/live?x=1"), ("HEAD", "/a"), ("GET", "/b")):
                connection.request(method, path)
                response = connection.getresponse()
                answers.append((response.status, response.read(), response.getheader("Content-Length")))
            connection.close()
            return answers

        assert await asyncio.to_thread(ask) == [
            (200, b"GET /live\n", "10"),
            (200, b"", "8"),
            (200, b"GET /b\n", "7"),
        ]


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as port:
        answer = await exchange(port, REQUEST * 3 + b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 4
    assert answer.endswith(b"GET /end\n")


async def test_a_body_is_not_read() -> None:
    async with serving() as port:
        answer = await exchange(port, b"POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close\r\n" in answer
    assert answer.endswith(b"POST /live\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"400"),
        (b"GET /live HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nHost : y\r\n\r\n", b"400"),
        (b"GET /li ve HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * HEAD_BYTES * 2, b"431"),
    ],
)
async def test_bad_requests(request_bytes: bytes, status: bytes) -> None:
    async with serving() as port:
        answer = await exchange(port, request_bytes)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert (await exchange(port, REQUEST.replace(b"1.1", b"1.0"))).endswith(b"GET /live\n")


async def test_a_fault_of_ours_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port:
        answer = await exchange(port, REQUEST.replace(b"/live", b"/broken").replace(b"1.1", b"1.0"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"ValueError" not in answer
    assert "ValueError: broken" in caplog.text


@pytest.mark.parametrize("sent", [b"", b"GET /li", REQUEST, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_who_is_slow_is_cut_off(sent: bytes) -> None:
    async with serving(times=Times(head=0.2, answer=0.2, idle=0.2)) as port:
        await exchange(port, sent)


async def test_who_does_not_read_is_cut_off() -> None:
    async with serving(times=Times(idle=0.5)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        await asyncio.sleep(1)
        answer = b""
        try:
            while more := await asyncio.wait_for(reader.read(1 << 20), 30):
                answer += more
        except ConnectionError:
            pass
        assert len(answer) < 100_000_000
        writer.close()


async def test_connections_are_limited() -> None:
    async with serving(connections=2, times=Times(head=0.5)) as port:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        # Those before are cut off in time, so that a later one gets its turn.
        assert (await exchange(port, REQUEST.replace(b"1.1", b"1.0"))).endswith(b"GET /live\n")
        for _, writer in idle:
            writer.close()


def garbage(seed: int) -> bytes:
    """A request with bytes changed, put in or left out; sometimes no request at all."""
    chance = random.Random(seed)
    if chance.random() < 0.2:
        return chance.randbytes(chance.randrange(500))
    data = bytearray(REQUEST * chance.randrange(1, 4))
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(data))
        data[place : place + chance.randrange(3)] = chance.choice((b"", b"\0", b"\r\n", b"\n", b":", b" ", b"\xff" * 9))
    return bytes(data)


async def test_whatever_is_sent_ends_in_time(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(times=Times(head=1.0, idle=1.0), connections=1000) as port:
        answers = await asyncio.gather(*(exchange(port, garbage(seed)) for seed in range(300)))
        assert (await exchange(port, REQUEST.replace(b"1.1", b"1.0"))).endswith(b"GET /live\n")
    assert {answer[:12] for answer in answers} >= {b"HTTP/1.1 200", b"HTTP/1.1 400"}
    assert all(answer.startswith(b"HTTP/1.1 ") for answer in answers if answer)
    assert "unexpectedly" not in caplog.text


# TLS


def lasting_root(uri: str = "spiffe://example.org", name: str = "root") -> Authority:
    """One that is valid today."""
    content = Certificate(uris=(uri,), subject=name, ca=True, usage=("key_cert_sign", "crl_sign"), not_after=LATER)
    return Authority.root(uri, "above").sub(content)


ROOT = lasting_root()


def leaf(uri: str = "spiffe://example.org/scraper", authority: Authority = ROOT) -> tuple[bytes, PrivateKey]:
    key = ec_key()
    return authority.sign(Certificate(uris=(uri,), not_after=LATER), key), key


def files(folder: Path, name: str, certificate: bytes, key: PrivateKey) -> tuple[str, str]:
    """The certificate and the key as PEM files."""
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(paths[0]), str(paths[1])


async def get(port: int, certificate: tuple[str, str] | None = None) -> bytes:
    """The body of an answer over TLS. Raises OSError or http.client.HTTPException."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(*certificate)

    def ask() -> bytes:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read()
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


REFUSED = (OSError, http.client.HTTPException)


def identity(uri: str = "spiffe://example.org/spire/server") -> InProcessIdentity:
    certificate, key = leaf(uri)
    return InProcessIdentity((certificate,), pkcs8(key))


async def test_client_authorities(tmp_path: Path) -> None:
    context = web_context(identity(), client_authorities=[ROOT.der])
    good, other = leaf(), leaf(authority=lasting_root(name="other"))
    async with serving(tls=lambda: context) as port:
        assert await get(port, files(tmp_path, "good", *good)) == b"GET /metrics\n"
        with pytest.raises(REFUSED):
            await get(port)
        with pytest.raises(REFUSED):
            await get(port, files(tmp_path, "other", *other))


async def test_without_client_authorities_nobody_is_asked(tmp_path: Path) -> None:
    context = web_context(identity())
    async with serving(tls=lambda: context) as port:
        assert await get(port) == b"GET /metrics\n"


async def test_who_is_refused_hears_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def never(_: object) -> None:
        raise Refused("not you")

    async with serving(authorize=never) as port:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()
    told = [record for record in caplog.records if "may not ask here: not you" in record.getMessage()]
    assert 1 <= len(told) < 20, "who tries again and again does not fill the log"


@asynccontextmanager
async def metrics_endpoint(port: int, tls: sections.Tls, own: InProcessIdentity) -> AsyncGenerator[None]:
    async def authorities(trust_domain: TrustDomain) -> Sequence[bytes]:
        if trust_domain.name != "example.org":
            raise NotFound("no bundle")
        return (ROOT.der,)

    config = sections.Prometheus(host="127.0.0.1", port=port, tls=tls)
    server = await serve_metrics(config, hello, SvidSource(lambda: own, authorities))
    try:
        yield
    finally:
        await server.close()


async def test_scrapers_by_their_spiffe_ids(tmp_path: Path, unused_port: int) -> None:
    tls = sections.Tls(use_spire_svid=True, authorized_spiffe_ids=("spiffe://example.org/scraper",))
    other_root = lasting_root("spiffe://other.org", "other")
    wrong = {
        "another name": leaf("spiffe://example.org/other"),
        "another authority": leaf(authority=other_root),
        "another trust domain": leaf("spiffe://other.org/scraper", other_root),
    }
    async with metrics_endpoint(unused_port, tls, identity()):
        assert await get(unused_port, files(tmp_path, "good", *leaf())) == b"GET /metrics\n"
        with pytest.raises(REFUSED):
            await get(unused_port)
        for name, pair in wrong.items():
            with pytest.raises(REFUSED):
                await get(unused_port, files(tmp_path, name, *pair))


async def test_certificates_from_files(tmp_path: Path, unused_port: int) -> None:
    certificate, key = files(tmp_path, "web", *leaf("spiffe://example.org/web"))
    async with metrics_endpoint(unused_port, sections.Tls(cert_file=certificate, key_file=key), identity()):
        assert await get(unused_port) == b"GET /metrics\n"


@pytest.mark.parametrize(
    ("tls", "reason"),
    [
        (sections.Tls(cert_file="gone", key_file="gone"), "gone cannot be read: No such file"),
        (sections.Tls(cert_file="junk", key_file="junk"), "junk holds no certificates in PEM"),
        (sections.Tls(cert_file="web.crt", key_file="junk"), "key_file junk holds no private key"),
        (sections.Tls(cert_file="web.crt", key_file="other.key"), "cannot be used for TLS"),
        (sections.Tls(use_spire_svid=True, authorized_spiffe_ids=("x",)), 'invalid authorized SPIFFE ID "x"'),
        (sections.Tls(cert_file="web.crt", key_file="web.key", client_ca_file="gone"), "gone cannot be read"),
    ],
)
async def test_certificates_that_cannot_be_used(
    tmp_path: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch, tls: sections.Tls, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files(tmp_path, "web", *leaf())
    files(tmp_path, "other", *leaf())
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(ConfigurationError, match=reason):
        async with metrics_endpoint(unused_port, tls, identity()):
            pass


async def test_a_port_that_is_taken_does_not_stop_the_program(unused_port: int) -> None:
    plain = sections.Prometheus(host="127.0.0.1", port=unused_port)

    async def authorities(_: TrustDomain) -> Sequence[bytes]:
        return ()

    source = SvidSource(identity, authorities)
    first = await serve_metrics(plain, hello, source)
    second = await serve_metrics(plain, hello, source)
    assert (await exchange(unused_port, REQUEST.replace(b"1.1", b"1.0"))).endswith(b"GET /live\n")
    await second.close()
    await first.close()
