"""SPIFFE-ID standard, sections 2.1 to 2.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generated.spire.api.types import spiffeid_pb2
from identity import spiffeid
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument

TD = TrustDomain("example.org")

trust_domains = st.from_regex(r"[a-z0-9._-]{1,40}", fullmatch=True).map(TrustDomain)
segments = st.from_regex(r"[a-zA-Z0-9._-]{1,20}", fullmatch=True).filter(lambda segment: segment not in (".", ".."))
paths = st.lists(segments, max_size=5).map(lambda parts: "".join(f"/{part}" for part in parts))
ids = st.builds(SpiffeId, trust_domains, paths)


@given(ids)
def test_text_and_message_come_back(spiffe_id: SpiffeId) -> None:
    assert SpiffeId.parse(str(spiffe_id)) == spiffe_id
    assert SpiffeId.from_proto(spiffe_id.to_proto()) == spiffe_id
    assert TrustDomain.parse(str(spiffe_id)) == spiffe_id.trust_domain
    assert TrustDomain.parse(spiffe_id.trust_domain.name) == spiffe_id.trust_domain
    assert spiffe_id.trust_domain.id == f"spiffe://{spiffe_id.trust_domain}"


@given(st.text(max_size=30) | st.text(max_size=30).map(lambda text: f"spiffe://{text}"))
def test_whatever_is_accepted_keeps_its_spelling(text: str) -> None:
    try:
        spiffe_id = SpiffeId.parse(text)
    except InvalidArgument:
        return
    assert str(spiffe_id) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be empty"),
        ("example.org/a", "scheme is missing or invalid"),
        ("SPIFFE://example.org", "scheme is missing or invalid"),
        ("spiffe:/example.org", "scheme is missing or invalid"),
        ("spiffe://", "trust domain is missing"),
        ("spiffe:///a", "trust domain is missing"),
        ("spiffe://Example.org", "trust domain characters are limited"),
        ("spiffe://user@example.org/a", "trust domain characters are limited"),
        ("spiffe://example.org:80/a", "trust domain characters are limited"),
        ("spiffe://example.org?q", "trust domain characters are limited"),
        ("spiffe://example.org\n", "trust domain characters are limited"),
        ("spiffe://example.org/", "path cannot have a trailing slash"),
        ("spiffe://example.org/a/", "path cannot have a trailing slash"),
        ("spiffe://example.org//a", "path cannot contain empty segments"),
        ("spiffe://example.org/./a", "path cannot contain dot segments"),
        ("spiffe://example.org/a/..", "path cannot contain dot segments"),
        ("spiffe://example.org/a%20b", "path segment characters are limited"),
        ("spiffe://example.org/a?b", "path segment characters are limited"),
        ("spiffe://example.org/a#b", "path segment characters are limited"),
        ("spiffe://example.org/ü", "path segment characters are limited"),
        ("spiffe://example.org/a\n", "path segment characters are limited"),
        ("spiffe://" + "a" * 256, "trust domain is longer than 255"),
        ("spiffe://example.org/" + "a" * 2048, "SPIFFE ID is longer than 2048"),
    ],
)
def test_faults_are_named(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        SpiffeId.parse(text)


def test_triple_dots_are_an_ordinary_segment() -> None:
    assert SpiffeId.parse("spiffe://example.org/...").path == "/..."


def test_path_without_slash_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="path must have a leading slash"):
        SpiffeId(TD, "a")
    with pytest.raises(InvalidArgument, match="path must have a leading slash"):
        SpiffeId.from_proto(spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="a"))


def test_trust_domain_of_text() -> None:
    assert TrustDomain.parse("spiffe://example.org/a") == TD
    with pytest.raises(InvalidArgument, match="trust domain is missing"):
        TrustDomain.parse("")
    with pytest.raises(InvalidArgument, match="scheme is missing or invalid"):
        TrustDomain.parse("spiffe:/example.org")


def test_roles() -> None:
    agent = SpiffeId(TD, "/spire/agent/join_token/x")
    spiffeid.require_member(TD, agent)
    spiffeid.require_agent(TD, agent)
    spiffeid.require_agent_of_attestor(TD, agent, "join_token")
    spiffeid.require_workload(TD, SpiffeId(TD, "/spirea"))
    assert str(spiffeid.server_id(TD)) == "spiffe://example.org/spire/server"

    with pytest.raises(InvalidArgument, match="is not in the agent namespace for attestor"):
        spiffeid.require_agent_of_attestor(TD, agent, "tpm")
    with pytest.raises(InvalidArgument, match=r"is not a workload in .*; path is in the reserved namespace"):
        spiffeid.require_workload(TD, agent)
    with pytest.raises(InvalidArgument, match=r"is not a workload in .*; path is empty"):
        spiffeid.require_workload(TD, SpiffeId(TD))
    with pytest.raises(InvalidArgument, match=r"is not an agent in .*; path is not in the agent namespace"):
        spiffeid.require_agent(TD, SpiffeId(TD, "/spire/agent"))
    with pytest.raises(InvalidArgument, match=r"is not an agent in .*; path is empty"):
        spiffeid.require_agent(TD, SpiffeId(TD))
    with pytest.raises(InvalidArgument, match=r"is not a member of .*; path is empty"):
        spiffeid.require_member(TD, SpiffeId(TD))
    for check in (spiffeid.require_member, spiffeid.require_agent, spiffeid.require_workload):
        with pytest.raises(InvalidArgument, match="is not a member of trust domain"):
            check(TD, SpiffeId(TrustDomain("other.org"), "/a"))
