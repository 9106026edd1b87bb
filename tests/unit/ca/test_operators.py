"""Operators rotate, taint and revoke; whatever breaks off on the way costs nothing."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from operations.errors import Refused, TemporarilyUnavailable
from server.ca.certificate_authority import CertificateAuthority, Status
from tests.simulators.ca_server import HOUR, Server, states, until


async def test_operators_prepare_and_activate() -> None:
    server = Server()
    authority = await server.start()
    [first] = authority.x509_authorities()
    [first_jwt] = authority.jwt_authorities()
    prepared = await authority.authorities.prepare_x509()
    prepared_jwt = await authority.authorities.jwt.prepare()
    assert authority.x509_authorities() == [first, prepared]
    assert authority.jwt_authorities() == [first_jwt, prepared_jwt]
    for wrong in ("", first.authority_id):
        with pytest.raises(Refused, match="unexpected authority ID"):
            await authority.authorities.activate_x509(wrong)
    activated = await authority.authorities.activate_x509(prepared.authority_id)
    await authority.authorities.jwt.activate(prepared_jwt.authority_id)
    assert (activated.authority_id, activated.status) == (prepared.authority_id, Status.ACTIVE)
    assert states(authority.x509_authorities()) == states(authority.jwt_authorities()) == [Status.ACTIVE, Status.OLD]
    await server.check(authority)
    again = await server.start()
    assert again.x509_authorities() == authority.x509_authorities()
    assert again.jwt_authorities() == authority.jwt_authorities()


async def test_whoever_prepares_again_gets_another_and_a_restart_has_its_key() -> None:
    server = Server()
    authority = await server.start()
    await authority.authorities.prepare_x509()
    second = await authority.authorities.prepare_x509()
    await authority.authorities.activate_x509(second.authority_id)
    again = await server.start()
    assert again.x509_authority().authority_id == second.authority_id
    await server.check(again)
    assert len(server.store.roots) == 3


@pytest.mark.parametrize("call", ["generate", "append_x509_authority", "save_journal"])
@pytest.mark.parametrize("already", ["nothing", "prepared", "old"])
@pytest.mark.parametrize("anew", [False, True])
async def test_a_prepare_that_breaks_off_costs_nothing(call: str, already: str, anew: bool) -> None:
    """At whatever step: the process that goes on, and one that starts anew, sign as before."""
    server = Server()
    authority = await server.start()
    if already != "nothing":
        made = await authority.authorities.prepare_x509()
        if already == "old":
            await authority.authorities.activate_x509(made.authority_id)
    before = authority.x509_authority()
    if call == "generate":
        server.keys.failing = True
    else:
        server.store.failing = {call}
    with pytest.raises(TemporarilyUnavailable):
        await authority.authorities.prepare_x509()
    server.keys.failing = False
    server.store.failing = set()
    if anew:
        authority = await server.start()
    assert authority.x509_authority() == before
    await server.check(authority)
    fresh = await authority.authorities.prepare_x509()
    await authority.authorities.activate_x509(fresh.authority_id)
    await server.check(authority)
    again = await server.start()
    assert again.x509_authority().authority_id == fresh.authority_id
    await server.check(again)


async def test_an_activation_that_cannot_be_saved_did_not_happen() -> None:
    server = Server()
    authority = await server.start()
    before = authority.x509_authority()
    prepared = await authority.authorities.prepare_x509()
    server.store.failing = {"save_journal"}
    with pytest.raises(TemporarilyUnavailable):
        await authority.authorities.activate_x509(prepared.authority_id)
    assert authority.x509_authority() == before
    server.store.failing = set()
    assert (await server.start()).x509_authority() == before
    await authority.authorities.activate_x509(prepared.authority_id)
    assert (await server.start()).x509_authority().authority_id == prepared.authority_id


async def test_a_caller_that_leaves_does_not_part_memory_and_journal() -> None:
    server = Server()
    authority = await server.start()
    prepared = await authority.authorities.prepare_x509()
    asked = asyncio.create_task(authority.authorities.activate_x509(prepared.authority_id))
    await asyncio.sleep(0)
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked
    await until(lambda: authority.x509_authority().authority_id == prepared.authority_id)
    assert (await server.start()).x509_authority().authority_id == prepared.authority_id


async def test_both_kinds_at_once_share_one_journal() -> None:
    server = Server()
    authority = await server.start()
    x509_prepared, jwt_prepared = await asyncio.gather(
        authority.authorities.prepare_x509(), authority.authorities.jwt.prepare()
    )
    await asyncio.gather(
        authority.authorities.activate_x509(x509_prepared.authority_id),
        authority.authorities.jwt.activate(jwt_prepared.authority_id),
    )
    again = await server.start()
    assert again.x509_authorities() == authority.x509_authorities()
    assert again.jwt_authorities() == authority.jwt_authorities()


async def test_the_clock_goes_on_after_an_operator() -> None:
    server = Server()
    authority = await server.start()
    server.now += 11 * HOUR
    prepared = await authority.authorities.prepare_x509()
    server.now += 10 * HOUR
    again = await server.start()
    assert again.x509_authority().authority_id == prepared.authority_id
    assert states(again.x509_authorities()) == [Status.ACTIVE, Status.OLD]


async def test_tainted_and_revoked_ones_are_not_taken_up_again() -> None:
    server = Server()
    authority = await server.start()
    told: list[bytes] = []
    authority.authorities.on_tainted(told.extend)
    old, old_jwt = authority.x509_authorities()[0], authority.jwt_authorities()[0]
    await authority.authorities.activate_x509((await authority.authorities.prepare_x509()).authority_id)
    await authority.authorities.jwt.activate((await authority.authorities.jwt.prepare()).authority_id)
    await authority.authorities.taint_x509(old.authority_id)
    await authority.authorities.jwt.taint(old_jwt.authority_id)
    assert told == [server.store.roots[0]]
    assert [each.tainted for each in server.store.x509_authorities] == [True, False]
    assert [each.tainted for each in server.store.jwt_authorities] == [True, False]
    again = await server.start()
    assert states(again.x509_authorities()) == states(again.jwt_authorities()) == [Status.ACTIVE, Status.OLD]
    await again.authorities.revoke_x509(old.authority_id)
    await again.authorities.jwt.revoke(old_jwt.authority_id)
    last = await server.start()
    assert states(last.x509_authorities()) == states(last.jwt_authorities()) == [Status.ACTIVE]
    assert len(server.store.roots) == len(server.store.jwt_authorities) == 1


async def test_what_signs_and_is_tainted_gives_way_at_the_next_start() -> None:
    server = Server()
    before = (await server.start()).x509_authority()
    server.store.taint(server.store.roots[0])
    after = await server.start()
    assert after.x509_authority() != before
    await server.check(after)


async def test_before_its_start_nothing_is_prepared() -> None:
    server = Server()
    authority = CertificateAuthority(server.settings, server.keys, server.store, now=lambda: server.now)
    with pytest.raises(TemporarilyUnavailable, match="server is initializing"):
        await authority.authorities.prepare_x509()


async def test_while_keys_are_looked_after_none_is_made() -> None:
    server = Server()
    authority = await server.start()
    before = authority.x509_authorities()
    async with authority.authorities.at_rest():
        preparing = [
            asyncio.ensure_future(authority.authorities.prepare_x509()),
            asyncio.ensure_future(authority.authorities.jwt.prepare()),
        ]
        done, _ = await asyncio.wait(preparing, timeout=0.05)
        assert not done
        assert authority.x509_authorities() == before
    await asyncio.gather(*preparing)
    assert len(authority.x509_authorities()) == 2
