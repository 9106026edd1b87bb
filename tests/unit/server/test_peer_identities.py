"""The chains of peers: verified against the bundle of their trust domain, and again when it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pytest

from identity import x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import NotFound
from server.authorization import REVOKED_GRACE, PeerIdentities
from tests.simulators import pki
from tests.simulators.house import TRUST_DOMAIN
from transport.peer import Peer
from transport.status import Code, RpcError

OTHER = TrustDomain("other.org")
ADMIN = SpiffeId(OTHER, "/admin")


def authority(name: str) -> pki.Authority:
    """A root that is good now."""
    now = datetime.now(UTC)
    content = pki.Certificate(
        uris=(f"spiffe://{name}",),
        subject=name,
        ca=True,
        usage=("key_cert_sign",),
        not_before=now - pki.HOUR,
        not_after=now + pki.HOUR,
    )
    return pki.Authority.root(f"spiffe://{name}").sub(content)


def peer(root: pki.Authority, uri: str, *, ends_in: int = 600) -> Peer:
    now = datetime.now(UTC)
    content = pki.Certificate(uris=(uri,), not_before=now - pki.HOUR, not_after=now + ends_in * pki.HOUR / 3600)
    return Peer("127.0.0.1:1", (root.sign(content),))


class Roots:
    def __init__(self, **roots: Sequence[bytes]) -> None:
        self.known = {TrustDomain(name.replace("_", ".")): each for name, each in roots.items()}
        self.asked = 0

    async def of(self, trust_domain: TrustDomain) -> Sequence[bytes]:
        self.asked += 1
        if trust_domain not in self.known:
            raise NotFound(f'no bundle found for trust domain "{trust_domain}"')
        return self.known[trust_domain]


async def refusal(identities: PeerIdentities, caller: Peer) -> str:
    with pytest.raises(RpcError) as error:
        await identities.of(caller)
    assert error.value.code is Code.UNAUTHENTICATED
    return error.value.message


async def test_a_verdict_lasts_as_long_as_the_bundle() -> None:
    root = authority("example.org")
    roots = Roots(example_org=(root.der,))
    identities = PeerIdentities(TRUST_DOMAIN, (), roots.of)
    caller = peer(root, "spiffe://example.org/a")
    first = await identities.of(caller)
    assert first is not None
    assert str(first.id) == "spiffe://example.org/a"
    assert await identities.of(caller) is first, "the same verdict"

    roots.known[TRUST_DOMAIN] = (authority("example.org").der,)
    assert "could not verify leaf certificate" in await refusal(identities, peer(root, "spiffe://example.org/a"))
    roots.known[TRUST_DOMAIN] = (root.der,)
    assert await identities.of(caller) == first


async def test_who_was_known_has_a_moment_to_renew_when_its_authority_is_revoked() -> None:
    root, other = authority("example.org"), authority("example.org")
    roots = Roots(example_org=(root.der,))
    now = 0.0
    identities = PeerIdentities(TRUST_DOMAIN, (), roots.of, lambda: now)
    known, stranger = peer(root, "spiffe://example.org/a"), peer(root, "spiffe://example.org/b")
    first = await identities.of(known)
    roots.known[TRUST_DOMAIN] = (other.der,)
    assert await identities.of(known) is first
    assert "could not verify" in await refusal(identities, stranger)
    now = REVOKED_GRACE - 1
    roots.known[TRUST_DOMAIN] = (other.der, authority("example.org").der)
    assert await identities.of(known) is first, "no other change of the bundle gives it more time"
    now = REVOKED_GRACE
    for _ in range(2):
        assert "in the bundle no more" in await refusal(identities, known)
    roots.known[TRUST_DOMAIN] = (root.der,)
    assert await identities.of(known) == first


async def test_admins_of_other_trust_domains_have_no_such_moment() -> None:
    root = authority("other.org")
    roots = Roots(other_org=(root.der,))
    identities = PeerIdentities(TRUST_DOMAIN, (ADMIN,), roots.of)
    admin = peer(root, str(ADMIN))
    assert await identities.of(admin) is not None
    roots.known[OTHER] = (authority("other.org").der,)
    assert "in the bundle no more" in await refusal(identities, admin)


async def test_no_certificate_is_nobody() -> None:
    assert await PeerIdentities(TRUST_DOMAIN, (), Roots().of).of(Peer("127.0.0.1:1")) is None


async def test_other_trust_domains_have_admins_only() -> None:
    root = authority("other.org")
    roots = Roots(other_org=(root.der,))
    identities = PeerIdentities(TRUST_DOMAIN, (ADMIN,), roots.of)
    admin = await identities.of(peer(root, str(ADMIN)))
    assert admin is not None
    assert admin.id == ADMIN
    assert "unexpected trust domain" in await refusal(identities, peer(root, "spiffe://other.org/else"))
    assert roots.asked == 1, "no bundle is looked for on behalf of others"
    roots.known.clear()
    assert "no bundle found" in await refusal(identities, peer(root, str(ADMIN)))


async def test_an_admin_of_another_trust_domain_follows_that_domains_bundle() -> None:
    """Over a rotation of its root, and until the bundle goes away: at every call, on a connection that stays."""
    old, new = authority("other.org"), authority("other.org")
    roots = Roots(other_org=(old.der,))
    identities = PeerIdentities(TRUST_DOMAIN, (ADMIN,), roots.of)
    before, after = peer(old, str(ADMIN)), peer(new, str(ADMIN))
    assert await identities.of(before) is not None
    assert "could not verify" in await refusal(identities, after)
    roots.known[OTHER] = (old.der, new.der)
    assert await identities.of(before) is not None
    assert await identities.of(after) is not None
    roots.known[OTHER] = (new.der,)
    assert "in the bundle no more" in await refusal(identities, before)
    assert await identities.of(after) is not None
    del roots.known[OTHER]
    for caller in (before, after):
        assert "no bundle found" in await refusal(identities, caller)
    roots.known[OTHER] = ()
    assert await refusal(identities, after)


async def test_an_own_authority_vouches_for_no_admin_of_another_trust_domain() -> None:
    own = authority("example.org")
    roots = Roots(example_org=(own.der,), other_org=(authority("other.org").der,))
    identities = PeerIdentities(TRUST_DOMAIN, (ADMIN,), roots.of)
    assert "could not verify" in await refusal(identities, peer(own, str(ADMIN)))


async def test_what_is_no_svid() -> None:
    root = authority("example.org")
    identities = PeerIdentities(TRUST_DOMAIN, (), Roots(example_org=(root.der,)).of)
    assert "expired" in await refusal(identities, peer(root, "spiffe://example.org/a", ends_in=-60))
    assert "scheme" in await refusal(identities, peer(root, "https://example.org/a"))
    assert await refusal(identities, Peer("127.0.0.1:1", (b"\x30\x00",)))
    assert "CA flag" in await refusal(identities, Peer("127.0.0.1:1", (root.der,)))


async def test_chains_longer_than_anybody_needs_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    root = authority("example.org")
    identities = PeerIdentities(TRUST_DOMAIN, (), Roots(example_org=[root.der]).of)
    verified: list[int] = []
    verify = x509svid.verify_until

    def counted(
        chain: Sequence[bytes], roots: Mapping[TrustDomain, Sequence[bytes]], now: datetime
    ) -> tuple[SpiffeId, datetime]:
        verified.append(len(chain))
        return verify(chain, roots, now)

    monkeypatch.setattr(x509svid, "verify_until", counted)
    short = peer(root, "spiffe://example.org/a")
    filler = authority("filler.org").der
    monkeypatch.setattr("server.authorization.MAX_REMEMBERED_CHAIN", 9 * len(filler))
    long = Peer("127.0.0.1:1", (*short.certificates, *(filler,) * 9))
    for caller in (short, short, long, long):
        assert await identities.of(caller) is not None
    assert verified == [1, 10, 10]
