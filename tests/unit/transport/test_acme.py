"""Certificates by ACME: had, renewed, refused, and taken up again after a kill. Pebble is asked in tests/interop."""

from __future__ import annotations

import asyncio
import datetime
import logging
import socket
import ssl
import stat
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from keystores.memory import MemoryKeyManager
from operations import logs
from operations.errors import ConfigurationError, Refused
from operations.http import Request, Response
from plugins.acme_account import AcmeAccount
from plugins.keymanager import KeyType
from tests.simulators.acme import PROBLEM, AcmeServer, Canned, problem, proof_at
from transport.acme import ordering
from transport.acme.certificate import AcmeCertificate, Times
from transport.acme.jose import AccountKey, Signer
from transport.acme.messages import retry_after
from transport.acme.ordering import Patience
from transport.acme.settings import AcmeSettings
from transport.http import HttpServer

NAME = "bundle.test"
FAST = Times(look=0.02, retry=0.05, longest=0.2, patience=Patience(0.02, 0.1, 20.0))
ONCE = Times(look=0.02, retry=3600.0, longest=3600.0, patience=Patience(0.02, 0.1, 20.0))


@pytest.fixture
def ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AcmeServer]:
    with AcmeServer(tmp_path) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.authority.file))
        yield server


class House:
    """What a program has: keys, a folder, and a port that shows the certificate."""

    def __init__(self, ca: AcmeServer, folder: Path, log: pytest.LogCaptureFixture) -> None:
        self.ca = ca
        self.folder = folder
        self.manager = MemoryKeyManager()
        self.log = log
        self.port = 0
        self.certificate: AcmeCertificate | None = None

    @asynccontextmanager
    async def running(
        self, times: Times = FAST, *, keys: Callable[[], Awaitable[AccountKey]] | None = None, **settings: Any
    ) -> AsyncGenerator[AcmeCertificate]:
        made = replace(AcmeSettings(self.ca.directory, NAME, "ops@example.org", tos_accepted=True), **settings)
        keys = keys or AcmeAccount(self.manager, "bundle-acme-")
        certificate = self.certificate = AcmeCertificate(made, keys, self.folder, logs.get("acme"), times=times)
        await certificate.start()
        server = HttpServer(hello)
        self.port = self.ca.port = await server.listen_tcp("127.0.0.1", 0, "port", tls=certificate.tls)
        task = asyncio.create_task(certificate.run())
        try:
            yield certificate
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.close()

    def said(self) -> list[str]:
        """Each error and warning, with its fields."""
        return [
            f"{record.message}: {getattr(record, 'fields', {}).get('error', '')}"
            for record in self.log.records
            if record.levelno >= logging.WARNING
        ]

    async def says(self, text: str) -> str:
        await eventually(lambda: any(text in line for line in self.said()), lambda: f"{text!r} in {self.said()}")
        return next(line for line in self.said() if text in line)

    async def shows(self, other_than: x509.Certificate | None = None) -> x509.Certificate:
        """The certificate, once there is one that clients take."""
        found: list[x509.Certificate] = []

        async def there() -> bool:
            try:
                found[:] = [await asyncio.to_thread(ask, self.port, self.ca.authority.file)]
            except OSError:
                return False
            return found[0] != other_than

        deadline = time.monotonic() + 30
        while not await there():
            assert time.monotonic() < deadline, self.said()
            await asyncio.sleep(0.02)
        return found[0]


@pytest.fixture
def house(ca: AcmeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> House:
    caplog.set_level(logging.INFO, "spire")
    return House(ca, tmp_path / "acme", caplog)


async def hello(_: Request) -> Response:
    return Response(200, b"hello\n")


def ask(port: int, trusted: Path, name: str = NAME) -> x509.Certificate:
    """As a client of the web does it."""
    context = ssl.create_default_context(cafile=str(trusted))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname=name) as connection,
    ):
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.endswith(b"hello\n"), answer
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")


async def eventually(holds: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.02)


async def test_a_certificate_is_had_and_shown(house: House, ca: AcmeServer) -> None:
    proofs: list[bytes | None] = []
    ca.entered = lambda step: proofs.append(proof_at(ca.port, NAME)) if step in ("finalize", "directory") else None
    async with house.running():
        shown = await house.shows()
        await eventually(lambda: "order" in ca.asked, lambda: "an order")
    assert names(shown) == [NAME]
    assert ca.contacts == [["mailto:ops@example.org"]]
    assert proofs == [None, None], "a proof is shown while its challenge is pending, and at no other time"
    for file in house.folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(house.folder.stat().st_mode) == 0o700
    assert [key.id for key in await house.manager.list()] == ["bundle-acme-acme_account+key"]
    assert house.said() == []


async def test_a_restart_shows_what_there_is_and_asks_nobody(house: House, ca: AcmeServer) -> None:
    async with house.running():
        shown = await house.shows()
        await eventually(lambda: not (house.folder / f"{NAME}.order.json").read_text().count("http"), lambda: "kept")
    ca.asked.clear()
    async with house.running():
        assert await house.shows() == shown
        await asyncio.sleep(0.2)
    assert not ca.asked


async def test_a_certificate_is_renewed_by_the_same_account_with_another_key(house: House, ca: AcmeServer) -> None:
    ca.age, ca.validity = datetime.timedelta(days=61), datetime.timedelta(days=90)  # its last third has begun
    async with house.running():
        first = await house.shows()
        second = await house.shows(other_than=first)
    assert first.public_key() != second.public_key()
    assert len({str(each) for each in ca.contacts}) == 1
    assert len(await house.manager.list()) == 1


async def test_renewal_is_30_days_before_the_end_or_in_the_last_third_of_a_short_life(
    house: House, ca: AcmeServer
) -> None:
    ca.validity = datetime.timedelta(days=6)
    async with house.running() as certificate:
        await house.shows()
        left = certificate.renew_at - time.time()
    assert 3.8 * 86400 < left < 4 * 86400


async def test_an_expired_certificate_is_not_shown_again_after_a_restart(house: House, ca: AcmeServer) -> None:
    ca.validity = datetime.timedelta(minutes=1, seconds=2)
    async with house.running(ONCE):
        await eventually(lambda: (house.folder / f"{NAME}.pem").exists(), lambda: "a certificate")
        ca.answers["directory"] = [problem("serverInternal", "away", 500)] * 9
        await house.says("The certificate has expired, and clients refuse it")
    async with house.running(ONCE):
        assert "has expired" in await house.says("The kept certificate cannot be shown")


@pytest.mark.parametrize("name", ["other.test", None])
async def test_clients_of_another_name_and_of_none_get_an_alert(house: House, name: str | None) -> None:
    async with house.running():
        await house.shows()
        assert await asyncio.to_thread(alert, house.port, name) == "handshake failure"


async def test_without_a_certificate_clients_get_an_alert(house: House, ca: AcmeServer) -> None:
    ca.answers["directory"] = [problem("serverInternal", "away", 500)]
    async with house.running(ONCE):
        await house.says("away")
        assert await asyncio.to_thread(alert, house.port, NAME) == "handshake failure"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", [False, True])
async def test_a_validator_sees_the_proof_and_others_do_not(
    house: House, ca: AcmeServer, version: ssl.TLSVersion, *, shown: bool
) -> None:
    async with house.running() as certificate:
        if shown:
            await house.shows()
        else:
            ca.answers["directory"] = [problem("serverInternal", "", 500)] * 999
        certificate.prove("token.thumbprint")
        assert await asyncio.to_thread(proof_at, house.port, NAME, version)
        assert await asyncio.to_thread(proof_at, house.port, "other.test", version) is None
        for alpn in (["acme-tls/1", "http/1.1"], ["http/1.1"], []):
            spoken = await asyncio.to_thread(speaks, house.port, NAME, version, alpn)
            assert spoken is (shown and alpn != ["acme-tls/1", "http/1.1"]), alpn
        certificate.prove(None)
        assert await asyncio.to_thread(proof_at, house.port, NAME, version) is None


HTML = Canned(200, b"<html>hello</html>", "text/html")
REFUSALS: dict[str, tuple[str, Canned, str]] = {
    "rate-limited": ("order", problem("rateLimited", "too many", 429, Retry_After="7200"), "rateLimited: too many"),
    "unauthorized": ("account", problem("unauthorized", "account is deactivated"), "unauthorized: account is deact"),
    "terms-changed": ("order", problem("userActionRequired", "new terms"), "userActionRequired: new terms"),
    "caa": ("finalize", problem("caa", "CAA forbids"), "caa: CAA forbids"),
    "html": ("directory", HTML, 'sends "text/html" where application/json is due'),
    "html-error": ("order", Canned(502, b"<html>", "text/html"), "answers 502, and no problem document"),
    "redirect": ("order", Canned(302, b"", headers={"Location": "/"}), "answers 302, and no problem document"),
    "endless": ("order", Canned(201, b" " * 65536, endless=True), "sent more than 65536 bytes"),
    "no-json": ("order", Canned(201, b"{"), "the ACME server's answer cannot be read"),
    "bad-order": ("order", Canned(201, b'{"status": "great"}'), "the ACME server's answer cannot be read"),
    "deep": ("order", Canned(201, b"[" * 60000), "the ACME server's answer cannot be read"),
    "no-location": ("account", Canned(201, b"{}"), "names no account"),
    "plain-http": (
        "directory",
        Canned(200, b'{"newNonce": "http://x/", "newAccount": "http://x/", "newOrder": "https://x/"}'),
        "which is not https",
    ),
    "no-chain": ("certificate", Canned(200, b"hello", "application/pem-certificate-chain"), "cannot be read"),
    "wrong-content": ("certificate", Canned(200, b"hello", "text/plain"), 'sends "text/plain" where application/pem'),
    "two-lines": ("order", Canned(403, b'{"type": "x", "detail": "one\\ntwo"}', PROBLEM), "one\\ntwo"),
    "another-name": (
        "authorization",
        Canned(200, b'{"status": "pending", "identifier": {"type": "dns", "value": "evil.test"}, "challenges": []}'),
        "a proof for another name",
    ),
    "no-challenge": (
        "authorization",
        Canned(200, b'{"status": "pending", "identifier": {"type": "dns", "value": "bundle.test"}}'),
        "offers no tls-alpn-01",
    ),
    "bad-token": (
        "authorization",
        Canned(
            200,
            b'{"status": "pending", "identifier": {"type": "dns", "value": "bundle.test"}, "challenges":'
            b' [{"type": "tls-alpn-01", "url": "https://x/", "token": "a b"}]}',
        ),
        "token is none",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_server_that_refuses_gives_one_line_and_the_next_attempt_goes_on(
    house: House, ca: AcmeServer, case: str
) -> None:
    step, answer, text = REFUSALS[case]
    ca.answers[step] = [answer]
    async with house.running():
        line = await house.says(text)
        if case != "rate-limited":
            await house.shows()
    assert line.count("\n") == 0
    assert len(house.said()) == 1


async def test_what_worked_stays_while_the_server_refuses(house: House, ca: AcmeServer) -> None:
    ca.age, ca.validity = datetime.timedelta(days=61), datetime.timedelta(days=90)
    async with house.running() as certificate:
        first = await house.shows()
        ca.answers["directory"] = [HTML] * 999
        await house.says("text/html")
        last = certificate.tls()
        assert names(await house.shows()) == names(first)
        assert certificate.tls() is last


async def test_retry_after_is_honoured(house: House, ca: AcmeServer) -> None:
    ca.answers["order"] = [problem("rateLimited", "too many", 429, Retry_After="7200")]
    async with house.running():
        await house.says("rateLimited")
        await asyncio.sleep(0.5)
    assert ca.asked["order"] == 1
    fields = [getattr(record, "fields", {}) for record in house.log.records]
    assert [each["retry_in"] for each in fields if "retry_in" in each] == ["7200s"]


async def test_a_refused_nonce_is_replaced_and_nonces_without_end_are_not(house: House, ca: AcmeServer) -> None:
    refused = problem("badNonce", "stale", 400)
    ca.answers["account"] = [refused, refused, None] + [refused] * 10
    async with house.running():
        await house.shows()
        assert house.said() == []
    (house.folder / f"{NAME}.pem").unlink()
    async with house.running():
        await house.says("refused 10 nonces one after the other")
        await house.shows()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"named": "evil.test"}, "the certificate is for evil.test, not for bundle.test"),
        ({"key": ec.generate_private_key(ec.SECP256R1()).public_key()}, "the certificate is for another key"),
        ({"age": datetime.timedelta(days=91)}, "the certificate has expired"),
        ({"age": datetime.timedelta(days=-1)}, "the certificate is not valid before"),
    ],
    ids=["name", "key", "expired", "early"],
)
async def test_a_certificate_that_was_not_ordered_is_not_shown(
    house: House, ca: AcmeServer, change: dict[str, Any], text: str
) -> None:
    before = {name: getattr(ca, name) for name in change}
    vars(ca).update(change)
    async with house.running():
        await house.says(text)
        assert not (house.folder / f"{NAME}.pem").exists()
        vars(ca).update(before)
        assert names(await house.shows()) == [NAME]


async def test_a_proof_that_is_not_found_is_told_with_the_servers_reason(house: House, ca: AcmeServer) -> None:
    def elsewhere(step: str) -> None:
        ca.port = ca.port if step != "challenge" else 1

    ca.entered = elsewhere
    async with house.running(ONCE):
        line = await house.says("proving the domain: the ACME server refuses")
    assert "unauthorized: the proof is another one" in line


async def test_at_most_a_few_orders_are_begun_within_an_hour_over_restarts_too(house: House, ca: AcmeServer) -> None:
    ca.answers["finalize"] = [problem("badCSR", "no")] * 2
    ca.named = "evil.test"
    for _ in range(2):
        async with house.running():
            await house.says("orders were begun within an hour: the next may begin in")
        house.log.clear()
    assert ca.orders == ordering.MOST_ORDERS


@pytest.mark.parametrize("step", ["account", "order", "authorization", "challenge", "finalize", "certificate"])
async def test_who_is_cut_off_at_a_step_goes_on_with_the_same_order(house: House, ca: AcmeServer, step: str) -> None:
    cut = asyncio.Event()
    loop = asyncio.get_running_loop()

    def entered(found: str) -> None:
        if found == step:
            loop.call_soon_threadsafe(cut.set)
            time.sleep(0.2)

    ca.entered = entered
    async with house.running():
        await asyncio.wait_for(cut.wait(), 30)
    ca.entered = lambda _: None
    async with house.running():
        await house.shows()
    # The first order's URL never came, or its proof was gone when the server looked for it.
    assert ca.orders == (2 if step in ("order", "challenge") else 1)


@pytest.mark.parametrize("file", [f"{NAME}.pem", f"{NAME}.order.json"])
async def test_files_that_cannot_be_read_are_told_of_and_replaced(house: House, file: str) -> None:
    house.folder.mkdir()
    (house.folder / file).write_text("hello")
    async with house.running():
        await house.shows()
    assert len(house.said()) == 1


async def test_terms_that_are_not_accepted_are_told_before_anything_is_ordered(house: House, ca: AcmeServer) -> None:
    async with house.running(ONCE, tos_accepted=False):
        await house.says("https://ca.test/terms, are not accepted: read them, and set tos_accepted")
    assert ca.asked["account"] == ca.asked["order"] == 0


async def test_a_ca_without_terms_needs_no_acceptance(house: House, ca: AcmeServer) -> None:
    ca.terms = ""
    async with house.running(tos_accepted=False):
        await house.shows()


async def test_a_ca_that_is_not_there_or_not_trusted_is_told(
    house: House, ca: AcmeServer, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    async with house.running(ONCE, directory_url=f"https://127.0.0.1:{unused_port}/dir"):
        await house.says(f"cannot reach https://127.0.0.1:{unused_port}: ")
    monkeypatch.delenv("SSL_CERT_FILE")
    async with house.running(ONCE):
        await house.says("its certificate is not trusted")
    assert not ca.asked


async def test_an_account_key_of_another_kind_is_refused() -> None:
    manager = MemoryKeyManager()
    await manager.generate("bundle-acme-acme_account+key", KeyType.EC_P384)
    key = await AcmeAccount(manager, "bundle-acme-")()
    with pytest.raises(Refused, match=r"is not of type ec-p256"):
        Signer(key)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"domain_name": ""}, "domain_name is missing"),
        ({"domain_name": "localhost"}, "give a full name of the DNS"),
        ({"domain_name": "192.0.2.1"}, "give a full name of the DNS"),
        ({"domain_name": "*.example.org"}, "no wildcards"),
        ({"domain_name": "a.example.org:443"}, "no port"),
        ({"domain_name": "../x.example"}, "is no name of a host"),
        ({"domain_name": "bündel.example"}, "write it in ASCII"),
        ({"email": "a@b.example,c@d.example"}, "is not one address"),
        ({"email": "a@b.example?cc=x"}, "is not one address"),
        ({"directory_url": "http://ca.test/"}, "is not https"),
        ({"directory_url": "ca.test"}, "directory_url: "),
    ],
)
def test_settings_that_no_ca_would_take_are_refused(change: dict[str, Any], text: str) -> None:
    good = AcmeSettings("", NAME, "", tos_accepted=True)
    with pytest.raises(ConfigurationError, match=text.replace(".", r"\.")):
        replace(good, **change)


def test_names_are_compared_in_small_letters_and_lets_encrypt_is_meant_without_a_directory() -> None:
    settings = AcmeSettings("", "Bundle.Example.org.", "", tos_accepted=True)
    assert settings.name == "bundle.example.org"
    assert settings.directory.host == "acme-v02.api.letsencrypt.org"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("30", 30), ("-1", 0), ("soon", 0), ("9" * 99, 999999999), ("Thu, 01 Jan 2026 00:01:00 GMT", 60)],
)
def test_retry_after_is_read_as_seconds_or_a_date(header: str | None, seconds: float) -> None:
    assert retry_after(header, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)) == seconds


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.DNSName)


def alert(port: int, name: str | None) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        try:
            context.wrap_socket(sock, server_hostname=name).close()
        except ssl.SSLError as error:
            return (
                (error.reason or "")
                .lower()
                .replace("_", " ")
                .removeprefix("sslv3 alert ")
                .removeprefix("ssl/tls alert ")
            )
    return "none"


def speaks(port: int, name: str, version: ssl.TLSVersion, alpn: list[str]) -> bool:
    """Whether HTTP is spoken with a client that trusts everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
            context.wrap_socket(sock, server_hostname=name) as connection,
        ):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return connection.recv(4096) != b""
    except OSError:
        return False
