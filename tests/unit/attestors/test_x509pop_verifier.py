"""Chains of nodes: good ones with all their CAs, and every kind of bad one refused."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.agent_path import Fields
from attestors.x509pop import verifier
from attestors.x509pop.fields import NAMES, certificate_fields
from attestors.x509pop.verifier import Policy, Verdict
from operations.errors import InvalidArgument, Refused, Unsupported
from tests.simulators.nodes import DAY, Authority, Shape, ec_key, now, root, rsa_key

ROOT = root()


def verify(chain: Sequence[Authority], *anchors: Authority, most: int = 4, bits: int = 8192) -> Verdict:
    policy = Policy(tuple(anchor.der for anchor in anchors or (ROOT,)), most, bits)
    return verifier.verify([each.der for each in chain], policy, now())


def fingerprints(*authorities: Authority) -> list[str]:
    return [verifier.fingerprint(each.certificate) for each in authorities]


def test_a_chain_through_an_intermediate() -> None:
    sub = ROOT.sub()
    node = sub.node()
    verdict = verify((node, sub))
    assert verdict.leaf == node.certificate
    assert verdict.authorities == (sub.certificate, ROOT.certificate)
    values = verifier.selector_values(verdict, {"cluster": "east/1"})
    assert values == [
        "subject:cn:node-1.example.org",
        *(f"ca:fingerprint:{each}" for each in fingerprints(sub, ROOT)),
        f"serialnumber:{verifier.serial_number(node.certificate)}",
        "san:cluster:east/1",
    ]
    assert len(fingerprints(sub)[0]) == 40


def test_the_cas_of_all_paths() -> None:
    """As Go has it: a CA that two others vouch for leads to both."""
    other = root("other")
    key = ec_key()
    first, second = ROOT.sub("cross", key), other.sub("cross", key)
    node = first.node()
    verdict = verify((node, first, second), ROOT, other)
    assert set(verdict.authorities) == {each.certificate for each in (first, second, ROOT, other)}
    assert verify((node, first, second), other).authorities == (second.certificate, other.certificate)


def test_an_intermediate_that_is_an_anchor_and_goes_on() -> None:
    sub = ROOT.sub()
    node = sub.node()
    assert set(verify((node, sub), ROOT, sub).authorities) == {sub.certificate, ROOT.certificate}
    assert verify((node,), sub).authorities == (sub.certificate,)


def test_a_ca_stands_on_a_path_once() -> None:
    """As Go has it: a root's other certificate, for the same key, makes no further path over the root itself."""
    renewed = root("root", ROOT.key)
    node = ROOT.node()
    assert verify((node, renewed)).authorities == (ROOT.certificate,)
    assert set(verify((node, renewed), ROOT, renewed).authorities) == {ROOT.certificate, renewed.certificate}


def test_a_leaf_that_is_an_anchor_itself() -> None:
    """Operators may list the very certificates of their nodes."""
    node = ROOT.node()
    assert verify((node,), node, ROOT).authorities == ()


def test_cas_with_keys_of_every_kind() -> None:
    for key in (rsa_key(), ec_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        anchor = root(key=key)
        assert verify((anchor.node(),), anchor).authorities == (anchor.certificate,)


def _expired() -> Sequence[Authority]:
    return (ROOT.node(Shape(begins=-2 * DAY, ends=-DAY)),)


def _future() -> Sequence[Authority]:
    return (ROOT.node(Shape(begins=DAY, ends=2 * DAY)),)


def _foreign() -> Sequence[Authority]:
    return (root("root").node(),)


def _expired_sub() -> Sequence[Authority]:
    sub = ROOT.sub(shape=Shape(ca=True, usage=("key_cert_sign",), begins=-2 * DAY, ends=-DAY))
    return sub.node(), sub


def _missing_sub() -> Sequence[Authority]:
    return (ROOT.sub().node(),)


def _issued_by_a_leaf() -> Sequence[Authority]:
    leaf = ROOT.node(Shape(cn="leaf", usage=("digital_signature", "key_cert_sign")))
    return leaf.node(), leaf


def _issued_without_constraints() -> Sequence[Authority]:
    leaf = ROOT.node(Shape(cn="leaf", ca=None, usage=()))
    return leaf.node(), leaf


def _too_long_a_path() -> Sequence[Authority]:
    sub = ROOT.sub(shape=Shape(ca=True, usage=("key_cert_sign",), path_length=0))
    below = sub.sub("below")
    return below.node(), below, sub


def _no_right_to_sign() -> Sequence[Authority]:
    sub = ROOT.sub(shape=Shape(ca=True, usage=("digital_signature",)))
    return sub.node(), sub


def _weak_hash() -> Sequence[Authority]:
    return (ROOT.node(Shape(hash=hashes.SHA224())),)


def _unknown_critical_extension() -> Sequence[Authority]:
    return (ROOT.node(Shape(critical=True)),)


def _self_signed() -> Sequence[Authority]:
    return (root("node-1", shape=Shape()),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_expired, "x509: certificate has expired or is not yet valid: current time .* is after"),
        (_future, "x509: certificate has expired or is not yet valid: current time .* is before"),
        (_foreign, "x509: certificate signed by unknown authority"),
        (_missing_sub, "x509: certificate signed by unknown authority"),
        (_self_signed, "x509: certificate signed by unknown authority"),
        (_expired_sub, "expired"),
        (_issued_by_a_leaf, "not a certificate authority"),
        (_issued_without_constraints, "not a certificate authority"),
        (_too_long_a_path, "path length"),
        (_no_right_to_sign, ""),
        (_weak_hash, "weak or unknown algorithm"),
        (_unknown_critical_extension, "critical extension"),
    ],
)
def test_chains_that_are_not_trusted(make: Callable[[], Sequence[Authority]], message: str) -> None:
    with pytest.raises(Refused, match=f"certificate verification failed: .*{message}"):
        verify(make())


def test_an_anchor_that_has_expired() -> None:
    anchor = root("old", shape=Shape(ca=True, usage=("key_cert_sign",), begins=-3 * DAY, ends=-DAY))
    with pytest.raises(Refused, match="expired"):
        verify((anchor.node(),), anchor)


def test_chains_that_break_a_limit() -> None:
    sub = ROOT.sub()
    node = sub.node()
    with pytest.raises(InvalidArgument, match="no certificate to attest"):
        verify(())
    with pytest.raises(InvalidArgument, match="too many intermediate certificates"):
        verify((node, sub, sub), most=1)
    assert verify((node, sub, sub), most=2).authorities == (sub.certificate, ROOT.certificate)
    big = ROOT.node(key=rsa_key(3072))
    with pytest.raises(InvalidArgument, match=r"^leaf certificate key size too large"):
        verify((big,), bits=2048)
    assert verify((big,), bits=3072)
    big_sub = ROOT.sub(key=rsa_key(3072))
    with pytest.raises(InvalidArgument, match=r"^intermediate certificate 0 key size too large"):
        verify((big_sub.node(), big_sub), bits=2048)
    with pytest.raises(InvalidArgument, match="unsupported elliptic curve secp256k1"):
        verify((ROOT.node(key=ec_key(ec.SECP256K1())),))


def test_crossing_certificates_have_an_end() -> None:
    """Each CA of ten vouches for each: without a limit that would be millions of paths."""
    keys = [ec_key() for _ in range(7)]
    loose = [
        root(f"ca-{issuer}", keys[issuer]).sub(f"ca-{subject}", keys[subject])
        for issuer in range(7)
        for subject in range(7)
    ]
    began = now()
    with pytest.raises(Refused, match="limit"):
        verify((root("ca-0", keys[0]).node(), *loose), most=100)
    assert now() - began < datetime.timedelta(seconds=20)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 500), st.integers(1, 255))
def test_certificates_that_are_none(noise: bytes, place: int, flip: int) -> None:
    good = bytearray(ROOT.node().der)
    good[place % len(good)] ^= flip
    policy = Policy((ROOT.der,), 4, 8192)
    for chain in ([noise], [bytes(good)], [ROOT.node().der, noise], [ROOT.node().der[: place % 200]]):
        try:
            verifier.verify(chain, policy, now())
        except (InvalidArgument, Refused):
            continue
        raise AssertionError(chain)


def test_the_key_has_to_be_one_for_signatures() -> None:
    verifier.require_signing_key(ROOT.node().certificate)
    for usage in ((), ("key_encipherment",)):
        with pytest.raises(Unsupported, match="certificate not intended for digital signature use"):
            verifier.require_signing_key(ROOT.node(Shape(usage=usage)).certificate)


def test_the_address_of_the_caller() -> None:
    leaf = ROOT.node(Shape(ips=("10.0.0.7", "2001:db8::7"))).certificate
    for address in ("10.0.0.7", "::ffff:10.0.0.7", "2001:db8:0::7"):
        verifier.require_address(leaf, address)
    with pytest.raises(Refused, match=r"client IP 10\.0\.0\.8 does not match any certificate IP SAN"):
        verifier.require_address(leaf, "10.0.0.8")
    with pytest.raises(Refused, match="does not match"):
        verifier.require_address(ROOT.node().certificate, "10.0.0.7")


def test_selectors_of_uri_names() -> None:
    uris = [
        "x509pop://example.org/cluster/east/1",
        "x509pop://example.org/zone/z%20a",
        "x509pop://example.org/lonely",
        "x509pop://other.org/cluster/west",
        "spiffe://example.org/x",
        "x509pop://example.org/cluster/last",
    ]
    found, strange = verifier.selectors_of_uris(uris, "example.org")
    assert found == {"cluster": "last", "zone": "z a"}
    assert strange == ["x509pop://example.org/lonely"]


def test_the_path_of_an_svid() -> None:
    uris = ["https://example.org/a", "spiffe://example.org/spire-exchange/node/7"]
    assert verifier.svid_path(uris, "/spire-exchange/") == "node/7"
    with pytest.raises(Refused, match="x509 cert doesnt match SVID prefix"):
        verifier.svid_path(uris, "/other/")
    with pytest.raises(Refused, match="valid SVID x509 cert not found"):
        verifier.svid_path(uris[:1], "/spire-exchange/")


def test_serial_numbers_have_whole_bytes() -> None:
    assert verifier.serial_number(ROOT.node(Shape(serial=0xABC)).certificate) == "0abc"
    assert verifier.serial_number(ROOT.node(Shape(serial=0xAB)).certificate) == "ab"


def test_fields_for_templates() -> None:
    node = ROOT.node(Shape(uris=("spiffe://example.org/n",), ips=("10.0.0.7",), serial=77))
    fields = Fields(certificate_fields(node.certificate))
    assert set(fields) == NAMES
    assert fields["SerialNumber"] == 77
    assert fields["Version"] == 3
    assert fields["IPAddresses"] == ["10.0.0.7"]
    assert fields["URIs"] == ["spiffe://example.org/n"]
    assert fields["IsCA"] is False
    assert fields["Subject"] == {
        "CommonName": "node-1.example.org",
        "SerialNumber": "",
        **{name: [] for name in ("Country", "Organization", "OrganizationalUnit", "Locality", "Province")},
        **{name: [] for name in ("StreetAddress", "PostalCode")},
    }
    assert certificate_fields(root().certificate)["IsCA"]() is True
