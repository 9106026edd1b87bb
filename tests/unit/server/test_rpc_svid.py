"""spire.api.server.svid.v1.SVID through a running server."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from generated.spire.api.server.svid.v1 import svid_pb2 as api
from identity import der, jwtsvid, x509svid
from identity.bundles import Bundle
from tests.simulators.house import SVID, TRUST_DOMAIN, House, csr, new_entry, refused, running, spiffe_id
from tests.simulators.pki import ec_key, spki
from transport.status import Code


async def roots(house: House) -> list[bytes]:
    return [each.asn1 for each in (await house.bundle()).x509_authorities]


async def test_a_batch_answers_for_each_item(house: House) -> None:
    agent = await house.attest()
    wanted = new_entry("/web", agent.id)
    wanted.dns_names[:] = ["web.example.org"]
    wanted.x509_svid_ttl = 60
    [web, alien] = await house.create(wanted, new_entry("/alien", spiffe_id("/elsewhere")))
    key = ec_key()
    good = csr(key)
    params = [
        api.NewX509SVIDParams(entry_id=web.id, csr=good),
        api.NewX509SVIDParams(entry_id=alien.id, csr=good),
        api.NewX509SVIDParams(entry_id="absent", csr=good),
        api.NewX509SVIDParams(csr=good),
        api.NewX509SVIDParams(entry_id=web.id),
        api.NewX509SVIDParams(entry_id=web.id, csr=b"\x30\x03abc"),
        api.NewX509SVIDParams(entry_id=web.id, csr=good[:-1] + bytes((good[-1] ^ 1,))),
    ]
    request = api.BatchNewX509SVIDRequest(params=params)
    response = await agent.channel.unary(SVID + "BatchNewX509SVID", request, api.BatchNewX509SVIDResponse)
    assert [each.status.code for each in response.results] == [0, 5, 5, 3, 3, 3, 3]
    messages = [each.status.message for each in response.results]
    assert messages[:5] == [
        "OK",
        "entry not found or not authorized",
        "entry not found or not authorized",
        "missing entry ID",
        "missing CSR",
    ]
    assert messages[5].startswith("malformed CSR")
    assert messages[6] == "invalid CSR signature"

    svid = response.results[0].svid
    assert svid.id == web.spiffe_id
    found = x509svid.verify(list(svid.cert_chain), {TRUST_DOMAIN: await roots(house)}, datetime.now(UTC))
    assert str(found) == "spiffe://example.org/web"
    leaf = der.certificate(svid.cert_chain[0])
    assert der.certificate_key(svid.cert_chain[0]) == spki(key)
    assert leaf.not_valid_after_utc.timestamp() == svid.expires_at
    assert 50 < svid.expires_at - datetime.now(UTC).timestamp() <= 60
    assert not any(each.HasField("svid") for each in response.results[1:])


async def test_a_big_batch_comes_in_order(house: House) -> None:
    agent = await house.attest()
    entries = await house.create(*(new_entry(f"/w{n}", agent.id) for n in range(40)))
    request = csr(ec_key())
    batch = api.BatchNewX509SVIDRequest(
        params=[api.NewX509SVIDParams(entry_id=each.id, csr=request) for each in entries]
    )
    response = await agent.channel.unary(SVID + "BatchNewX509SVID", batch, api.BatchNewX509SVIDResponse)
    assert [each.svid.id.path for each in response.results] == [f"/w{n}" for n in range(40)]
    assert len({each.svid.cert_chain[0] for each in response.results}) == 40


async def test_a_batch_of_nothing(house: House) -> None:
    agent = await house.attest()
    error = await refused(agent.channel, SVID + "BatchNewX509SVID", api.BatchNewX509SVIDRequest())
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "missing parameters")


async def test_an_agent_gets_jwt_svids_of_its_entries(house: House) -> None:
    agent = await house.attest()
    wanted = new_entry("/web", agent.id)
    wanted.jwt_svid_ttl = 30
    wanted.additional_attributes.jwt_svid_include_jti = True
    [web] = await house.create(wanted)
    request = api.NewJWTSVIDRequest(entry_id=web.id, audience=["one", "two"])
    svid = (await agent.channel.unary(SVID + "NewJWTSVID", request, api.NewJWTSVIDResponse)).svid
    assert svid.id == web.spiffe_id
    assert svid.expires_at - svid.issued_at == 30
    keys = Bundle.from_proto(await house.bundle()).jwt_authorities
    found = jwtsvid.verify(svid.token, {TRUST_DOMAIN: keys}, "two", datetime.now(UTC))
    assert str(found.id) == "spiffe://example.org/web"
    assert found.claims["jti"]

    error = await refused(agent.channel, SVID + "NewJWTSVID", api.NewJWTSVIDRequest(entry_id="absent", audience=["x"]))
    assert (error.code, error.message) == (Code.NOT_FOUND, "entry not found or not authorized")
    error = await refused(agent.channel, SVID + "NewJWTSVID", api.NewJWTSVIDRequest(entry_id=web.id))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "at least one audience is required")


async def test_operators_mint(house: House) -> None:
    key = ec_key()
    request = api.MintX509SVIDRequest(
        csr=csr(key, uris=["spiffe://example.org/minted"], dns_names=["minted.example.org"]), ttl=120
    )
    svid = (await house.local.unary(SVID + "MintX509SVID", request, api.MintX509SVIDResponse)).svid
    assert svid.id == spiffe_id("/minted")
    found = x509svid.verify(list(svid.cert_chain), {TRUST_DOMAIN: await roots(house)}, datetime.now(UTC))
    assert str(found) == "spiffe://example.org/minted"

    minted = api.MintJWTSVIDRequest(id=spiffe_id("/minted"), audience=["x"], ttl=20)
    token = (await house.local.unary(SVID + "MintJWTSVID", minted, api.MintJWTSVIDResponse)).svid
    assert token.expires_at - token.issued_at == 20


@pytest.mark.parametrize(
    ("uris", "message"),
    [
        ([], "CSR URI SAN is required"),
        (["spiffe://example.org/a", "spiffe://example.org/b"], "only one URI SAN is expected"),
        (["https://example.org"], "CSR URI SAN is invalid: scheme is missing or invalid"),
        (["spiffe://example.org/spire/server"], "CSR URI SAN is invalid: "),
        (["spiffe://other.org/a"], 'CSR URI SAN is invalid: "spiffe://other.org/a" is not a member of trust domain'),
    ],
)
async def test_signing_requests_that_are_not_minted(house: House, uris: list[str], message: str) -> None:
    error = await refused(house.local, SVID + "MintX509SVID", api.MintX509SVIDRequest(csr=csr(ec_key(), uris=uris)))
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith(message)


async def test_jwt_svids_that_are_not_minted(house: House) -> None:
    for request, message in (
        (api.MintJWTSVIDRequest(audience=["x"]), "invalid SPIFFE ID: request must specify SPIFFE ID"),
        (api.MintJWTSVIDRequest(id=spiffe_id("/w")), "at least one audience is required"),
        (api.MintJWTSVIDRequest(id=spiffe_id("/spire/x"), audience=["x"]), "invalid SPIFFE ID: "),
    ):
        error = await refused(house.local, SVID + "MintJWTSVID", request)
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message.startswith(message)


async def test_jwt_svids_may_be_turned_off(tmp_path: Path) -> None:
    async with running(tmp_path, settings="disable_jwt_svids = true") as house:
        request = api.MintJWTSVIDRequest(id=spiffe_id("/w"), audience=["x"])
        error = await refused(house.local, SVID + "MintJWTSVID", request)
        assert (error.code, error.message) == (Code.UNIMPLEMENTED, "JWT functionality is disabled")
        assert not (await house.bundle()).jwt_authorities
