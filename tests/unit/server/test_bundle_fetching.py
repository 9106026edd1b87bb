"""Bundles from endpoints, good and hostile ones: what gets through, and the line that says why the rest does not."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, Refused, SpireError, TemporarilyUnavailable
from server.config.federation import Federated
from server.federation.fetching import LARGEST, BundleFetcher
from server.federation.judging import judge
from tests.simulators import pki
from tests.simulators.bundle_endpoint import Answer, Endpoint, bundle_of, by_svid, context_of, serving, svid_context
from tests.simulators.callers import ForeignDomain
from tests.simulators.web_pki import WebAuthority

OTHER = ForeignDomain.of("other.org")
THIRD = ForeignDomain.of("third.org")
ROOTS = [OTHER.authority.der]
BUNDLE = bundle_of(OTHER, sequence=7, hint=60)
PATIENCE = 60.0


@asynccontextmanager
async def fetching(
    timeout: float = PATIENCE,  # noqa: ASYNC109 - the fetcher's
    *,
    require_pq_kem: bool = False,
    trusting: Callable[[], ssl.SSLContext] | None = None,
    clock: Callable[[], float] = time.time,
    proxy: str = "",
) -> AsyncGenerator[BundleFetcher]:
    fetcher = BundleFetcher(
        {"HTTPS_PROXY": proxy}, require_pq_kem=require_pq_kem, trusting=trusting, clock=clock, timeout=timeout
    )
    try:
        yield fetcher
    finally:
        fetcher.close()


async def refusal(federated: Federated, roots: list[bytes] | None = None, seconds: float = PATIENCE) -> SpireError:
    async with fetching(seconds) as fetcher:
        with pytest.raises(SpireError) as error:
            await fetcher.fetch(federated, ROOTS if roots is None else roots)
    assert "\n" not in str(error.value)
    return error.value


@asynccontextmanager
async def endpoint(
    tmp_path: Path, domain: ForeignDomain = OTHER, path: str = "/spire/server"
) -> AsyncGenerator[Endpoint]:
    async with serving(svid_context(tmp_path, domain, path)) as made:
        made.give(BUNDLE)
        yield made


# Who answers


async def test_an_endpoint_known_by_its_spiffe_id(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as served, fetching() as fetcher:
        assert await fetcher.fetch(by_svid(OTHER, served.url), ROOTS) == BUNDLE
        assert served.asked == ["/bundle"]


async def test_a_proxy_on_the_way(tmp_path: Path) -> None:
    """It resolves the name, and sees nothing of what is said."""
    async with endpoint(tmp_path) as served:
        seen: list[bytes] = []

        async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            there, back = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(copied(reader, back, seen), copied(there, writer, seen), return_exceptions=True)

        async with await asyncio.start_server(tunnel, "127.0.0.1", 0) as proxy:
            url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
            async with fetching(proxy=url) as fetcher:
                federated = by_svid(OTHER, served.url.replace("localhost", "bundle.other.org"))
                assert await fetcher.fetch(federated, ROOTS) == BUNDLE
        assert seen[0].startswith(b"CONNECT bundle.other.org:%d HTTP/1.1" % served.port)
        assert b"spiffe_sequence" not in b"".join(seen)


async def copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[bytes]) -> None:
    try:
        while data := await reader.read(65536):
            seen.append(data)
            writer.write(data)
    finally:
        writer.transport.abort()


async def test_a_post_quantum_key_exchange_is_asked_for(tmp_path: Path) -> None:
    """The interpreter's OpenSSL has none on Debian 12, so the endpoint there is one that cannot agree."""
    context = svid_context(tmp_path, OTHER)
    context.set_ecdh_curve("prime256v1")
    async with serving(context) as served, fetching(require_pq_kem=True) as fetcher:
        served.give(BUNDLE)
        with pytest.raises(TemporarilyUnavailable, match=r"tls: |post-quantum"):
            await fetcher.fetch(by_svid(OTHER, served.url), ROOTS)
        assert served.asked == []


@pytest.mark.parametrize(
    ("domain", "path", "line"),
    [
        (OTHER, "/spire/agent", 'shows an X509-SVID of "spiffe://other.org/spire/agent", and has to be'),
        (THIRD, "/spire/server", 'shows an X509-SVID of "spiffe://third.org/spire/server", and has to be'),
        (ForeignDomain.of("other.org"), "/spire/server", "does not prove that it is"),
    ],
    ids=["path", "domain", "authority"],
)
async def test_an_endpoint_with_a_wrong_identity_is_asked_nothing(
    tmp_path: Path, domain: ForeignDomain, path: str, line: str
) -> None:
    async with endpoint(tmp_path, domain, path) as served:
        error = await refusal(by_svid(OTHER, served.url))
        assert isinstance(error, Refused)
        assert line in str(error)
        assert "spiffe://other.org/spire/server" in str(error)
        assert served.asked == []


async def test_an_expired_endpoint_is_asked_nothing(tmp_path: Path) -> None:
    async with serving(svid_context(tmp_path, OTHER, age=0.9, lifetime=-0.1)) as served:
        assert "certificate has expired" in str(await refusal(by_svid(OTHER, served.url)))
        assert served.asked == []


async def test_a_web_certificate_is_no_svid(tmp_path: Path) -> None:
    files = WebAuthority(tmp_path).issue("web", "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    async with serving(context) as served:
        line = str(await refusal(by_svid(OTHER, served.url)))
    assert line.startswith("the bundle endpoint shows no X509-SVID: certificate contains no URI SAN")
    assert "https_web" in line


async def test_who_knows_no_authority_of_the_endpoint_does_not_connect(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as served:
        line = str(await refusal(by_svid(OTHER, served.url), []))
        assert "local copy of bundle not found" in line
        assert "`spire-server bundle set -id spiffe://other.org`" in line
        later = time.time() + 3 * 3600
        async with fetching(clock=lambda: later) as fetcher:
            with pytest.raises(Refused, match=r"the last X.509 authority known of .* expired at .*bundle set"):
                await fetcher.fetch(by_svid(OTHER, served.url), ROOTS)
        assert served.most == 0


async def test_an_endpoint_of_the_web(tmp_path: Path) -> None:
    authority = WebAuthority(tmp_path)
    files = authority.issue("web", "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    trusting = lambda: ssl.create_default_context(cafile=str(authority.file))  # noqa: E731 - one line
    async with serving(context) as served:
        served.give(BUNDLE)
        federated = Federated(TrustDomain("other.org"), served.url)
        async with fetching(trusting=trusting) as fetcher:
            assert await fetcher.fetch(federated) == BUNDLE
            elsewhere = dataclasses.replace(federated, url=served.url.replace("localhost", "127.0.0.1"))
            with pytest.raises(TemporarilyUnavailable, match="its certificate is not trusted: IP address mismatch"):
                await fetcher.fetch(elsewhere)
        assert served.asked == ["/bundle"]
        assert "its certificate is not trusted" in str(await refusal(federated))


async def test_an_svid_for_the_web_brings_a_hint(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as served:
        line = str(await refusal(Federated(TrustDomain("other.org"), served.url)))
        assert line.startswith("failed to authenticate bundle endpoint using web authentication but the server ")
        assert 'contains SPIFFE ID "spiffe://other.org/spire/server": maybe use https_spiffe instead' in line
        assert served.asked == []


async def test_who_is_not_there(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as served:
        pass
    error = await refusal(by_svid(OTHER, served.url))
    assert isinstance(error, TemporarilyUnavailable)
    assert str(error).startswith(f"cannot reach https://localhost:{served.port}: ")


async def test_what_speaks_no_tls_or_never_speaks() -> None:
    async def http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(http, "127.0.0.1", 0)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert str(await refusal(by_svid(OTHER, url))).startswith("cannot reach https://127.0.0.1:")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        error = await refusal(by_svid(OTHER, url), seconds=1.0)
    assert "has not answered in full within 1 s" in str(error)
    assert isinstance(error, TemporarilyUnavailable)


# What is answered


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (Answer(b"{", endless=b"x" * 65536), f"sent more than {LARGEST} bytes"),
        (Answer(b"{", length=100, hold=True), "has not answered in full within 1 s"),
        (Answer(b"{", length=100), "gave no proper answer"),
        (Answer(b"<html>", headers=["Content-Encoding: gzip"]), 'gives the bundle as "gzip", which was not asked for'),
        (Answer(b"over\nloaded", "503 Busy"), "unexpected status 503 fetching bundle from https://localhost:"),
        (Answer(b"x" * 5000, "500 Oops"), f'"{"x" * 200}"'),
        (Answer(b"<html>"), "failed to decode bundle: unable to parse JWKS: "),
        (Answer(b"\xff\xfe"), "failed to decode bundle: unable to parse JWKS: "),
        (Answer(b'{"keys":[{"kty":"EC"}]}'), "failed to decode bundle: missing use for key entry 0"),
        (Answer(b"[" * 100_000), "failed to decode bundle: unable to parse JWKS: "),
        (Answer(b"", "302 Found"), "unexpected status 302 fetching bundle"),
        (Answer(b"", "302 Found", ["Location: http://localhost/bundle"]), "without TLS"),
        (Answer(b"", "302 Found", ["Location: https://me:secret@localhost/"]), "a URL with a user's name is not taken"),
        (Answer(b"", "307 Loop", ["Location: /bundle"]), "redirects more than 10 times"),
    ],
    ids=lambda value: None if isinstance(value, Answer) else value[:30],
)
async def test_a_bad_answer(tmp_path: Path, answer: Answer, line: str) -> None:
    async with endpoint(tmp_path) as served:
        served.answers["/bundle"] = answer
        error = await refusal(by_svid(OTHER, served.url), seconds=1.0 if answer.hold else PATIENCE)
        assert line in str(error)
        assert "secret" not in str(error)
        assert isinstance(error, (Refused, TemporarilyUnavailable, InvalidArgument))


async def test_a_redirect_leads_to_the_same_identity_only(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as first, endpoint(tmp_path) as same, endpoint(tmp_path, THIRD) as another:
        first.answers["/bundle"] = Answer(b"", "307 There", [f"Location: {same.url}"])
        async with fetching() as fetcher:
            assert await fetcher.fetch(by_svid(OTHER, first.url), ROOTS) == BUNDLE
        first.answers["/bundle"] = Answer(b"", "307 There", [f"Location: {another.url}"])
        assert 'X509-SVID of "spiffe://third.org/spire/server"' in str(await refusal(by_svid(OTHER, first.url)))
        assert (same.asked, another.asked) == (["/bundle"], [])


async def test_an_endpoint_below_an_intermediate(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    content = pki.Certificate(uris=("spiffe://other.org",), subject="i", ca=True, usage=("key_cert_sign",))
    between = OTHER.authority.sub(dataclasses.replace(content, not_before=now - pki.HOUR, not_after=now + pki.HOUR))
    key = pki.ec_key()
    leaf = pki.Certificate(uris=("spiffe://other.org/b",), not_before=now - pki.HOUR, not_after=now + pki.HOUR)
    async with serving(context_of(tmp_path, [between.sign(leaf, key), between.der], key)) as served:
        served.give(BUNDLE)
        async with fetching() as fetcher:
            assert await fetcher.fetch(by_svid(OTHER, served.url, "/b"), ROOTS) == BUNDLE


# Whether it may take the other's place

NOW = datetime.now(UTC)
WEB = Federated(TrustDomain("other.org"), "https://other.org")
KEY = JwtAuthority("key", pki.spki(pki.ec_key()))


def other(*authorities: bytes, jwt: tuple[JwtAuthority, ...] = (), sequence: int = 0) -> Bundle:
    return Bundle(TrustDomain("other.org"), tuple(map(X509Authority, authorities)), jwt, 0, sequence)


def test_bundles_that_may_follow() -> None:
    good = other(OTHER.authority.der, sequence=5)
    for known in (None, good, other(sequence=4), other(sequence=0), other(THIRD.authority.der)):
        judge(good, known, WEB, NOW)
    judge(other(OTHER.authority.der), good, WEB, NOW)
    # Of the same number, and others than before: the one that came last counts.
    judge(other(OTHER.authority.der, jwt=(KEY,), sequence=5), good, WEB, NOW)
    judge(other(jwt=(KEY,)), None, WEB, NOW)
    # An expired authority beside a good one is in every rotation.
    judge(other(OTHER.authority.der, expired()), None, WEB, NOW)
    # An authority of the web has no SPIFFE ID.
    judge(other(pki.Authority.root("https://other.org").der, OTHER.authority.der), None, WEB, NOW)


def expired() -> bytes:
    content = pki.Certificate(uris=("spiffe://other.org",), ca=True, not_before=NOW - 3 * pki.HOUR)
    return OTHER.authority.sign(dataclasses.replace(content, not_after=NOW - pki.HOUR))


@pytest.mark.parametrize(
    ("fetched", "line"),
    [
        (lambda: other(), "has no authority at all"),
        (lambda: other(OTHER.authority.der, THIRD.authority.der), 'has an X.509 authority of "spiffe://third.org", so'),
        (
            lambda: other(pki.Authority.root("SPIFFE://third.org/x").der),
            'has an X.509 authority of "SPIFFE://third.org',
        ),
        (lambda: other(expired()), "all X.509 authorities of the fetched bundle have expired, the last one at "),
        (lambda: other(jwt=(KEY,)), "its endpoint could never be verified again"),
        (
            lambda: other(OTHER.authority.der, sequence=4),
            "has the sequence number 4, so it is older than the one there",
        ),
    ],
    ids=["empty", "merged", "capitals", "expired", "no-x509", "older"],
)
def test_bundles_that_may_not(fetched: Callable[[], Bundle], line: str) -> None:
    federated = dataclasses.replace(WEB, endpoint_id=SpiffeId(TrustDomain("other.org"), "/spire/server"))
    known = other(OTHER.authority.der, sequence=5)
    with pytest.raises(Refused, match=line) as error:
        judge(fetched(), known, federated, NOW + timedelta(seconds=1))
    assert "\n" not in str(error.value)
