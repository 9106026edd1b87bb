"""Authorities over restarts, rotations, failures and crashes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from keystores import errors as keystore_errors
from keystores.disk import DiskKeyManager
from operations.errors import Corrupt, Refused, SpireError, TemporarilyUnavailable
from plugins.keymanager import KeyType
from server.ca import journal
from server.ca.alerts import Alerts
from server.ca.certificate_authority import AuthorityInfo, CertificateAuthority, Status
from server.ca.journal import Journal
from tests.simulators.ca_server import HOUR, SECONDS, Keys, Server, states, until


async def test_the_order_costs_nothing_when_it_breaks() -> None:
    server = Server()
    await server.start()
    assert server.store.calls == [
        "load_journal",
        "generate x509-CA-A",
        "append_x509_authority",
        "save_journal",
        "generate JWT-Signer-A",
        "append_jwt_authority",
        "save_journal",
    ]


async def test_a_restart_goes_on_with_the_same_keys() -> None:
    server = Server()
    first = await server.start()
    server.store.calls.clear()
    second = await server.start()
    assert second.x509_authorities() == first.x509_authorities()
    assert second.jwt_authorities() == first.jwt_authorities()
    assert "save_journal" not in server.store.calls
    assert not [call for call in server.store.calls if call.startswith("generate")]
    await server.check(second)


async def test_a_new_process_finds_the_keys_on_disk(tmp_path: Path) -> None:
    server = Server()
    infos: list[list[AuthorityInfo]] = []
    for _ in range(2):
        keys = await DiskKeyManager.open(tmp_path / "keys.json")
        authority = CertificateAuthority(server.settings, keys, server.store, now=lambda: server.now)
        await authority.start()
        await server.check(authority)
        infos.append(authority.x509_authorities() + authority.jwt_authorities())
        await keys.close()
    assert infos[0] == infos[1]


@pytest.mark.parametrize("call", ["append_x509_authority", "append_jwt_authority", "save_journal"])
async def test_a_crash_at_any_step_is_made_good_by_the_next_start(call: str) -> None:
    server = Server()
    server.store.failing = {call}
    with pytest.raises(TemporarilyUnavailable):
        await server.start()
    server.store.failing = set()
    await server.check(await server.start())


async def test_half_life_prepares_and_the_last_sixth_activates() -> None:
    server = Server()
    authority = await server.start()
    [first] = authority.x509_authorities()

    server.now = SECONDS + 12 * HOUR
    authority = await server.start()
    assert states(authority.x509_authorities()) == [Status.ACTIVE]

    server.now += 1
    authority = await server.start()
    assert states(authority.x509_authorities()) == [Status.ACTIVE, Status.PREPARED]
    assert states(authority.jwt_authorities()) == [Status.ACTIVE, Status.PREPARED]
    assert authority.x509_authority() == first
    assert len(server.store.roots) == len(server.store.jwt_authorities) == 2

    server.now = SECONDS + 20 * HOUR + 1
    authority = await server.start()
    assert states(authority.x509_authorities()) == [Status.ACTIVE, Status.OLD]
    assert authority.x509_authorities()[1].authority_id == first.authority_id
    await server.check(authority)

    # The third authority takes the slot of the first.
    server.now += 5 * HOUR
    authority = await server.start()
    assert states(authority.x509_authorities()) == [Status.ACTIVE, Status.PREPARED]
    assert [call for call in server.store.calls if call.startswith("generate x509")] == [
        "generate x509-CA-A",
        "generate x509-CA-B",
        "generate x509-CA-A",
    ]
    await server.check(authority)


async def test_a_long_sleep_over_every_end_starts_anew() -> None:
    server = Server()
    first = await server.start()
    server.now += 100 * HOUR
    second = await server.start()
    assert states(second.x509_authorities()) == [Status.ACTIVE]
    assert second.x509_authority() != first.x509_authorities()[0]
    await server.check(second)


@pytest.mark.parametrize("prepared", [False, True])
async def test_a_clock_that_is_put_back_does_not_leave_an_authority_of_the_future(prepared: bool) -> None:
    """An appliance may start before it knows the time; nobody would accept what its first authority signs."""
    server = Server()
    server.now += 1000 * HOUR
    await server.start()
    if prepared:
        server.now += 13 * HOUR
    running = await server.start()
    assert len(running.x509_authorities()) == 1 + prepared
    server.now = SECONDS
    with pytest.raises(Refused):
        await server.check(running)
    again = await server.start()
    await server.check(again)
    assert again.x509_authority().expires_at == SECONDS + 24 * HOUR
    server.now -= 9
    await server.check(await server.start())
    assert states(again.x509_authorities()) == [Status.ACTIVE]


async def test_a_prepared_authority_stands_in_for_a_lost_one() -> None:
    server = Server()
    await server.start()
    server.now = SECONDS + 13 * HOUR
    before = await server.start()
    await server.keys.generate("x509-CA-A", KeyType.EC_P256)  # the active key is lost: another one has its name
    after = await server.start()
    assert after.x509_authority().authority_id == before.x509_authorities()[1].authority_id
    await server.check(after)


async def test_keys_that_end_with_the_process_are_replaced(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    first = await server.start()
    server.keys = Keys(server.store.calls)
    second = await server.start()
    assert second.x509_authority() != first.x509_authority()
    assert len(server.store.roots) == 2
    await server.check(second)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["X509CA slot unusable", "JWT key slot unusable"]


async def test_a_key_store_that_is_away_is_no_lost_key() -> None:
    server = Server()
    await server.start()
    saved = server.store.journal
    await server.keys.close()
    with pytest.raises(TemporarilyUnavailable):
        await server.start()
    assert server.store.journal == saved


async def test_what_signs_is_in_the_bundle_again_after_an_old_database_was_restored() -> None:
    server = Server()
    await server.start()
    server.store.x509_authorities.clear()
    server.store.jwt_authorities.clear()
    await server.check(await server.start())
    assert len(server.store.jwt_authorities) == 1


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "not a journal"),
    "cut": (lambda data: data[: len(data) // 2], "not a journal"),
    "binary": (lambda data: b"\xff" + data, "not a journal"),
    "changed": (lambda data: data.replace(b'"active"', b'"old"'), "checksum does not match"),
    "newer": (lambda data: data.replace(b'"version":1', b'"version":2'), "version 2, and this server reads version 1"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_journal_ends_the_start_and_stays_as_it_is(
    damage: Callable[[bytes], bytes], reason: str
) -> None:
    server = Server()
    await server.start()
    assert server.store.journal is not None
    damaged = damage(server.store.journal)
    server.store.journal = damaged
    server.store.calls.clear()
    with pytest.raises(Corrupt, match=reason) as caught:
        await server.start()
    assert "\n" not in str(caught.value)
    assert server.store.journal == damaged
    assert server.store.calls == ["load_journal"]


async def test_a_journal_of_another_shape_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="damaged"):
        journal.load(journal.seal(b'{"x509":[{"slot":1}]}'))


def test_journal_comes_back() -> None:
    assert journal.load(journal.dump(Journal())) == Journal()


async def test_running_rotates_without_a_gap() -> None:
    server = Server(ca_ttl=6)
    authority = await server.start()
    first = authority.x509_authority()
    run = asyncio.create_task(authority.run())
    try:
        for _ in range(600):
            await asyncio.sleep(0.02)
            server.now += 0.1
            await server.check(authority)
            if len(server.store.roots) >= 4:
                break
    finally:
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run
    assert len(server.store.roots) >= 4
    assert authority.x509_authority() != first
    identifiers = {
        x509.load_der_x509_certificate(root).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        for root in server.store.roots
    }
    assert len(identifiers) == len(server.store.roots)


async def test_running_outlives_a_failing_token_and_prunes() -> None:
    server = Server(ca_ttl=3)
    authority = await server.start()
    server.keys.failing = True
    server.store.failing = {"prune"}
    server.now += 2
    run = asyncio.create_task(authority.run())
    try:
        await until(lambda: server.store.calls.count("generate x509-CA-B") >= 2)
        assert states(authority.x509_authorities()) == [Status.ACTIVE]
        server.keys.failing = False
        await until(lambda: len(authority.x509_authorities()) == 2)
        server.now += 6 * HOUR
        await until(lambda: "prune" in server.store.calls)
        server.store.failing = set()
        server.now += 6 * HOUR
        await until(lambda: bool(server.store.pruned))
        assert server.store.pruned == [int(server.now) - 24 * HOUR]
        # A machine that slept over every end of life has an authority again.
        await until(lambda: authority.x509_authorities()[0].expires_at > server.now)
        await server.check(authority)
    finally:
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run


async def test_a_start_needs_no_new_key_while_the_old_one_signs(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    first = (await server.start()).x509_authority()
    server.now += 13 * HOUR
    server.keys.failing = True
    authority = await server.start()
    assert authority.x509_authority() == first
    await server.check(authority)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["Unable to rotate X509 CA", "Unable to rotate JWT key"]
    server.now += 12 * HOUR
    with pytest.raises(TemporarilyUnavailable, match="the token is away"):
        await server.start()


async def test_a_failure_is_told_when_it_begins_when_it_changes_every_hour_and_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [0.0]
    alerts = Alerts(lambda: clock[0])

    def told() -> list[str]:
        lines = [f"{record.message} {record.__dict__['fields']['failures']}" for record in caplog.records]
        caplog.clear()
        return lines

    caplog.set_level("INFO", "spire")
    alerts.works("rotate")
    for clock[0] in (0.0, 10.0, 20.0):
        alerts.failed("rotate", TemporarilyUnavailable("away"))
    assert told() == ["Unable to rotate 1"]
    alerts.failed("rotate", keystore_errors.TemporarilyUnavailable("away, and asked again shortly"))
    assert told() == []
    alerts.failed("rotate", keystore_errors.Refused("the PIN is wrong"))
    assert told() == ["Unable to rotate 5"]
    clock[0] = 3620.0
    alerts.failed("rotate", Refused("no"))
    alerts.failed("rotate", Refused("no"))
    assert told() == ["Unable to rotate 6"]
    alerts.works("rotate")
    alerts.works("rotate")
    assert told() == ["Able to rotate again 7"]


async def test_an_authority_is_overdue_in_its_last_sixth() -> None:
    server = Server()
    authority = await server.start()
    server.now += 20 * HOUR
    assert not authority.overdue
    server.now += 1
    assert authority.overdue


async def test_long_lives_are_prepared_30_and_activated_7_days_before_their_end() -> None:
    day = 24 * HOUR
    server = Server(ca_ttl=365 * day)
    await server.start()
    expected = {335 * day: [Status.ACTIVE], 335 * day + 1: [Status.ACTIVE, Status.PREPARED]}
    expected |= {358 * day: [Status.ACTIVE, Status.PREPARED], 358 * day + 1: [Status.ACTIVE, Status.OLD]}
    for age, wanted in expected.items():
        server.now = SECONDS + age
        assert states((await server.start()).x509_authorities()) == wanted


async def test_the_authority_of_a_failed_start_does_not_issue() -> None:
    server = Server()
    server.keys.failing = True
    authority = CertificateAuthority(server.settings, server.keys, server.store, now=lambda: server.now)
    with pytest.raises(SpireError, match="the token is away"):
        await authority.start()
    with pytest.raises(TemporarilyUnavailable, match="X509 CA is not available"):
        await server.check(authority)
    with pytest.raises(TemporarilyUnavailable, match="X509 CA is not available"):
        authority.x509_authority()
