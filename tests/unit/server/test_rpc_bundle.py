"""spire.api.server.bundle.v1.Bundle through a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from google.protobuf.message import Message

from generated.spire.api.server.bundle.v1 import bundle_pb2 as api
from generated.spire.api.server.entry.v1 import entry_pb2 as entry_api
from generated.spire.api.types import bundle_pb2, entry_pb2
from tests.simulators import pki
from tests.simulators.callers import ForeignDomain, minted
from tests.simulators.house import BUNDLE, ENTRY, House, new_entry, refused, running, spiffe_id
from transport.limits import MIB
from transport.status import Code

ONE, TWO = pki.Authority.root("spiffe://other.org").der, pki.Authority.root("spiffe://other.org").der
KEY, OTHER_KEY = pki.spki(pki.ec_key()), pki.spki(pki.ec_key())
PARENT = spiffe_id("/parent")
MASK = bundle_pb2.BundleMask
Response = TypeVar("Response", bound=Message)
Deleted = Sequence[api.BatchDeleteFederatedBundleResponse.Result]
Written = Sequence[
    api.BatchCreateFederatedBundleResponse.Result
    | api.BatchUpdateFederatedBundleResponse.Result
    | api.BatchSetFederatedBundleResponse.Result
]


def foreign(name: str = "other.org", *certificates: bytes, keys: Sequence[str] = ("key",)) -> bundle_pb2.Bundle:
    return bundle_pb2.Bundle(
        trust_domain=name,
        x509_authorities=[bundle_pb2.X509Certificate(asn1=each) for each in certificates or (ONE,)],
        jwt_authorities=[bundle_pb2.JWTKey(public_key=KEY, key_id=each, expires_at=4_000_000_000) for each in keys],
        refresh_hint=60,
        sequence_number=4,
    )


async def ask(house: House, method: str, request: Message, response: type[Response]) -> Response:
    return await house.local.unary(BUNDLE + method, request, response)


async def create(house: House, *bundles: bundle_pb2.Bundle, mask: MASK | None = None) -> Written:
    request = api.BatchCreateFederatedBundleRequest(bundle=bundles, output_mask=mask)
    response = await ask(house, "BatchCreateFederatedBundle", request, api.BatchCreateFederatedBundleResponse)
    return response.results


async def store(house: House, *bundles: bundle_pb2.Bundle) -> Written:
    request = api.BatchSetFederatedBundleRequest(bundle=bundles)
    return (await ask(house, "BatchSetFederatedBundle", request, api.BatchSetFederatedBundleResponse)).results


async def update(house: House, bundle: bundle_pb2.Bundle, mask: MASK | None = None) -> Written:
    request = api.BatchUpdateFederatedBundleRequest(bundle=[bundle], input_mask=mask)
    response = await ask(house, "BatchUpdateFederatedBundle", request, api.BatchUpdateFederatedBundleResponse)
    return response.results


async def delete(house: House, *names: str, mode: int = api.BatchDeleteFederatedBundleRequest.RESTRICT) -> Deleted:
    chosen = api.BatchDeleteFederatedBundleRequest.Mode.ValueType(mode)
    request = api.BatchDeleteFederatedBundleRequest(trust_domains=names, mode=chosen)
    response = await ask(house, "BatchDeleteFederatedBundle", request, api.BatchDeleteFederatedBundleResponse)
    return response.results


async def get(house: House, name: str = "other.org", mask: MASK | None = None) -> bundle_pb2.Bundle:
    request = api.GetFederatedBundleRequest(trust_domain=name, output_mask=mask)
    return await ask(house, "GetFederatedBundle", request, bundle_pb2.Bundle)


def statuses(results: Written | Deleted) -> list[tuple[int, str]]:
    return [(result.status.code, result.status.message) for result in results]


OK = (Code.OK, "OK")


async def test_a_bundle_comes_back_as_it_was_made(house: House) -> None:
    [made] = await create(house, foreign(), mask=MASK(refresh_hint=True))
    assert statuses([made]) == [OK]
    assert made.bundle == bundle_pb2.Bundle(trust_domain="other.org", refresh_hint=60)
    assert await get(house) == await get(house, "spiffe://other.org") == foreign()
    masked = await get(house, mask=MASK(sequence_number=True, x509_authorities=True))
    assert masked == bundle_pb2.Bundle(
        trust_domain="other.org", sequence_number=4, x509_authorities=foreign().x509_authorities
    )
    assert statuses(await create(house, foreign())) == [(Code.ALREADY_EXISTS, "bundle already exists")]


async def test_setting_takes_the_place_of_what_was_there(house: House) -> None:
    assert statuses(await store(house, foreign(), foreign("other.org", TWO))) == [OK, OK]
    assert await get(house) == foreign("other.org", TWO)


async def test_an_update_changes_what_its_mask_names(house: House) -> None:
    assert statuses(await update(house, foreign())) == [(Code.NOT_FOUND, "bundle not found")]
    await store(house, foreign())
    change = foreign("other.org", TWO, keys=[])
    change.refresh_hint, change.sequence_number = 9, 9
    expected = foreign()
    expected.refresh_hint = 9
    [result] = await update(house, change, MASK(refresh_hint=True))
    assert result.bundle == await get(house) == expected
    await update(house, change)
    assert await get(house) == change


async def test_what_a_foreign_server_knows_of_its_authorities_is_not_taken_over(house: House) -> None:
    """An authority that is there twice is kept once, and nobody taints another's."""
    bundle = foreign("other.org", ONE, ONE, keys=["key", "key"])
    bundle.x509_authorities[0].tainted = bundle.jwt_authorities[0].tainted = True
    assert statuses(await store(house, bundle)) == [OK]
    assert await get(house) == foreign()


async def test_an_expired_authority_is_kept_as_spire_keeps_it(house: House) -> None:
    expired = pki.Authority.root("spiffe://other.org").sign(pki.Certificate(ca=True, not_after=pki.NOW - pki.HOUR / 2))
    assert statuses(await store(house, foreign("other.org", expired))) == [OK]


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (foreign(""), "trust domain argument is not valid: trust domain is missing"),
        (foreign("Other.org"), "trust domain argument is not valid: trust domain characters are limited"),
        (foreign("x" * 256), "trust domain argument is not valid: trust domain is longer"),
        (foreign("example.org"), " a federated bundle for the server's own trust domain is not allowed"),
        (foreign("other.org", b""), "failed to convert bundle: unable to parse X.509 authority: "),
        (foreign("other.org", ONE[:-1]), "failed to convert bundle: unable to parse X.509 authority: "),
        (foreign("other.org", ONE + TWO), "failed to convert bundle: unable to parse X.509 authority: "),
        (foreign("other.org", b"\0" * 70_000), "failed to convert bundle: unable to parse X.509 authority: "),
        (foreign(keys=[""]), "failed to convert bundle: unable to parse JWT authority: missing key ID"),
        (
            bundle_pb2.Bundle(trust_domain="other.org", jwt_authorities=[bundle_pb2.JWTKey(key_id="a")]),
            "failed to convert bundle: unable to parse JWT authority: unable to parse public key",
        ),
        (
            bundle_pb2.Bundle(
                trust_domain="other.org",
                jwt_authorities=[bundle_pb2.JWTKey(key_id="a", public_key=key) for key in (KEY, OTHER_KEY)],
            ),
            'failed to convert bundle: unable to parse JWT authority: two keys have the key ID "a"',
        ),
    ],
)
async def test_bundles_that_are_refused(house: House, bundle: bundle_pb2.Bundle, message: str) -> None:
    await store(house, foreign("third.org"))
    for results in (
        await create(house, bundle, foreign("second.org")),
        await store(house, bundle, foreign("second.org")),
        await update(house, bundle),
    ):
        assert results[0].status.code == Code.INVALID_ARGUMENT
        assert message in results[0].status.message
        # The rest of a batch is done all the same.
        assert statuses(results[1:]) in ([], [OK])
    assert await listed(house) == ["second.org", "third.org"]


async def listed(house: House, size: int = 0) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        request = api.ListFederatedBundlesRequest(page_size=size, page_token=token, output_mask=MASK())
        page = await ask(house, "ListFederatedBundles", request, api.ListFederatedBundlesResponse)
        assert size <= 0 or len(page.bundles) <= size
        assert all(each == bundle_pb2.Bundle(trust_domain=each.trust_domain) for each in page.bundles)
        found += [each.trust_domain for each in page.bundles]
        token = page.next_page_token
        if not token:
            return found


async def test_the_lists_leave_out_the_servers_own_bundle(house: House) -> None:
    names = ["a.org", "b.org", "f.org", "g.org", "h.org"]
    await store(house, *map(foreign, reversed(names)))
    for size in (0, -1, 1, 2, 5, 1000):
        assert await listed(house, size) == names
    count = await ask(house, "CountBundles", api.CountBundlesRequest(), api.CountBundlesResponse)
    assert count.count == 6
    bad = api.ListFederatedBundlesRequest(page_size=1, page_token="not a token")
    error = await refused(house.local, BUNDLE + "ListFederatedBundles", bad)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == 'failed to list bundles: could not parse token "not a token"'


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("absent.org", Code.NOT_FOUND, "bundle not found"),
        ("", Code.INVALID_ARGUMENT, "trust domain argument is not valid: trust domain is missing"),
        (
            "example.org",
            Code.INVALID_ARGUMENT,
            "getting a federated bundle for the server's own trust domain is not allowed",
        ),
    ],
)
async def test_a_bundle_that_is_not_to_be_had(house: House, name: str, code: Code, message: str) -> None:
    request = api.GetFederatedBundleRequest(trust_domain=name)
    error = await refused(house.local, BUNDLE + "GetFederatedBundle", request)
    assert (error.code, error.message) == (code, message)


async def test_agents_get_federated_bundles_and_change_none(house: House) -> None:
    await store(house, foreign())
    agent = await house.attest()
    request = api.GetFederatedBundleRequest(trust_domain="other.org")
    got = await agent.channel.unary(BUNDLE + "GetFederatedBundle", request, bundle_pb2.Bundle)
    assert got == foreign()
    await store(house, foreign("other.org", TWO))
    got = await agent.channel.unary(BUNDLE + "GetFederatedBundle", request, bundle_pb2.Bundle)
    assert got == foreign("other.org", TWO)
    await delete(house, "other.org")
    assert (await refused(agent.channel, BUNDLE + "GetFederatedBundle", request)).code is Code.NOT_FOUND
    change = api.BatchSetFederatedBundleRequest(bundle=[foreign()])
    assert (await refused(agent.channel, BUNDLE + "BatchSetFederatedBundle", change)).code is Code.PERMISSION_DENIED


async def entries(house: House) -> list[entry_pb2.Entry]:
    request = entry_api.ListEntriesRequest()
    return list((await house.local.unary(ENTRY + "ListEntries", request, entry_api.ListEntriesResponse)).entries)


async def test_what_becomes_of_the_entries_that_federate(house: House) -> None:
    await store(house, foreign(), foreign("second.org"))
    agent = await house.attest()
    both, one = new_entry("/both", agent.id), new_entry("/one", agent.id)
    both.federates_with[:] = ["other.org", "spiffe://second.org"]
    one.federates_with[:] = ["second.org"]
    await house.create(both, one)
    assert [list(each.federates_with) for each in await entries(house)] == [["other.org", "second.org"], ["second.org"]]

    restricted = await delete(house, "other.org", "absent.org", "example.org", "BAD", "")
    text = "failed to delete federated bundle: datastore-sql: cannot delete bundle; federated with 1 registration"
    assert restricted[0].status.code == Code.FAILED_PRECONDITION
    assert restricted[0].status.message.startswith(text)
    own = "removing the bundle for the server trust domain is not allowed"
    assert statuses(restricted[1:3]) == [(Code.NOT_FOUND, "bundle not found"), (Code.INVALID_ARGUMENT, own)]
    assert [each.status.code for each in restricted[3:]] == [Code.INVALID_ARGUMENT] * 2
    assert [each.trust_domain for each in restricted] == ["other.org", "absent.org", "example.org", "BAD", ""]

    modes = api.BatchDeleteFederatedBundleRequest
    assert statuses(await delete(house, "other.org", mode=modes.DISSOCIATE)) == [OK]
    found = {each.spiffe_id.path: each for each in await agent.entries()}
    assert list(found["/both"].federates_with) == ["second.org"]
    assert found["/both"].revision_number == 1
    assert statuses(await delete(house, "second.org", mode=modes.DELETE)) == [OK]
    assert await agent.entries() == await entries(house) == []

    request = modes(mode=modes.Mode.ValueType(9), trust_domains=["other.org"])
    error = await refused(house.local, BUNDLE + "BatchDeleteFederatedBundle", request)
    assert (error.code, error.message) == (
        Code.INVALID_ARGUMENT,
        'failed to parse deletion mode: unhandled delete mode "9"',
    )


async def test_an_entry_federates_with_bundles_that_exist(house: House) -> None:
    entry = new_entry("/web", PARENT)
    entry.federates_with[:] = ["other.org"]
    request = entry_api.BatchCreateEntryRequest(entries=[entry])
    for code in (Code.INVALID_ARGUMENT, Code.OK):
        response = await house.local.unary(ENTRY + "BatchCreateEntry", request, entry_api.BatchCreateEntryResponse)
        assert response.results[0].status.code == code
        await store(house, foreign())


async def test_authorities_are_appended_to_the_servers_own_bundle(house: House) -> None:
    before = await house.bundle()
    request = api.AppendBundleRequest(
        x509_authorities=foreign().x509_authorities,
        jwt_authorities=foreign().jwt_authorities,
        output_mask=MASK(sequence_number=True),
    )
    for _ in range(2):
        answer = await ask(house, "AppendBundle", request, bundle_pb2.Bundle)
        assert answer == bundle_pb2.Bundle(trust_domain="example.org", sequence_number=before.sequence_number + 1)
    after = await house.bundle()
    assert list(after.x509_authorities) == [*before.x509_authorities, *foreign().x509_authorities]
    assert list(after.jwt_authorities) == [*before.jwt_authorities, *foreign().jwt_authorities]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (api.AppendBundleRequest(), "no authorities to append"),
        (
            api.AppendBundleRequest(x509_authorities=[bundle_pb2.X509Certificate(asn1=b"x")]),
            "failed to convert X.509 authority: ",
        ),
        (
            api.AppendBundleRequest(jwt_authorities=[bundle_pb2.JWTKey(public_key=KEY)]),
            "failed to convert JWT authority: missing key ID",
        ),
    ],
)
async def test_authorities_that_are_not_appended(house: House, request_: api.AppendBundleRequest, message: str) -> None:
    before = await house.bundle()
    error = await refused(house.local, BUNDLE + "AppendBundle", request_)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith(message)
    assert await house.bundle() == before


async def test_a_batch_that_is_too_large_harms_nobody(house: House) -> None:
    """Over the limit of a message it is refused whole; below it others are served meanwhile."""
    bundle = foreign("other.org", b"\0" * (4 * MIB))
    error = await refused(
        house.local, BUNDLE + "BatchSetFederatedBundle", api.BatchSetFederatedBundleRequest(bundle=[bundle])
    )
    assert error.code is Code.RESOURCE_EXHAUSTED
    many = asyncio.ensure_future(delete(house, *["BAD"] * 5_000))
    served = 0
    while not many.done():
        await house.bundle()
        served += 1
    assert len(await many) == 5_000
    assert served > 3


async def test_downstream_servers_publish_their_keys(house: House) -> None:
    """Which an entry makes them."""
    caller = await minted(house, "/downstream")
    key = bundle_pb2.JWTKey(public_key=KEY, key_id="theirs", expires_at=4_000_000_000, tainted=True)
    request = api.PublishJWTAuthorityRequest(jwt_authority=key)
    method = BUNDLE + "PublishJWTAuthority"
    for channel in (caller, house.local):
        assert (await refused(channel, method, request)).code is Code.PERMISSION_DENIED
    entry = new_entry("/downstream", PARENT)
    entry.downstream = True
    await house.create(entry)
    before = await house.bundle()
    key.tainted = False
    for _ in range(2):
        answer = await caller.unary(method, request, api.PublishJWTAuthorityResponse)
        assert list(answer.jwt_authorities) == [*before.jwt_authorities, key]
        assert list((await house.bundle()).jwt_authorities) == list(answer.jwt_authorities)
    for wrong, message in (
        (api.PublishJWTAuthorityRequest(), "missing JWT authority"),
        (
            api.PublishJWTAuthorityRequest(jwt_authority=bundle_pb2.JWTKey(public_key=KEY)),
            "invalid JWT authority: missing key ID",
        ),
    ):
        error = await refused(caller, method, wrong)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)
    error = await refused(caller, BUNDLE + "PublishWITAuthority", api.PublishWITAuthorityRequest())
    assert (error.code, error.message) == (Code.UNIMPLEMENTED, "WIT-SVID functionality is not yet implemented")


async def test_an_admin_of_a_foreign_trust_domain(tmp_path: Path) -> None:
    """Known by the configuration, and by the bundle of its trust domain for as long as that is there."""
    foreign_domain, impostor = ForeignDomain.of("other.org"), ForeignDomain.of("other.org")
    request = api.CountBundlesRequest()
    method = BUNDLE + "CountBundles"
    async with running(tmp_path, settings='admin_ids = ["spiffe://other.org/admin"]') as house:
        admin = await foreign_domain.caller(house, "/admin")
        unknown = await refused(admin, method, request)
        assert unknown.code is Code.UNAUTHENTICATED
        assert 'no bundle found for trust domain "other.org"' in unknown.message

        assert statuses(await store(house, foreign_domain.bundle())) == [OK]
        assert (await admin.unary(method, request, api.CountBundlesResponse)).count == 2
        agents = await refused(admin, ENTRY + "GetAuthorizedEntries", entry_api.GetAuthorizedEntriesRequest())
        assert agents.code is Code.PERMISSION_DENIED
        for caller in (
            await foreign_domain.caller(house, "/other"),
            await impostor.caller(house, "/admin"),
            await foreign_domain.caller(house, "/admin", lifetime=-0.5),
        ):
            assert (await refused(caller, method, request)).code is Code.UNAUTHENTICATED

        await store(house, impostor.bundle())
        assert (await refused(admin, method, request)).code is Code.UNAUTHENTICATED
        await store(house, foreign_domain.bundle())
        assert (await admin.unary(method, request, api.CountBundlesResponse)).count == 2
        # It may even remove what it is known by.
        removal = api.BatchDeleteFederatedBundleRequest(trust_domains=["other.org"])
        removed = await admin.unary(
            BUNDLE + "BatchDeleteFederatedBundle", removal, api.BatchDeleteFederatedBundleResponse
        )
        assert statuses(removed.results) == [OK]
        assert (await refused(admin, method, request)).code is Code.UNAUTHENTICATED
