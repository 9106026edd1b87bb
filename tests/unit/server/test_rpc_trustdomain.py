"""spire.api.server.trustdomain.v1.TrustDomain through a running server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_api
from generated.spire.api.server.trustdomain.v1 import trustdomain_pb2 as api
from generated.spire.api.types import bundle_pb2
from generated.spire.api.types import federationrelationship_pb2 as types
from operations import logs
from tests.simulators.bundle_endpoint import bundle_of, serving, svid_context
from tests.simulators.callers import ForeignDomain, minted
from tests.simulators.house import BUNDLE, House, new_entry, refused, running, spiffe_id
from transport.status import Code

TRUSTDOMAIN = "/spire.api.server.trustdomain.v1.TrustDomain/"
MASK = types.FederationRelationshipMask
OTHER = ForeignDomain.of("other.org")
OK = (Code.OK, "OK")
Relationship = types.FederationRelationship
Response = TypeVar("Response", bound=Message)
Results = Sequence[
    api.BatchCreateFederationRelationshipResponse.Result | api.BatchUpdateFederationRelationshipResponse.Result
]


def web(name: str = "other.org", url: str = "https://other.org/bundle", **more: Any) -> Relationship:
    return Relationship(trust_domain=name, bundle_endpoint_url=url, https_web=types.HTTPSWebProfile(), **more)


def by_svid(endpoint: str = "spiffe://other.org/endpoint", **more: Any) -> Relationship:
    profile = types.HTTPSSPIFFEProfile(endpoint_spiffe_id=endpoint)
    return Relationship(
        trust_domain="other.org", bundle_endpoint_url="https://other.org/bundle", https_spiffe=profile, **more
    )


async def ask(house: House, method: str, request: Message, response: type[Response]) -> Response:
    return await house.local.unary(TRUSTDOMAIN + method, request, response)


async def create(house: House, *relationships: Relationship, mask: MASK | None = None) -> Results:
    request = api.BatchCreateFederationRelationshipRequest(federation_relationships=relationships, output_mask=mask)
    response = api.BatchCreateFederationRelationshipResponse
    return (await ask(house, "BatchCreateFederationRelationship", request, response)).results


async def update(
    house: House, relationship: Relationship, mask: MASK | None = None, output: MASK | None = None
) -> Results:
    request = api.BatchUpdateFederationRelationshipRequest(
        federation_relationships=[relationship], input_mask=mask, output_mask=output
    )
    response = api.BatchUpdateFederationRelationshipResponse
    return (await ask(house, "BatchUpdateFederationRelationship", request, response)).results


async def get(house: House, name: str = "other.org", mask: MASK | None = None) -> Relationship:
    request = api.GetFederationRelationshipRequest(trust_domain=name, output_mask=mask)
    return await ask(house, "GetFederationRelationship", request, Relationship)


async def stored_bundle(house: House) -> bundle_pb2.Bundle:
    request = bundle_api.GetFederatedBundleRequest(trust_domain="other.org")
    return await house.local.unary(BUNDLE + "GetFederatedBundle", request, bundle_pb2.Bundle)


def statuses(results: Results) -> list[tuple[int, str]]:
    return [(result.status.code, result.status.message) for result in results]


async def test_a_relationship_comes_back_as_it_was_made(house: House) -> None:
    [made] = await create(house, by_svid(trust_domain_bundle=OTHER.bundle()))
    assert statuses([made]) == [OK]
    assert made.federation_relationship == await get(house) == by_svid(trust_domain_bundle=OTHER.bundle())
    assert await stored_bundle(house) == OTHER.bundle()
    assert await get(house, "spiffe://other.org", MASK()) == Relationship(trust_domain="other.org")
    masked = await get(house, mask=MASK(bundle_endpoint_profile=True))
    assert masked == Relationship(trust_domain="other.org", https_spiffe=by_svid().https_spiffe)

    [second] = await create(
        house, web("second.org", "HTTPS://second.org:8443/b?x=1"), mask=MASK(trust_domain_bundle=True)
    )
    assert second.federation_relationship == Relationship(trust_domain="second.org")
    assert await get(house, "second.org") == web("second.org", "https://second.org:8443/b?x=1")
    [twice] = await create(house, web())
    assert twice.status.code == Code.ALREADY_EXISTS
    assert twice.status.message.startswith("failed to create federation relationship: ")


@pytest.mark.parametrize(
    ("relationship", "message"),
    [
        (web(""), "failed to parse trust domain: trust domain is missing"),
        (web("Other.org"), "failed to parse trust domain: trust domain characters are limited"),
        (web(url=""), "bundle endpoint URL must use the https scheme"),
        (web(url="http://other.org"), "bundle endpoint URL must use the https scheme"),
        (web(url="https:///path"), "bundle endpoint URL must specify the host"),
        (web(url="https://:8443/path"), "bundle endpoint URL must specify the host"),
        (web(url="https://user:secret@other.org"), "bundle endpoint URL must not contain user info"),
        (web(url="https://other.org:port"), "failed to parse bundle endpoint URL: "),
        (web(url="https://other.org:99999"), "failed to parse bundle endpoint URL: "),
        (web(url="https://[::1"), "failed to parse bundle endpoint URL: "),
        (web(url="https://other.org/a b"), "failed to parse bundle endpoint URL: "),
        (web(url="https://other.org/\n"), "failed to parse bundle endpoint URL: "),
        (web(url="https://other.org/%zz"), "failed to parse bundle endpoint URL: "),
        (web(url="https://other.org/" + "x" * 2048), "bundle endpoint URL is longer than 2048 characters"),
        (by_svid(""), "failed to parse endpoint SPIFFE ID: cannot be empty"),
        (by_svid("other.org"), "failed to parse endpoint SPIFFE ID: scheme is missing or invalid"),
        (
            Relationship(trust_domain="other.org", bundle_endpoint_url="https://other.org"),
            "unsupported bundle endpoint profile type: <nil>",
        ),
        (
            web(trust_domain_bundle=bundle_pb2.Bundle(trust_domain="second.org")),
            'trust domain bundle ("second.org") must match the trust domain of the federation relationship ("other.',
        ),
        (web(trust_domain_bundle=bundle_pb2.Bundle()), "failed to parse bundle: invalid trust domain: "),
        (
            web(
                trust_domain_bundle=bundle_pb2.Bundle(
                    trust_domain="other.org", x509_authorities=[bundle_pb2.X509Certificate(asn1=b"x")]
                )
            ),
            "failed to parse bundle: unable to parse X.509 authority: ",
        ),
    ],
)
async def test_relationships_that_are_refused(house: House, relationship: Relationship, message: str) -> None:
    """Whatever a mask takes of them."""
    created = await create(house, relationship, web("second.org"))
    for results in (created, await update(house, relationship, MASK())):
        assert results[0].status.code == Code.INVALID_ARGUMENT
        assert results[0].status.message.startswith(f"failed to convert federation relationship: {message}")
        assert not results[0].HasField("federation_relationship")
    # The rest of a batch is done all the same.
    assert statuses(created[1:]) == [OK]
    assert await listed(house) == ["second.org"]


async def test_nobody_federates_with_themselves(house: House) -> None:
    text = "unable to create federation relationship for server trust domain"
    assert statuses(await create(house, web("example.org"))) == [(Code.INVALID_ARGUMENT, text)]


async def test_an_update_changes_what_its_mask_names(house: House) -> None:
    changed = by_svid(trust_domain_bundle=OTHER.bundle())
    changed.bundle_endpoint_url = "https://elsewhere.org"
    absent = [(Code.NOT_FOUND, "federation relationship not found")]
    assert statuses(await update(house, changed)) == absent
    await create(house, web())
    [result] = await update(house, changed, MASK(bundle_endpoint_url=True), MASK(bundle_endpoint_url=True))
    expected = Relationship(trust_domain="other.org", bundle_endpoint_url="https://elsewhere.org")
    assert result.federation_relationship == expected
    assert await get(house) == web(url="https://elsewhere.org")
    [result] = await update(house, changed)
    assert result.federation_relationship == await get(house) == changed
    assert await stored_bundle(house) == OTHER.bundle()
    # No bundle in the request leaves the one that is there.
    await update(house, web())
    assert await get(house) == web(trust_domain_bundle=OTHER.bundle())


async def listed(house: House, size: int = 0) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        request = api.ListFederationRelationshipsRequest(page_size=size, page_token=token, output_mask=MASK())
        page = await ask(house, "ListFederationRelationships", request, api.ListFederationRelationshipsResponse)
        assert not size or len(page.federation_relationships) <= size
        assert all(each == Relationship(trust_domain=each.trust_domain) for each in page.federation_relationships)
        found += [each.trust_domain for each in page.federation_relationships]
        token = page.next_page_token
        if not token:
            return found


async def test_relationships_are_listed_in_pages(house: House) -> None:
    names = [f"td{number}.org" for number in (3, 1, 4, 2, 0)]
    await create(house, *map(web, names))
    for size in (0, 1, 2, 5, 1000):
        assert await listed(house, size) == names
    bad = api.ListFederationRelationshipsRequest(page_size=1, page_token="not a token")
    error = await refused(house.local, TRUSTDOMAIN + "ListFederationRelationships", bad)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith("failed to list federation relationships: could not parse token")


async def test_a_deletion_leaves_the_bundle(house: House) -> None:
    await create(house, web(trust_domain_bundle=OTHER.bundle()))
    names = ["spiffe://other.org", "other.org", "", "BAD", "example.org"]
    request = api.BatchDeleteFederationRelationshipRequest(trust_domains=names)
    response = await ask(
        house, "BatchDeleteFederationRelationship", request, api.BatchDeleteFederationRelationshipResponse
    )
    assert [(each.trust_domain, each.status.code) for each in response.results] == [
        ("other.org", Code.OK),
        ("other.org", Code.NOT_FOUND),
        ("", Code.INVALID_ARGUMENT),
        ("BAD", Code.INVALID_ARGUMENT),
        ("example.org", Code.NOT_FOUND),
    ]
    assert [each.status.message for each in response.results[:3]] == [
        "OK",
        "federation relationship not found",
        "missing trust domain",
    ]
    assert response.results[3].status.message.startswith("failed to parse trust domain: ")
    assert await listed(house) == []
    assert await stored_bundle(house) == OTHER.bundle()


@pytest.mark.parametrize("method", ["GetFederationRelationship", "RefreshBundle"])
async def test_a_trust_domain_that_is_none_or_unknown(house: House, method: str) -> None:
    for name, code, message in (
        ("", Code.INVALID_ARGUMENT, "failed to parse trust domain: trust domain is missing"),
        ("spiffe:/a", Code.INVALID_ARGUMENT, "failed to parse trust domain: scheme is missing or invalid"),
        (
            "absent.org",
            Code.NOT_FOUND,
            "federation relationship does not exist"
            if method.startswith("Get")
            else 'no relationship with trust domain "absent.org"',
        ),
    ):
        error = await refused(house.local, TRUSTDOMAIN + method, api.RefreshBundleRequest(trust_domain=name))
        assert (error.code, error.message) == (code, message)


async def test_a_bundle_is_fetched_as_soon_as_it_is_asked_for(house: House) -> None:
    """Over a relationship that was made just now; the bundle stays when that goes."""
    async with serving(svid_context(house.folder, OTHER)) as endpoint:
        endpoint.give(bundle_of(OTHER, sequence=7, hint=60))
        await create(house, by_svid("spiffe://other.org/spire/server", trust_domain_bundle=OTHER.bundle()))
        refresh = api.RefreshBundleRequest(trust_domain="spiffe://other.org")
        error = await refused(house.local, TRUSTDOMAIN + "RefreshBundle", refresh)
        assert error.code is Code.INTERNAL
        assert error.message.startswith(
            "failed to refresh bundle: failed to fetch federated bundle from endpoint: cannot reach https://other.org"
        )
        await update(
            house, Relationship(trust_domain="other.org", **where(endpoint.url)), MASK(bundle_endpoint_url=True)
        )
        await ask(house, "RefreshBundle", refresh, empty_pb2.Empty)
        assert await stored_bundle(house) == bundle_of(OTHER, sequence=7, hint=60).to_proto()
        removal = api.BatchDeleteFederationRelationshipRequest(trust_domains=["other.org"])
        await ask(house, "BatchDeleteFederationRelationship", removal, api.BatchDeleteFederationRelationshipResponse)
        assert (await refused(house.local, TRUSTDOMAIN + "RefreshBundle", refresh)).code is Code.NOT_FOUND
        assert (await stored_bundle(house)).sequence_number == 7


def where(url: str) -> dict[str, Any]:
    return {"bundle_endpoint_url": url, "https_web": types.HTTPSWebProfile()}


async def test_admins_federate_and_nobody_else(house: House) -> None:
    admin = await minted(house, "/admin")
    request = api.ListFederationRelationshipsRequest()
    method = TRUSTDOMAIN + "ListFederationRelationships"
    assert (await refused(admin, method, request)).code is Code.PERMISSION_DENIED
    assert (await refused((await house.attest()).channel, method, request)).code is Code.PERMISSION_DENIED
    entry = new_entry("/admin", spiffe_id("/parent"))
    entry.admin = True
    await house.create(entry)
    await admin.unary(method, request, api.ListFederationRelationshipsResponse)


async def test_the_audit_log_has_spires_fields(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("info", "json", str(file))
    try:
        async with running(tmp_path, settings="audit_log_enabled = true") as house:
            await create(house, by_svid(trust_domain_bundle=OTHER.bundle()))
            await update(house, web(url="https://a"), MASK(bundle_endpoint_url=True))
            removal = bundle_api.BatchDeleteFederatedBundleRequest(
                trust_domains=["other.org"], mode=bundle_api.BatchDeleteFederatedBundleRequest.DISSOCIATE
            )
            answer = bundle_api.BatchDeleteFederatedBundleResponse
            await house.local.unary(BUNDLE + "BatchDeleteFederatedBundle", removal, answer)
    finally:
        logs.setup("info", "text")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    created, updated, deleted = (
        line for line in lines if line.get("type") == "audit" and line["method"].startswith("Batch")
    )
    assert created["service"] == "trustdomain.v1.TrustDomain"
    assert created["status"] == updated["status"] == deleted["status"] == "success"
    assert created["trust_domain_id"] == created["bundle_trust_domain_id"] == "other.org"
    assert created["bundle_endpoint_profile"] == "https_spiffe"
    assert created["endpoint_spiffe_id"] == "spiffe://other.org/endpoint"
    assert len(created["bundle_x509_authorities_asn1_sha256.0"]) == 64
    assert updated["bundle_endpoint_url"] == "https://a"
    assert "bundle_endpoint_profile" not in updated
    assert (deleted["service"], deleted["mode"]) == ("bundle.v1.Bundle", "DISSOCIATE")
    warning = "bundle not found for the endpoint SPIFFE ID trust domain"
    assert not [line for line in lines if line["msg"] == warning]


async def test_an_endpoint_whose_trust_domain_is_unknown_brings_a_warning(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    assert statuses(await create(house, by_svid("spiffe://third.org/endpoint"))) == [OK]
    assert "bundle not found for the endpoint SPIFFE ID trust domain" in caplog.messages
