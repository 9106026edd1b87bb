"""Authorities below an upstream one: minted, checked, followed, tainted, and gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from cryptography import x509

from identity import tainting, x509svid
from identity.bundles import JwtAuthority, X509Authority
from identity.spiffeid import TrustDomain
from keystores.memory import MemoryKeyManager
from operations.errors import InvalidArgument, PermanentlyUnusable, Refused, TemporarilyUnavailable
from server.ca import checks, signing, upstream
from server.ca.certificate_authority import CaSettings, CertificateAuthority, Status
from tests.simulators.authority_store import MemoryAuthorityStore
from tests.simulators.ca_server import Keys
from tests.simulators.pki import NOW, Authority, Certificate, csr, ec_key, spki
from tests.simulators.upstream import FakeUpstream

TD = TrustDomain("example.org")
SECONDS = int(NOW.timestamp())
HOUR = 3600
CHAIN = Callable[[tuple[bytes, ...]], tuple[bytes, ...]]


class Server:
    """What stays over restarts, the clock, and the upstream authority."""

    def __init__(self, *, publishes: bool = False) -> None:
        self.now: float = SECONDS
        self.root = Authority.root(name="root")
        self.upstream: FakeUpstream | None = FakeUpstream(self.root, now=lambda: self.now, publishes=publishes)
        self.store = MemoryAuthorityStore()
        self.keys = MemoryKeyManager()
        self.settings = CaSettings(trust_domain=TD, ca_ttl=12 * HOUR)

    @property
    def above(self) -> FakeUpstream:
        assert self.upstream is not None
        return self.upstream

    async def start(self) -> CertificateAuthority:
        authority = CertificateAuthority(
            self.settings, self.keys, self.store, upstream=self.upstream, now=lambda: self.now
        )
        await authority.start()
        return authority

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[CertificateAuthority, None]:
        authority = await self.start()
        run = asyncio.create_task(authority.run())
        try:
            yield authority
        finally:
            run.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await run
            await authority.close()

    async def chain(self, authority: CertificateAuthority) -> tuple[bytes, ...]:
        """Of an SVID that verifies with the bundle."""
        [issued] = await authority.issue_x509([checks.approve_server(spki(ec_key()), TD)])
        x509svid.verify(issued.chain, {TD: self.store.roots}, signing.utc(int(self.now)))
        return issued.chain


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "SUBSCRIBE_DELAY", 0.01)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)


async def test_svids_bring_the_chain_below_the_upstreams_root() -> None:
    server = Server()
    middle = server.root.sub()
    server.above.signer, server.above.above = middle, (middle.der,)
    async with server.running() as authority:
        leaf, own, upper = await server.chain(authority)
        assert upper == middle.der
        assert server.store.roots == [server.root.der]
        parsed = x509.load_der_x509_certificate(own)
        assert parsed.not_valid_after_utc == signing.utc(SECONDS + 12 * HOUR)
        assert [each.value for each in parsed.subject][:2] == ["US", "SPIFFE"]
        san = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert san.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org"]
        x509.load_der_x509_certificate(leaf).verify_directly_issued_by(parsed)
        [info] = authority.x509_authorities()
        assert info.upstream_id == tainting.subject_key_id(middle.der)
        assert info.expires_at == SECONDS + 12 * HOUR


async def test_the_order_of_a_start_below_an_upstream() -> None:
    server = Server()
    authority = await server.start()
    await authority.close()
    assert server.store.calls == ["load_journal", "edit", "save_journal", "append_jwt_authority", "save_journal"]
    assert server.above.closed


async def test_a_restart_goes_on_below_the_same_upstream() -> None:
    server = Server()
    before = (await server.start()).x509_authorities()
    server.above.failing = TemporarilyUnavailable("away")
    again = await server.start()
    assert again.x509_authorities() == before
    await server.chain(again)
    assert server.above.minted == 1


async def test_without_its_upstream_a_server_signs_itself() -> None:
    server = Server()
    await server.start()
    server.upstream = None
    [_leaf] = await server.chain(await server.start())
    assert len(server.store.roots) == 2


async def test_an_upstream_that_is_away_keeps_a_new_server_from_starting() -> None:
    server = Server()
    server.above.failing = TemporarilyUnavailable("the upstream is away")
    with pytest.raises(TemporarilyUnavailable, match="the upstream is away"):
        await server.start()
    server.above.failing = None
    await server.chain(await server.start())


async def test_an_upstream_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MINT_TIMEOUT", 0.05)
    server = Server()
    server.above.hanging = True
    with pytest.raises(TemporarilyUnavailable, match=r"did not mint the X\.509 CA within"):
        await server.start()


async def test_tries_while_the_upstream_is_away_cost_one_key(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    calls: list[str] = []
    server.keys = Keys(calls)
    caplog.set_level("INFO", "spire")
    authority = await server.start()
    before = authority.x509_authorities()
    server.above.failing = TemporarilyUnavailable("the root's device is away")
    server.now += 7 * HOUR
    for _ in range(5):
        await authority.authorities.rotate()
        server.now += 10
        await server.chain(authority)
    assert authority.x509_authorities() == before
    server.above.failing = None
    await authority.authorities.rotate()
    assert [info.status for info in authority.x509_authorities()] == [Status.ACTIVE, Status.PREPARED]
    assert [call for call in calls if "x509" in call] == ["generate x509-CA-A", "generate x509-CA-B"]
    lines = [record.message for record in caplog.records if record.message.endswith(("X509 CA", "X509 CA again"))]
    assert lines == ["Unable to rotate X509 CA", "Able to rotate X509 CA again"]

    # What was certified is not certified again.
    server.now += 6 * HOUR
    for _ in range(3):
        await authority.authorities.rotate()
        server.now += 5 * HOUR
    keys = {info.authority_id for info in authority.x509_authorities()}
    assert len(keys) == len(authority.x509_authorities())


async def test_an_authority_of_seconds_is_replaced_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream may give less than it is asked for: its own life says how often it is looked at."""
    server = Server()
    server.above.longest = 3
    waits: list[float] = []
    sleep = asyncio.sleep

    async def passing(seconds: float) -> None:
        waits.append(seconds)
        server.now += seconds
        await sleep(0)

    async with server.running() as authority:
        first = authority.x509_authority()
        monkeypatch.setattr("server.ca.authorities.asyncio.sleep", passing)
        seen = {first.authority_id}
        while len(seen) < 4:
            await sleep(0)
            seen.add(authority.x509_authority().authority_id)
        assert max(waits) <= 3 / 60


async def test_a_key_that_is_lost_meanwhile_is_not_waited_for() -> None:
    server = Server()
    authority = await server.start()
    server.above.failing = TemporarilyUnavailable("the root's device is away")
    server.now += 7 * HOUR
    await authority.authorities.rotate()
    lost = await server.keys.get("x509-CA-B")
    with pytest.MonkeyPatch.context() as patch:

        async def gone(*_: object) -> bytes:
            raise PermanentlyUnusable("the key is gone")

        patch.setattr(type(lost), "sign", gone)
        await authority.authorities.rotate()
    server.above.failing = None
    await authority.authorities.rotate()
    assert (await server.keys.get("x509-CA-B")).public_key != lost.public_key
    assert len(authority.x509_authorities()) == 2


def _leaf(chain: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return (Authority.root().sign(),)


def _foreign_key(chain: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return (Authority.root().sub().der,)


MALICE: dict[str, tuple[CHAIN, str]] = {
    "nothing": (lambda _: (), "it has no certificate"),
    "garbage": (lambda _: (b"garbage",), "not a well-formed X.509 certificate"),
    "a leaf": (_leaf, "cA constraint is not set"),
    "another's": (_foreign_key, "could not verify leaf certificate"),
    "too long": (lambda chain: chain * 11, "longer than 10 certificates"),
}


@pytest.mark.parametrize(("change", "reason"), MALICE.values(), ids=MALICE)
async def test_what_cannot_issue_is_refused(change: CHAIN, reason: str) -> None:
    server = Server()
    server.above.change = change
    with pytest.raises(Refused, match="X509 CA minted by upstream authority is invalid") as caught:
        await server.start()
    assert reason in str(caught.value)
    assert server.store.roots == []
    assert server.store.journal is None
    assert server.above.root_updates.listeners == 0


CONTENTS = {
    "of another domain": Certificate(uris=("spiffe://other.org",), ca=True, usage=("key_cert_sign",)),
    "with a workload's name": Certificate(uris=("spiffe://example.org/w",), ca=True, usage=("key_cert_sign",)),
    "that signs no certificates": Certificate(uris=(), ca=True, usage=("crl_sign",)),
    "without key usage": Certificate(uris=(), ca=True, usage=()),
    "that encrypts": Certificate(uris=(), ca=True, usage=("key_cert_sign", "key_encipherment")),
    "without constraints": Certificate(uris=(), ca=None, usage=("key_cert_sign",)),
    "of tomorrow": Certificate(uris=(), ca=True, usage=("key_cert_sign",), not_before=signing.utc(SECONDS + 60)),
    "of yesterday": Certificate(uris=(), ca=True, usage=("key_cert_sign",), not_after=signing.utc(SECONDS - 60)),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
async def test_a_certificate_that_breaks_the_standard_is_refused(content: Certificate) -> None:
    server = Server()
    server.above.change = lambda chain: (server.root.sign(content), *chain[1:])
    with pytest.raises(Refused, match=r"X509 CA minted by upstream authority is invalid: invalid X509 CA: "):
        await server.start()


async def test_a_root_whose_path_is_too_short_is_refused() -> None:
    server = Server()
    content = Certificate(uris=(), subject="short", ca=True, path_length=0, usage=("key_cert_sign",))
    short = server.root.sub(content)
    server.above.signer, server.above.above = short, (short.der,)
    with pytest.raises(Refused, match="path length constraint exceeded"):
        await server.start()


async def test_no_roots_are_no_bundle() -> None:
    server = Server()
    server.above.roots = []
    with pytest.raises(Refused, match="it comes without roots"):
        await server.start()


async def test_new_roots_of_the_upstream_come_into_the_bundle() -> None:
    server = Server()
    other = Authority.root(name="other")
    async with server.running() as authority:
        server.above.root_updates.tell([X509Authority(server.root.der), X509Authority(other.der)])
        await until(lambda: server.store.roots == [server.root.der, other.der])
        # What is no set of roots changes nothing, and the next one is taken again.
        server.above.root_updates.tell([])
        server.above.root_updates.tell([X509Authority(b"garbage")])
        third = Authority.root(name="third")
        server.above.root_updates.tell([X509Authority(third.der)])
        await until(lambda: third.der in server.store.roots)
        assert len(server.store.roots) == 3
        await server.chain(authority)


async def test_a_stream_that_breaks_off_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    async with server.running() as authority:
        server.above.root_updates.tell(TemporarilyUnavailable("connection lost"))
        await until(lambda: server.above.root_updates.listeners == 0)
        await server.chain(authority)
        await authority.authorities.prepare_x509()
        assert server.above.root_updates.listeners == 1
    assert "stopped streaming X.509 root updates prematurely" in caplog.text
    assert server.above.root_updates.listeners == 0


async def test_a_tainted_root_is_left_before_the_bundle_says_so() -> None:
    server = Server()
    told: list[bytes] = []
    async with server.running() as authority:
        authority.authorities.on_tainted(told.extend)
        before = authority.x509_authority()
        server.above.replace_signer(Authority.root(name="next"), tainted=True)
        server.store.calls.clear()
        server.above.root_updates.tell(tuple(server.above.roots))
        await until(lambda: told)
        assert told == [server.root.der]
        assert [each.tainted for each in server.store.x509_authorities] == [True, False]
        assert authority.x509_authority() != before
        assert [each.status for each in authority.x509_authorities()] == [Status.ACTIVE, Status.OLD]
        chain = await server.chain(authority)
        assert not tainting.is_signed_by(chain, [server.root.der])
        # The journal has the new authority before the mark goes out.
        assert server.store.calls[-1] == "edit"
        assert server.store.calls.count("save_journal") == 2
        # When the upstream has it no more, it is gone here too.
        server.above.root_updates.tell([X509Authority(server.above.signer.der)])
        await until(lambda: server.store.roots == [server.above.signer.der])


async def test_a_prepared_authority_below_the_good_root_takes_over() -> None:
    server = Server()
    async with server.running() as authority:
        server.above.replace_signer(Authority.root(name="next"))
        prepared = await authority.authorities.prepare_x509()
        server.above.root_updates.tell(
            [X509Authority(server.root.der, tainted=True), X509Authority(server.above.signer.der)]
        )
        await until(lambda: authority.x509_authority().authority_id == prepared.authority_id)
        await until(lambda: [each.tainted for each in server.store.x509_authorities] == [True, False])
        assert server.above.minted == 2


async def test_a_prepared_authority_below_a_tainted_root_is_forgotten() -> None:
    server = Server()
    async with server.running() as authority:
        other = Authority.root(name="other")
        server.above.replace_signer(other)
        before = authority.x509_authority()
        await authority.authorities.prepare_x509()
        server.above.root_updates.tell([X509Authority(server.root.der), X509Authority(other.der, tainted=True)])
        await until(lambda: [each.tainted for each in server.store.x509_authorities] == [False, True])
        assert authority.x509_authorities() == [before]
        assert server.above.minted == 2


async def test_a_taint_waits_for_an_upstream_that_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.ca.authorities._TAINT_RETRY", 0.01)
    server = Server()
    async with server.running() as authority:
        before = authority.x509_authority()
        server.above.replace_signer(Authority.root(name="next"), tainted=True)
        server.above.failing = TemporarilyUnavailable("away")
        server.above.root_updates.tell(tuple(server.above.roots))
        await until(lambda: "Failed to process tainted keys on upstream authority" in caplog.text)
        assert not any(each.tainted for each in server.store.x509_authorities)
        assert authority.x509_authority() == before
        server.above.failing = None
        await until(lambda: any(each.tainted for each in server.store.x509_authorities))
        assert authority.x509_authority() != before


async def test_an_upstream_that_goes_on_with_its_tainted_root_does_not_mint_without_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.ca.authorities._TAINT_RETRY", 3600)
    server = Server()
    async with server.running() as authority:
        server.above.root_updates.tell([X509Authority(server.root.der, tainted=True)])
        await until(lambda: "Failed to process tainted keys" in caplog.text)
        assert server.above.minted == 2
        await server.chain(authority)
        assert not any(each.tainted for each in server.store.x509_authorities)


async def test_a_restart_does_not_go_on_below_a_tainted_root(caplog: pytest.LogCaptureFixture) -> None:
    """Another server that shares the database may have tainted it."""
    server = Server()
    await server.start()
    server.store.taint(server.root.der)
    server.above.replace_signer(Authority.root(name="next"))
    chain = await server.chain(await server.start())
    assert not tainting.is_signed_by(chain, [server.root.der])
    assert "X509CA slot unusable" in caplog.text


async def test_jwt_keys_go_up_and_come_down() -> None:
    server = Server(publishes=True)
    async with server.running() as authority:
        [mine] = authority.jwt_authorities()
        assert [key.key_id for key in server.above.keys] == [mine.authority_id]
        other, third = (JwtAuthority(name, spki(ec_key()), SECONDS + HOUR) for name in ("other", "third"))
        server.above.key_updates.tell([other])
        await until(lambda: other in server.store.jwt_authorities)
        await until(lambda: server.above.bundle_updates.listeners == 1)
        server.above.bundle_updates.tell(([X509Authority(server.root.der)], [third]))
        await until(lambda: third in server.store.jwt_authorities)
        below = JwtAuthority("below", spki(ec_key()), SECONDS + HOUR)
        published = await authority.authorities.publish_jwt_key(below)
        assert {key.key_id for key in published} == {mine.authority_id, "other", "third", "below"}
        server.above.failing = TemporarilyUnavailable("away")
        with pytest.raises(TemporarilyUnavailable):
            await authority.authorities.publish_jwt_key(JwtAuthority("lost", spki(ec_key())))
        assert "lost" not in [key.key_id for key in server.store.jwt_authorities]


async def test_an_upstream_without_jwt_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    authority = await server.start()
    await authority.authorities.jwt.prepare()
    warnings = [record for record in caplog.records if "does not support JWT-SVIDs" in record.message]
    assert len(warnings) == 1
    assert len(server.store.jwt_authorities) == 2


async def test_a_subscription_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(publishes=True)
    authority = await server.start()
    server.above.failing = TemporarilyUnavailable("away")
    run = asyncio.create_task(authority.run())
    try:
        await until(lambda: "Unable to subscribe to the local bundle" in caplog.text)
        server.above.failing = None
        await until(lambda: server.above.bundle_updates.listeners == 1)
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await authority.close()
    assert server.above.bundle_updates.listeners == 0


@pytest.mark.parametrize("call", ["edit", "save_journal"])
async def test_a_crash_at_any_step_is_made_good_by_the_next_start(call: str) -> None:
    server = Server()
    server.store.failing = {call}
    with pytest.raises(TemporarilyUnavailable):
        await server.start()
    assert server.above.root_updates.listeners == (call == "save_journal")
    server.store.failing = set()
    await server.chain(await server.start())


async def test_downstream_authorities_issue_what_verifies() -> None:
    server = Server()
    authority = await server.start()
    key = ec_key()
    issued = await authority.issue_downstream(checks.approve_downstream(csr(key), 600))
    assert issued.expires_at == SECONDS + 600
    below = Authority(key, x509.load_der_x509_certificate(issued.chain[0]))
    assert "OU=DOWNSTREAM-1" in below.certificate.subject.rfc4514_string()
    leaf = below.sign(Certificate(not_before=NOW, not_after=signing.utc(SECONDS + 600)))
    x509svid.verify((leaf, *issued.chain), {TD: server.store.roots}, NOW)
    with pytest.raises(InvalidArgument):
        checks.approve_downstream(b"garbage")
