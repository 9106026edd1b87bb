"""WIT authorities over restarts, rotations and the feature flag's comings and goings."""

from __future__ import annotations

import dataclasses

import jwt
import msgspec
import pytest

from identity import der
from identity.spiffeid import SpiffeId
from operations.errors import Refused, Unsupported
from plugins.keymanager import Key, KeyType
from server.ca import checks, journal
from server.ca.certificate_authority import CertificateAuthority, Status
from tests.simulators.ca_server import HOUR, TD, Keys, Server, states
from tests.simulators.pki import ec_key, spki

WORKLOAD = SpiffeId(TD, "/w")


def with_wit(server: Server, *, enabled: bool = True, key_type: KeyType = KeyType.EC_P256) -> Server:
    server.settings = dataclasses.replace(server.settings, wit_svids=enabled, wit_key_type=key_type)
    return server


class NoLargeKeys(Keys):
    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        if key_type is KeyType.RSA_4096:
            raise Refused("this TPM makes no rsa-4096")
        return await super().generate(key_id, key_type)


async def token(authority: CertificateAuthority, ttl: int = 0) -> str:
    approved = checks.approve_wit(WORKLOAD, spki(ec_key()), "ES256", ttl)
    [issued] = await authority.issue_wits([approved])
    with pytest.raises(Refused, match="used already"):
        approved.take()
    return issued.token


def verify(server: Server, signed: str) -> None:
    kid = jwt.get_unverified_header(signed)["kid"]
    [key] = [each.public_key for each in server.store.wit_authorities if each.key_id == kid]
    header = jwt.get_unverified_header(signed)
    jwt.decode(signed, der.public_key(key), algorithms=[header["alg"]], options={"verify_exp": False})


async def test_they_come_after_the_others_in_the_order_that_costs_nothing() -> None:
    server = with_wit(Server())
    authority = await server.start()
    assert server.store.calls[-3:] == ["generate WIT-Signer-A", "append_wit_authority", "save_journal"]
    assert [record.status for record in server.saved().wit] == [Status.ACTIVE]
    verify(server, await token(authority))
    assert authority.authorities.overdue is False


@pytest.mark.parametrize("key_type", [KeyType.EC_P384, KeyType.RSA_2048])
async def test_key_types(key_type: KeyType) -> None:
    server = with_wit(Server(), key_type=key_type)
    signed = await token(await server.start())
    assert jwt.get_unverified_header(signed)["alg"] == {"ec-p384": "ES384", "rsa-2048": "RS256"}[key_type.value]
    verify(server, signed)


async def test_a_key_that_cannot_be_made_ends_the_start() -> None:
    server = with_wit(Server(), key_type=KeyType.RSA_4096)
    server.keys = NoLargeKeys(server.store.calls)
    with pytest.raises(Refused, match="makes no rsa-4096"):
        await server.start()


async def test_rotation_is_that_of_the_other_kinds() -> None:
    server = with_wit(Server())
    authority = await server.start()
    [first] = authority.wit_authorities()
    server.now += 13 * HOUR
    await authority.authorities.rotate()
    assert states(authority.wit_authorities()) == [Status.ACTIVE, Status.PREPARED]
    assert len(server.store.wit_authorities) == 2
    server.now += 8 * HOUR
    await authority.authorities.rotate()
    infos = authority.wit_authorities()
    assert states(infos) == [Status.ACTIVE, Status.OLD]
    assert infos[1].authority_id == first.authority_id
    signed = await token(authority, ttl=48 * HOUR)
    assert jwt.decode(signed, options={"verify_signature": False})["exp"] == infos[0].expires_at
    assert states((await server.start()).wit_authorities()) == [Status.ACTIVE, Status.OLD]


async def test_the_flag_goes_and_comes_back() -> None:
    server = with_wit(Server())
    [first] = (await server.start()).wit_authorities()
    without = await with_wit(server, enabled=False).start()
    with pytest.raises(Unsupported, match="WIT functionality is disabled"):
        await without.issue_wits([checks.approve_wit(WORKLOAD, spki(ec_key()), "ES256")])
    await without.authorities.jwt.prepare()  # writes the journal
    assert [each.key_id for each in server.store.wit_authorities] == [first.authority_id]
    again = await with_wit(server).start()
    assert again.wit_authorities() == [first]
    verify(server, await token(again))

    # Away for longer than its authority lives: nobody makes another one, and none is published anew.
    server.store.wit_authorities.clear()
    server.now += 30 * HOUR
    assert (await with_wit(server, enabled=False).start()).wit_authorities() == []
    assert not server.store.wit_authorities


async def test_without_the_flag_no_key_is_made_and_the_journal_says_nothing() -> None:
    server = Server()
    await server.start()
    assert not server.store.wit_authorities
    assert "generate WIT-Signer-A" not in server.store.calls
    assert server.store.journal is not None
    content = msgspec.json.decode(server.store.journal)["content"]
    assert set(content) == {"x509", "jwt"}, "an earlier release reads what it can"


async def test_a_journal_of_before_is_read() -> None:
    server = Server()
    [first] = (await server.start()).jwt_authorities()
    assert server.store.journal is not None
    content = msgspec.json.encode({**msgspec.json.decode(server.store.journal)["content"]})
    assert b"wit" not in content
    server.store.journal = journal.seal(content)
    authority = await with_wit(server).start()
    assert authority.jwt_authorities() == [first]
    assert states(authority.wit_authorities()) == [Status.ACTIVE]
