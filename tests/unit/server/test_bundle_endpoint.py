"""The bundle endpoint over loopback: what it serves, to whom, and what it does not let itself be made to do."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from OpenSSL import SSL

from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations import logs
from operations.errors import SpireError, TemporarilyUnavailable
from server.config.federation import BundleEndpoint, HttpsSpiffe
from server.federation.endpoint import Endpoint
from tests.simulators.pki import Authority, ec_key, pkcs8, spki
from transport.acme.showing import AcmeContext
from transport.tls import InProcessIdentity, TlsContext, web_context

ROOT = Authority.root()
BUNDLE = Bundle(
    TrustDomain("example.org"),
    (X509Authority(ROOT.der, tainted=True),),
    (JwtAuthority("key-1", spki(ec_key()), 1_900_000_000),),
    refresh_hint=60,
    sequence_number=7,
)
SETTINGS = BundleEndpoint("127.0.0.1", 0, timedelta(minutes=5), HttpsSpiffe())


class Shown:
    """A ServingCertificate that stays."""

    def __init__(self, *, require_pq_kem: bool = False) -> None:
        key = ec_key()
        identity = InProcessIdentity((ROOT.sign(key=key),), pkcs8(key))
        self.context: TlsContext = web_context(identity, require_pq_kem=require_pq_kem)

    async def start(self) -> None:
        return

    def tls(self) -> TlsContext:
        return self.context

    async def run(self) -> None:
        return


class Source:
    """Gives the bundle, or what is wrong with it."""

    def __init__(self) -> None:
        self.bundle: Bundle | None = BUNDLE
        self.error: SpireError | None = None

    async def __call__(self) -> Bundle | None:
        if self.error is not None:
            raise self.error
        return self.bundle


@asynccontextmanager
async def serving(source: Source, shown: Shown | None = None) -> AsyncGenerator[int]:
    endpoint = Endpoint(SETTINGS, shown or Shown(), source, logs.get("bundle_endpoint"))
    port = await endpoint.listen()
    try:
        yield port
    finally:
        await endpoint.drain(0.0)


def anybody(*alpn: str, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client without a certificate, which does not look at the server's."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


Answer = tuple[int, str | None, bytes]


async def ask(port: int, method: str = "GET", target: str = "/", tls: ssl.SSLContext | None = None) -> Answer:
    def asked() -> Answer:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=tls or anybody())
        try:
            connection.request(method, target)
            response = connection.getresponse()
            return response.status, response.getheader("Content-Type"), response.read()
        finally:
            connection.close()

    return await asyncio.to_thread(asked)


async def test_the_document_is_the_bundle_with_the_configured_refresh_hint() -> None:
    async with serving(Source()) as port:
        status, kind, body = await ask(port)
        assert (status, kind) == (200, "application/json")
        document = json.loads(body)
        assert [key["use"] for key in document["keys"]] == ["x509-svid", "jwt-svid"]
        assert (document["spiffe_sequence"], document["spiffe_refresh_hint"]) == (7, 300)
        expected = replace(BUNDLE, x509_authorities=(X509Authority(ROOT.der),), refresh_hint=300)
        read = Bundle.from_jwks(TrustDomain("example.org"), body)
        assert read.x509_authorities == expected.x509_authorities
        assert read.jwt_authorities[0].key_id == "key-1"
        # Laid out as SPIRE's encoder does, which tools that compare texts rely on.
        assert body == json.dumps(document, indent=4).encode()
        assert await ask(port, target="/?any=thing") == (status, kind, body)


@pytest.mark.parametrize(
    ("method", "target", "answer"),
    [
        ("POST", "/", (405, b"405 method not allowed\n")),
        ("PUT", "/elsewhere", (405, b"405 method not allowed\n")),
        ("HEAD", "/", (405, b"")),
        ("GET", "/elsewhere", (404, b"404 page not found\n")),
        ("GET", "//", (404, b"404 page not found\n")),
    ],
)
async def test_what_is_asked_in_vain(method: str, target: str, answer: tuple[int, bytes]) -> None:
    async with serving(Source()) as port:
        status, kind, body = await ask(port, method, target)
        assert (status, body) == answer
        assert kind == "text/plain; charset=utf-8"


async def test_a_bundle_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    async with serving(source) as port:
        source.bundle = None
        assert (await ask(port))[::2] == (500, b"500 unable to retrieve local bundle\n")
        source.error = TemporarilyUnavailable("the datastore is away")
        assert (await ask(port))[::2] == (500, b"500 unable to retrieve local bundle\n")
        assert [record.getMessage() for record in caplog.records] == ["Unable to retrieve local bundle"] * 2
        source.bundle, source.error = replace(BUNDLE, x509_authorities=(X509Authority(b"no certificate"),)), None
        assert (await ask(port))[::2] == (500, b"500 unable to marshal local bundle\n")
        source.bundle = BUNDLE
        assert (await ask(port))[0] == 200


async def test_a_changed_bundle_is_served_at_once() -> None:
    source = Source()
    async with serving(source) as port:
        first = await ask(port)
        source.bundle = replace(BUNDLE)  # another object, the same bundle
        assert await ask(port) == first
        source.bundle = replace(BUNDLE, sequence_number=8)
        assert json.loads((await ask(port))[2])["spiffe_sequence"] == 8


@pytest.mark.parametrize(
    "tls",
    [
        anybody("h2", "http/1.1"),
        anybody("h2"),
        anybody(version=ssl.TLSVersion.TLSv1_2),
        anybody("http/1.1", version=ssl.TLSVersion.TLSv1_3),
    ],
    ids=["offers-h2-too", "offers-h2-alone", "tls-1.2", "tls-1.3"],
)
async def test_clients_of_all_kinds(tls: ssl.SSLContext) -> None:
    async with serving(Source()) as port:
        assert (await ask(port, tls=tls))[0] == 200


def of_acme() -> TlsContext:
    key = ec_key()
    return AcmeContext("localhost", InProcessIdentity((ROOT.sign(key=key),), pkcs8(key)), None, require_pq_kem=True)


@pytest.mark.parametrize("context", [None, of_acme], ids=["own-svid-or-files", "acme"])
async def test_post_quantum_key_exchange_is_required_where_that_is_configured(
    context: Callable[[], TlsContext] | None,
) -> None:
    shown = Shown(require_pq_kem=True)
    if context is not None:
        shown.context = context()
    async with serving(Source(), shown) as port:
        assert await asyncio.to_thread(shake, port) == "X25519MLKEM768"
        with pytest.raises(OSError):
            await ask(port, tls=anybody(version=ssl.TLSVersion.TLSv1_2))


def shake(port: int) -> str | None:
    """The key exchange that a client gets that offers them all."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.settimeout(None)
        connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), sock)
        connection.set_tlsext_host_name(b"localhost")
        connection.set_connect_state()
        connection.do_handshake()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        return connection.get_group_name()


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=anybody())
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return answer


async def test_nobody_is_waited_for_or_listened_to_without_end() -> None:
    async with serving(Source()) as port:
        endless = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"x" * 70_000
        assert (await raw(port, endless))[:12] in (b"HTTP/1.1 431", b"")
        assert (await raw(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")
        body = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        assert (await raw(port, body)).startswith(b"HTTP/1.1 405")  # and the body is not awaited
        assert (await ask(port))[0] == 200


async def test_a_taken_address_is_named_by_its_settings() -> None:
    async with serving(Source()) as port:
        endpoint = Endpoint(replace(SETTINGS, port=port), Shown(), Source(), logs.get("bundle_endpoint"))
        with pytest.raises(TemporarilyUnavailable, match=r"change address and port of federation\.bundle_endpoint"):
            await endpoint.listen()
