"""BundlePublisher and Notifier "https": what arrives, who is believed, and what a bad place can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from identity.bundles import Bundle
from operations import logs
from operations.errors import ConfigurationError, InvalidArgument, PermanentlyUnusable, Refused, TemporarilyUnavailable
from publishers import bundle_web, web_target
from publishers.bundle_web import NotifierConfiguration, PublisherConfiguration, WebNotifier, WebPublisher
from tests.simulators.bundle_sink import BundleSink
from tests.simulators.house import TRUST_DOMAIN
from tests.simulators.web_pki import Files, WebAuthority
from transport.tls import InProcessIdentity

BUNDLE = Bundle(TRUST_DOMAIN, sequence_number=7)
_GOOD: dict[str, Any] = {"url": "https://h/", "format": "pem"}


@pytest.fixture
def authority(tmp_path: Path) -> WebAuthority:
    return WebAuthority(tmp_path)


@pytest.fixture
def place(authority: WebAuthority) -> Files:
    return authority.issue("sink", "localhost")


def nobody() -> InProcessIdentity:
    raise TemporarilyUnavailable("the server has no X509-SVID yet")


def publisher(
    sink: BundleSink, authority: WebAuthority, identity: Callable[[], InProcessIdentity] = nobody, **settings: Any
) -> WebPublisher:
    given: dict[str, Any] = {
        "url": f"{sink.url}/b?sig=secret",
        "format": "spiffe",
        "ca_cert_path": str(authority.file),
        **settings,
    }
    return WebPublisher(PublisherConfiguration(**given), identity, logs.get("test"))


def in_memory(files: Files) -> InProcessIdentity:
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    private = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return InProcessIdentity((certificate.public_bytes(serialization.Encoding.DER),), private)


async def test_the_document_is_sent_once_and_again_after_a_while(
    authority: WebAuthority, place: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BundleSink(place, status=204) as sink:
        web = publisher(sink, authority, headers={"X-Colour": "blue"})
        await web.publish(BUNDLE)
        await web.publish(BUNDLE)
        (sent,) = sink.sent
        assert (sent.method, sent.path, json.loads(sent.body)["spiffe_sequence"]) == ("PUT", "/b?sig=secret", 7)
        assert (sent.headers["Content-Type"], sent.headers["X-Colour"]) == ("application/json", "blue")
        assert "Authorization" not in sent.headers
        await web.publish(Bundle(TRUST_DOMAIN, sequence_number=8))
        monkeypatch.setattr(bundle_web, "AGAIN", 0.0)
        await web.publish(Bundle(TRUST_DOMAIN, sequence_number=8))
        assert [json.loads(each.body)["spiffe_sequence"] for each in sink.sent] == [7, 8, 8]
        await publisher(sink, authority, method="POST", format="pem").publish(BUNDLE)
        assert (sink.sent[-1].method, sink.sent[-1].body) == ("POST", b"")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Refused),
        (403, Refused),
        (404, PermanentlyUnusable),
        (307, PermanentlyUnusable),
        (429, TemporarilyUnavailable),
        (500, TemporarilyUnavailable),
        (503, TemporarilyUnavailable),
    ],
)
async def test_an_answer_that_is_no_success_is_one_line(
    authority: WebAuthority, place: Files, status: int, kind: type[Exception]
) -> None:
    with BundleSink(place, status=status, headers={"Location": "https://elsewhere.example/"}) as sink:
        web = publisher(sink, authority)
        with pytest.raises(kind, match=rf"^https://localhost:\d+/b answered {status} to PUT: ") as error:
            await web.publish(BUNDLE)
        assert "secret" not in str(error.value)
        sink.status = 200
        await web.publish(BUNDLE)
        assert len(sink.sent) == 2


async def test_a_place_that_is_slow_endless_gone_or_somebody_else(
    authority: WebAuthority, place: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BundleSink(place, endless=True) as sink:
        with pytest.raises(Refused, match=r"sent more than 65536 bytes for /b$"):
            await publisher(sink, authority).publish(BUNDLE)
        other = tmp_path / "other"
        other.mkdir()
        with pytest.raises(TemporarilyUnavailable, match="its certificate is not trusted"):
            await publisher(sink, WebAuthority(other)).publish(BUNDLE)
        with pytest.raises(TemporarilyUnavailable, match="its certificate is not trusted"):
            await publisher(sink, authority, url=sink.url.replace("localhost", "127.0.0.1")).publish(BUNDLE)
        gone = publisher(sink, authority)
    with pytest.raises(TemporarilyUnavailable, match="cannot reach https://localhost"):
        await gone.publish(BUNDLE)
    with BundleSink(place, silent=True) as sink:
        monkeypatch.setattr(web_target, "TIMEOUT", 1.0)
        with pytest.raises(TemporarilyUnavailable, match="did not answer within 1 s"):
            await publisher(sink, authority).publish(BUNDLE)


async def test_a_client_certificate_from_files_or_of_the_server(authority: WebAuthority, place: Files) -> None:
    client = authority.issue("client", "client.example.org", client=True)
    with BundleSink(place, clients=authority.file) as sink:
        with pytest.raises(TemporarilyUnavailable):
            await publisher(sink, authority).publish(BUNDLE)
        pair: dict[str, Any] = {"client_cert_path": str(client.certificate), "client_key_path": str(client.key)}
        await publisher(sink, authority, **pair).publish(BUNDLE)
        own = in_memory(client)
        await publisher(sink, authority, lambda: own, use_spire_svid=True).publish(BUNDLE)
        assert [each.client for each in sink.sent] == [("client.example.org",)] * 2
        with pytest.raises(TemporarilyUnavailable, match="no X509-SVID yet"):
            await publisher(sink, authority, use_spire_svid=True).publish(BUNDLE)


async def test_a_bearer_token_is_read_each_time(
    authority: WebAuthority, place: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    token.chmod(0o600)
    monkeypatch.setattr(bundle_web, "AGAIN", 0.0)
    with BundleSink(place) as sink:
        web = publisher(sink, authority, bearer_token_file=str(token))
        await web.publish(BUNDLE)
        token.write_text("second")
        await web.publish(BUNDLE)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        await publisher(sink, authority, bearer_token_credential="token").publish(BUNDLE)
        said = [each.headers["Authorization"] for each in sink.sent]
        assert said == ["Bearer first", "Bearer second", "Bearer second"]
        token.write_text("two\r\nlines")
        with pytest.raises(ConfigurationError, match="must be one line"):
            await web.publish(BUNDLE)
        token.chmod(0o644)
        with pytest.raises(ConfigurationError, match="open to others"):
            await web.publish(BUNDLE)
        assert len(sink.sent) == 3


async def test_a_notifier_posts_events(authority: WebAuthority, place: Files) -> None:
    with BundleSink(place) as sink:
        given = NotifierConfiguration(url=sink.url, ca_cert_path=str(authority.file))
        notifier = WebNotifier(given, nobody)
        await notifier.bundle_loaded(BUNDLE)
        await notifier.bundle_updated(BUNDLE)
        assert [(each.method, json.loads(each.body)) for each in sink.sent] == [
            (
                "POST",
                {
                    "event": event,
                    "trust_domain": "example.org",
                    "sequence_number": 7,
                    "bundle": {"keys": [], "spiffe_sequence": 7},
                },
            )
            for event in ("bundle_loaded", "bundle_updated")
        ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": ""}, "url is missing"),
        ({"url": "http://h/"}, "url must begin with https://"),
        ({"url": "https://user:password@h/"}, "a URL with a user's name is not taken"),
        ({"method": "DELETE"}, "use PUT or POST"),
        ({"format": ""}, "format is missing"),
        ({"client_cert_path": "/c"}, "need each other"),
        ({"client_cert_path": "/c", "client_key_path": "/k", "use_spire_svid": True}, "exclude each other"),
        ({"bearer_token_file": "/t", "bearer_token_credential": "t"}, "exclude each other"),
        ({"headers": {"authorization": "Bearer x"}}, "is a secret"),
        ({"headers": {"Host": "h"}}, "cannot be set here"),
        ({"headers": {"X": "a\r\nY: b"}}, "cannot be set here"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as error:
        PublisherConfiguration(**_GOOD | settings)
    assert "password" not in str(error.value)


def test_files_that_cannot_be_used(tmp_path: Path, authority: WebAuthority) -> None:
    client = authority.issue("client", client=True)
    other = authority.issue("other", client=True)
    (tmp_path / "open").write_text("token")
    (tmp_path / "open").chmod(0o644)
    faults: list[tuple[dict[str, Any], str]] = [
        ({"ca_cert_path": "/none"}, "ca_cert_path /none: No such file"),
        ({"client_cert_path": "/none", "client_key_path": "/none"}, "client_key_path /none: No such file"),
        ({"client_cert_path": str(client.certificate), "client_key_path": str(other.key)}, "(?i)key values mismatch"),
        ({"bearer_token_file": str(tmp_path / "open")}, "open to others"),
    ]
    for settings, words in faults:
        with pytest.raises(ConfigurationError, match=words):
            NotifierConfiguration(url="https://h/", **settings).check_files()
