"""spire.api.server.localauthority.v1.LocalAuthority through a running server, self-signed and below an upstream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.protobuf.message import Message

from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2 as types
from governance.uniqueid import unique_id
from identity import bundles, tainting, x509svid
from tests.simulators.house import BUNDLE, SVID, TRUST_DOMAIN, House, csr, new_entry, refused, running
from tests.simulators.pki import Authority, Certificate, ec_key, pkcs8
from transport.client import Channel
from transport.status import Code
from transport.tls import InProcessIdentity, client_context

LOCAL = "/spire.api.server.localauthority.v1.LocalAuthority/"
PATIENCE = 60.0
R = TypeVar("R", bound=Message)


@dataclass
class Kind:
    """X.509 or JWT authorities, which the API has a set of messages for each."""

    house: House
    name: str

    async def state(self) -> api.GetX509AuthorityStateResponse:
        """Both kinds of responses have the same fields."""
        request: Message = getattr(api, f"Get{self.name}AuthorityStateRequest")()
        method = f"Get{self.name}AuthorityState"
        return await self.house.local.unary(LOCAL + method, request, api.GetX509AuthorityStateResponse)

    async def prepare(self) -> str:
        request: Message = getattr(api, f"Prepare{self.name}AuthorityRequest")()
        method = f"Prepare{self.name}Authority"
        made = await self.house.local.unary(LOCAL + method, request, api.PrepareX509AuthorityResponse)
        return made.prepared_authority.authority_id

    async def change(self, verb: str, authority_id: str) -> api.AuthorityState:
        response = await self.house.local.unary(
            LOCAL + f"{verb}{self.name}Authority", self._request(verb, authority_id), api.ActivateX509AuthorityResponse
        )
        return response.activated_authority  # the only field of all these responses

    async def refused(self, verb: str, authority_id: str) -> tuple[Code, str]:
        error = await refused(
            self.house.local, LOCAL + f"{verb}{self.name}Authority", self._request(verb, authority_id)
        )
        return error.code, error.message

    def _request(self, verb: str, authority_id: str) -> Message:
        request: Message = getattr(api, f"{verb}{self.name}AuthorityRequest")(authority_id=authority_id)
        return request


@pytest.fixture(params=["X509", "JWT"])
def kind(request: pytest.FixtureRequest, house: House) -> Kind:
    return Kind(house, request.param)


def present(state: api.GetX509AuthorityStateResponse) -> list[str]:
    return [field.name for field, _ in state.ListFields()]


async def test_a_whole_rotation(kind: Kind) -> None:
    first = await kind.state()
    assert present(first) == ["active"]
    assert first.active.expires_at > datetime.now(UTC).timestamp()
    prepared = await kind.prepare()
    state = await kind.state()
    assert (present(state), state.prepared.authority_id) == (["active", "prepared"], prepared)
    activated = await kind.change("Activate", prepared)
    assert (activated.authority_id, activated.expires_at) == (prepared, state.prepared.expires_at)
    state = await kind.state()
    assert present(state) == ["active", "old"]
    assert state.old == first.active
    tainted = await kind.change("Taint", first.active.authority_id)
    assert tainted.authority_id == first.active.authority_id
    bundle = await kind.house.bundle()
    marks = {each.key_id: each.tainted for each in bundle.jwt_authorities}
    marks |= {tainting.subject_key_id(each.asn1): each.tainted for each in bundle.x509_authorities}
    assert (marks[first.active.authority_id], marks[prepared]) == (True, False)
    revoked = await kind.change("Revoke", first.active.authority_id)
    assert revoked == api.AuthorityState(authority_id=first.active.authority_id)
    bundle = await kind.house.bundle()
    known = {each.key_id for each in bundle.jwt_authorities}
    known |= {tainting.subject_key_id(each.asn1) for each in bundle.x509_authorities}
    assert first.active.authority_id not in known
    assert prepared in known
    assert present(await kind.state()) == ["active", "old"]


async def test_what_may_not_be_done(kind: Kind) -> None:
    invalid = Code.INVALID_ARGUMENT
    jwt = kind.name == "JWT"
    active = (await kind.state()).active.authority_id
    for verb in ("Activate", "Taint"):
        assert await kind.refused(verb, "") == (invalid, "no authority ID provided")
        assert await kind.refused(verb, "unknown") == (invalid, "unexpected authority ID")
    assert await kind.refused("Revoke", "") == (invalid, "invalid authority ID: no authority ID provided")
    assert await kind.refused("Revoke", "unknown") == (
        invalid,
        "invalid authority ID: no JWT authority found with provided authority ID"
        if jwt
        else "invalid authority ID: only Old local authority can be revoked",
    )
    assert await kind.refused("Activate", active) == (invalid, "unexpected authority ID")
    assert await kind.refused("Taint", active) == (invalid, "unable to taint current local authority")
    assert await kind.refused("Revoke", active) == (invalid, "invalid authority ID: unable to use current authority")

    prepared = await kind.prepare()
    assert await kind.refused("Taint", prepared) == (
        invalid,
        "only Old local authorities can be tainted: unsupported local authority status: PREPARED",
    )
    assert await kind.refused("Revoke", prepared) == (
        invalid,
        "invalid authority ID: unable to use a prepared key"
        if jwt
        else "invalid authority ID: only Old local authority can be revoked",
    )
    await kind.change("Activate", prepared)
    assert await kind.refused("Activate", active) == (
        Code.INTERNAL,
        "only Prepared authorities can be activated: unsupported local authority status: OLD",
    )
    what, thing = ("JWT", "key") if jwt else ("X.509", "root CA")
    assert await kind.refused("Revoke", active) == (
        Code.INTERNAL,
        f"failed to revoke {what} authority: it is not possible to revoke an untainted {thing}",
    )
    await kind.change("Taint", active)
    assert await kind.refused("Taint", active) == (
        Code.INTERNAL,
        f"failed to taint {what} authority: {thing} is already tainted",
    )


async def test_upstream_authorities_of_a_server_without_one(house: House) -> None:
    for name in ("Taint", "Revoke"):
        request: Message = getattr(api, f"{name}X509UpstreamAuthorityRequest")(subject_key_id="ab")
        error = await refused(house.local, f"{LOCAL}{name}X509UpstreamAuthority", request)
        assert (error.code, error.message) == (Code.FAILED_PRECONDITION, "upstream authority is not configured")


@pytest.mark.parametrize("verb", ["GetState", "Prepare", "Activate", "Taint", "Revoke"])
async def test_wit_authorities_come_later(house: House, verb: str) -> None:
    method = "GetWITAuthorityState" if verb == "GetState" else f"{verb}WITAuthority"
    error = await refused(house.local, LOCAL + method, getattr(api, f"{method}Request")())
    assert (error.code, error.message) == (Code.UNIMPLEMENTED, "WIT-SVID functionality is not yet implemented")


@pytest.mark.parametrize("verb", ["GetState", "Prepare", "Activate", "Taint", "Revoke"])
async def test_jwt_authorities_may_be_turned_off(tmp_path: Path, verb: str) -> None:
    method = "GetJWTAuthorityState" if verb == "GetState" else f"{verb}JWTAuthority"
    async with running(tmp_path, settings="disable_jwt_svids = true") as house:
        error = await refused(house.local, LOCAL + method, getattr(api, f"{method}Request")())
        assert (error.code, error.message) == (Code.UNIMPLEMENTED, "JWT functionality is disabled")


async def test_agents_are_not_operators(house: House) -> None:
    agent = await house.attest()
    error = await refused(agent.channel, LOCAL + "PrepareX509Authority", api.PrepareX509AuthorityRequest())
    assert error.code is Code.PERMISSION_DENIED


async def shown(house: House) -> tuple[bytes, ...]:
    """The chain that the server shows on a new connection."""
    chains: list[tuple[bytes, ...]] = []
    channel = Channel.tcp("127.0.0.1", house.port, lambda: client_context(None), chains.append)
    house.channels.append(channel)
    await channel.unary(BUNDLE + "GetBundle", bundle_pb2.GetBundleRequest(), types.Bundle)
    return chains[0]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.05)


async def test_a_taint_renews_the_servers_own_svid(house: House) -> None:
    x509_kind = Kind(house, "X509")
    [before] = await shown(house)
    old = (await x509_kind.state()).active.authority_id
    await x509_kind.change("Activate", await x509_kind.prepare())
    assert await shown(house) == (before,)
    await x509_kind.change("Taint", old)

    async def renewed() -> bool:
        return await shown(house) != (before,)

    await until(renewed)
    assert tainting.authority_key_id((await shown(house))[0]) != old


class Files:
    """The CA files of an upstream authority "disk"."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sign_with(root())

    @property
    def plugin(self) -> str:
        return (
            f'UpstreamAuthority "disk" {{ plugin_data {{ cert_file_path = "{self._folder}/ca.pem"\n'
            f' key_file_path = "{self._folder}/ca.key" }} }}'
        )

    def sign_with(self, signer: Authority) -> None:
        self.key_id = tainting.subject_key_id(signer.der)
        (self._folder / "ca.pem").write_text(bundles.to_pem([signer.der]))
        key = signer.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self._folder / "ca.key").write_bytes(key)


def root() -> Authority:
    """One of today."""
    key = ec_key()
    now = datetime.now(UTC)
    content = Certificate(
        uris=(),
        subject="upstream",
        ca=True,
        usage=("key_cert_sign",),
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(days=2),
    )
    return Authority(key, x509.load_der_x509_certificate(Authority.root(name="upstream", key=key).sign(content, key)))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest_asyncio.fixture
async def below(tmp_path: Path, files: Files) -> AsyncIterator[House]:
    async with running(tmp_path, plugins=files.plugin) as made:
        yield made


async def test_a_rotation_of_the_upstream(below: House, files: Files) -> None:
    x509_kind = Kind(below, "X509")
    old = files.key_id
    first = await x509_kind.state()
    assert first.active.upstream_authority_subject_key_id == old
    assert len(await shown(below)) == 2
    assert await upstream_refused(below, "Taint", "") == (
        Code.INVALID_ARGUMENT,
        "provided subject key id is not valid: no subject key ID provided",
    )
    assert await upstream_refused(below, "Taint", old) == (
        Code.INVALID_ARGUMENT,
        "provided subject key id is not valid: unable to use upstream authority singing current authority",
    )
    await asyncio.to_thread(files.sign_with, root())
    prepared = await x509_kind.prepare()
    assert (await x509_kind.state()).prepared.upstream_authority_subject_key_id == files.key_id
    assert await upstream_refused(below, "Taint", files.key_id) == (
        Code.INVALID_ARGUMENT,
        "provided subject key id is not valid: only upstream authorities signing an old authority can be used",
    )
    await x509_kind.change("Activate", prepared)
    assert await upstream_refused(below, "Revoke", old) == (
        Code.INTERNAL,
        "failed to revoke X.509 upstream authority: it is not possible to revoke an untainted root CA",
    )
    before = await shown(below)
    request = api.TaintX509UpstreamAuthorityRequest(subject_key_id=old.upper())
    method = "TaintX509UpstreamAuthority"
    done = await below.local.unary(LOCAL + method, request, api.TaintX509UpstreamAuthorityResponse)
    assert done.upstream_authority_subject_key_id == old

    async def renewed() -> bool:
        return await shown(below) != before

    await until(renewed)
    assert [each.tainted for each in (await below.bundle()).x509_authorities] == [True, False]
    assert (await upstream_refused(below, "Taint", old))[1] == (
        "failed to taint upstream authority: root CA is already tainted"
    )
    revoke = api.RevokeX509UpstreamAuthorityRequest(subject_key_id=old)
    await below.local.unary(LOCAL + "RevokeX509UpstreamAuthority", revoke, api.RevokeX509UpstreamAuthorityResponse)
    assert [each.tainted for each in (await below.bundle()).x509_authorities] == [False]
    assert (await upstream_refused(below, "Revoke", "ab"))[1] == (
        "invalid subject key ID: upstream authority didn't sign the old local authority"
    )


async def upstream_refused(house: House, verb: str, key_id: str) -> tuple[Code, str]:
    request: Message = getattr(api, f"{verb}X509UpstreamAuthorityRequest")(subject_key_id=key_id)
    error = await refused(house.local, f"{LOCAL}{verb}X509UpstreamAuthority", request)
    return error.code, error.message


@pytest.mark.parametrize("verb", ["Taint", "Revoke"])
async def test_below_an_upstream_its_own_authorities_are_not_tainted(below: House, verb: str) -> None:
    assert await Kind(below, "X509").refused(verb, "x") == (
        Code.FAILED_PRECONDITION,
        f"local authority can't be {'tainted' if verb == 'Taint' else 'revoked'} if there is an upstream authority",
    )


async def test_agents_and_workloads_get_the_chain(below: House, files: Files) -> None:
    agent = await below.attest()
    [web] = await below.create(new_entry("/web", agent.id))
    request = svid_pb2.BatchNewX509SVIDRequest(params=[svid_pb2.NewX509SVIDParams(entry_id=web.id, csr=csr(ec_key()))])
    response = await agent.channel.unary(SVID + "BatchNewX509SVID", request, svid_pb2.BatchNewX509SVIDResponse)
    roots = [each.asn1 for each in (await below.bundle()).x509_authorities]
    for chain in (agent.svid.cert_chain, response.results[0].svid.cert_chain):
        assert len(chain) == 2
        x509svid.verify(list(chain), {TRUST_DOMAIN: roots}, datetime.now(UTC))
        assert tainting.authority_key_id(chain[1]) == files.key_id


async def downstream(house: House) -> Channel:
    """A channel that shows the SVID of a downstream entry."""
    agent = await house.attest()
    wanted = new_entry("/downstream", agent.id)
    wanted.downstream = True
    [entry] = await house.create(wanted)
    key = ec_key()
    request = svid_pb2.BatchNewX509SVIDRequest(params=[svid_pb2.NewX509SVIDParams(entry_id=entry.id, csr=csr(key))])
    response = await agent.channel.unary(SVID + "BatchNewX509SVID", request, svid_pb2.BatchNewX509SVIDResponse)
    return await house.remote(InProcessIdentity(tuple(response.results[0].svid.cert_chain), pkcs8(key)))


@pytest.mark.parametrize("upstream", [False, True])
async def test_downstream_authorities(tmp_path: Path, files: Files, upstream: bool) -> None:
    async with running(tmp_path, plugins=files.plugin if upstream else "") as house:
        channel = await downstream(house)
        key = ec_key()
        request = svid_pb2.NewDownstreamX509CARequest(csr=csr(key), preferred_ttl=600)
        response = await channel.unary(SVID + "NewDownstreamX509CA", request, svid_pb2.NewDownstreamX509CAResponse)
        roots = [each.asn1 for each in (await house.bundle()).x509_authorities]
        assert list(response.x509_authorities) == roots
        assert len(response.ca_cert_chain) == (2 if upstream else 1)
        own = x509.load_der_x509_certificate(response.ca_cert_chain[0])
        now = datetime.now(UTC)
        assert 500 < (own.not_valid_after_utc - now).total_seconds() <= 600
        content = Certificate(not_before=now - timedelta(seconds=5), not_after=now + timedelta(seconds=60))
        leaf = Authority(key, own).sign(content)
        assert x509svid.verify((leaf, *response.ca_cert_chain), {TRUST_DOMAIN: roots}, now).path == "/workload"

        for bad, message in (
            (b"", "malformed CSR"),
            (b"garbage", "malformed CSR"),
            (tampered(), "invalid CSR signature"),
        ):
            error = await refused(channel, SVID + "NewDownstreamX509CA", svid_pb2.NewDownstreamX509CARequest(csr=bad))
            assert error.code is Code.INVALID_ARGUMENT
            assert error.message.startswith(message)


def tampered() -> bytes:
    request = csr(ec_key())
    return request[:-1] + bytes((request[-1] ^ 1,))


async def test_who_is_no_downstream_server(house: House) -> None:
    agent = await house.attest()
    for channel in (agent.channel, house.local):
        request = svid_pb2.NewDownstreamX509CARequest(csr=csr(ec_key()))
        error = await refused(channel, SVID + "NewDownstreamX509CA", request)
        assert error.code is Code.PERMISSION_DENIED


async def test_unique_ids(tmp_path: Path) -> None:
    async with running(tmp_path, plugins='CredentialComposer "uniqueid" {}') as house:
        request = svid_pb2.MintX509SVIDRequest(csr=csr(ec_key(), uris=["spiffe://example.org/web"]))
        minted = await house.local.unary(SVID + "MintX509SVID", request, svid_pb2.MintX509SVIDResponse)
        subject = x509.load_der_x509_certificate(minted.svid.cert_chain[0]).subject
        [unique] = subject.get_attributes_for_oid(x509.NameOID.X500_UNIQUE_IDENTIFIER)
        assert unique.value == unique_id("spiffe://example.org/web")
