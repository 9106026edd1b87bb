"""Tainted and revoked authorities in bundles, and what stands below them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from identity import tainting
from identity.bundles import Bundle, JwtAuthority, WitAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, NotFound
from tests.simulators.pki import Authority, Certificate, ec_key, spki

TD = TrustDomain("example.org")
ONE, TWO = Authority.root(name="one"), Authority.root(name="two")
KEYS = (JwtAuthority("a", spki(ec_key())), JwtAuthority("b", spki(ec_key())))
WIT_KEY = WitAuthority("w", spki(ec_key()))
BUNDLE = Bundle(TD, (X509Authority(ONE.der), X509Authority(TWO.der)), KEYS, wit_authorities=(WIT_KEY,))
ONE_ID, TWO_ID = tainting.subject_key_id(ONE.der), tainting.subject_key_id(TWO.der)


def test_key_ids_are_those_of_the_certificates() -> None:
    assert len(ONE_ID) == 40
    assert ONE_ID == ONE_ID.lower() != TWO_ID
    assert tainting.authority_key_id(ONE.sub().der) == ONE_ID
    assert tainting.authority_key_id(ONE.der) in ("", ONE_ID)


@pytest.mark.parametrize(
    ("taint", "revoke", "key_id", "tainted", "untainted"),
    [
        (
            tainting.taint_x509,
            tainting.revoke_x509,
            ONE_ID,
            replace(BUNDLE, x509_authorities=(X509Authority(ONE.der, tainted=True), X509Authority(TWO.der))),
            "root CA",
        ),
        (
            tainting.taint_jwt,
            tainting.revoke_jwt,
            "a",
            replace(BUNDLE, jwt_authorities=(replace(KEYS[0], tainted=True), KEYS[1])),
            "key",
        ),
        (
            tainting.taint_wit,
            tainting.revoke_wit,
            "w",
            replace(BUNDLE, wit_authorities=(replace(WIT_KEY, tainted=True),)),
            "key",
        ),
    ],
    ids=["x509", "jwt", "wit"],
)
def test_what_is_tainted_can_be_revoked(
    taint: Callable[[Bundle, str], Bundle],
    revoke: Callable[[Bundle, str], Bundle],
    key_id: str,
    tainted: Bundle,
    untainted: str,
) -> None:
    with pytest.raises(InvalidArgument, match=f"it is not possible to revoke an untainted {untainted}"):
        revoke(BUNDLE, key_id)
    assert taint(BUNDLE, key_id) == tainted
    with pytest.raises(InvalidArgument, match="already tainted"):
        taint(tainted, key_id)
    gone = revoke(tainted, key_id)
    assert len(gone.x509_authorities) + len(gone.jwt_authorities) + len(gone.wit_authorities) == 4
    for change in (taint, revoke):
        with pytest.raises(NotFound):
            change(gone, key_id)


def test_an_upstreams_new_roots_are_added() -> None:
    followed = tainting.follow(Bundle(TD), [X509Authority(ONE.der), X509Authority(ONE.der)])
    assert followed == tainting.Followed(Bundle(TD, (X509Authority(ONE.der),)))
    followed = tainting.follow(BUNDLE, [X509Authority(TWO.der)])
    assert followed == tainting.Followed(BUNDLE)


def test_an_upstreams_taint_is_reported_and_not_yet_marked() -> None:
    followed = tainting.follow(BUNDLE, [X509Authority(ONE.der, tainted=True), X509Authority(TWO.der)])
    assert followed == tainting.Followed(BUNDLE, tainted=(ONE.der,))
    marked = tainting.taint_x509(BUNDLE, ONE_ID)
    assert tainting.follow(marked, [X509Authority(ONE.der, tainted=True)]) == tainting.Followed(marked)
    unknown = X509Authority(Authority.root(name="three").der, tainted=True)
    assert tainting.follow(BUNDLE, [unknown]).bundle.x509_authorities[-1] == unknown


def test_a_tainted_root_that_the_upstream_has_no_more_is_revoked() -> None:
    marked = tainting.taint_x509(BUNDLE, ONE_ID)
    followed = tainting.follow(marked, [X509Authority(TWO.der)])
    assert followed.revoked == (ONE_ID,)
    assert followed.bundle.x509_authorities == (X509Authority(TWO.der),)
    assert tainting.follow(BUNDLE, [X509Authority(TWO.der)]).revoked == ()


def test_chains_below_an_authority() -> None:
    middle = ONE.sub()
    lower = middle.sub()
    leaf = lower.sign(Certificate())
    for chain in ((leaf, lower.der, middle.der), (leaf, lower.der, middle.der, ONE.der), (middle.der,), (ONE.der,)):
        assert tainting.is_signed_by(chain, [TWO.der, ONE.der])
        assert not tainting.is_signed_by(chain, [TWO.der])
    assert tainting.is_signed_by((leaf, lower.der, middle.der), [middle.der])
    assert not tainting.is_signed_by((leaf,), [ONE.der])
    assert not tainting.is_signed_by((), [ONE.der])
    assert not tainting.is_signed_by((leaf,), [])


def test_a_namesake_with_another_key_signed_nothing() -> None:
    assert not tainting.is_signed_by((ONE.sign(),), [Authority.root(name="one").der])
    assert not tainting.is_signed_by((b"garbage",), [ONE.der])
    assert not tainting.is_signed_by((ONE.sign(),), [b"garbage"])


def test_a_chain_leads_to_an_authority_step_by_step() -> None:
    middle = ONE.sub()
    lower = middle.sub()
    leaf, strangers = lower.sign(Certificate()), Authority.root(name="intermediate").sign(Certificate())
    for chain in ((leaf, lower.der, middle.der), (leaf, lower.der, middle.der, ONE.der), (middle.der,), (ONE.der,)):
        assert tainting.leads_to(chain, [TWO.der, ONE.der])
        assert not tainting.leads_to(chain, [TWO.der])
    assert tainting.leads_to((leaf, lower.der, middle.der, ONE.der), [lower.der])
    for wrong in ((), (leaf,), (leaf, middle.der), (strangers, lower.der, middle.der), (b"garbage", middle.der)):
        assert not tainting.leads_to(wrong, [ONE.der])
