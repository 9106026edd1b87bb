"""DevIDs that are believed, and all that is not: whatever is altered, replayed, mixed up or made in software."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.tpm_devid import messages, verification
from attestors.tpm_devid.messages import AttestationRequest, ChallengeResponse
from attestors.tpm_devid.verification import Trust, Verdict
from operations.errors import InvalidArgument
from tests.simulators import soft_devid
from tests.simulators.nodes import DAY, Shape, ec_key, now, root, rsa_key
from tests.simulators.soft_devid import DEVID_ROOT, MANUFACTURER, SoftDevId, public_of

TRUST = Trust(devid=(DEVID_ROOT.der,), endorsement=(MANUFACTURER.der,))
RSA, OTHER_RSA = rsa_key(), rsa_key()
GOOD = SoftDevId()
REQUEST = GOOD.request()
LEAF = GOOD.chain[0].der


def verify(request: AttestationRequest, trust: Trust = TRUST) -> Verdict:
    return verification.verify(request, trust, now())


def changed(request: AttestationRequest, **changes: object) -> AttestationRequest:
    return msgspec.structs.replace(request, **changes)


@pytest.mark.parametrize("key", [ec_key(), RSA, ec_key(ec.SECP384R1())], ids=["P-256", "RSA", "P-384"])
def test_a_devid(key: soft_devid.Key) -> None:
    node = SoftDevId(devid=key)
    verdict = verify(node.request())
    verification.prove(verdict, node.respond(verdict.challenge))
    leaf, above = node.chain
    assert verdict.leaf == leaf.certificate
    assert verdict.authorities == (above.certificate, DEVID_ROOT.certificate)
    assert verification.selector_values(verdict) == [
        "subject:cn:node-1",
        "issuer:cn:devid-intermediate",
        f"ca:fingerprint:{verification.fingerprint(above.certificate)}",
        f"ca:fingerprint:{verification.fingerprint(DEVID_ROOT.certificate)}",
    ]


def test_a_certificate_without_a_name_has_no_selector_of_it() -> None:
    key = ec_key()
    node = SoftDevId(devid=key, chain=(DEVID_ROOT.node(Shape(cn=""), key),))
    assert verification.selector_values(verify(node.request())) == [
        "issuer:cn:devid-root",
        f"ca:fingerprint:{verification.fingerprint(DEVID_ROOT.certificate)}",
    ]


def test_an_issuing_ca_alone_is_trust_enough() -> None:
    """Of endorsement certificates and of DevIDs: an anchor need not be a root."""
    issuing = MANUFACTURER.sub("issuing")
    node = SoftDevId(ek_authority=issuing)
    verify(node.request(), Trust(devid=(node.chain[1].der,), endorsement=(issuing.der,)))


def test_challenges_differ() -> None:
    first, second = verify(REQUEST), verify(REQUEST)
    assert first.challenge != second.challenge
    assert first.secret != second.secret
    with pytest.raises(InvalidArgument, match="devID challenge verification failed"):
        verification.prove(second, GOOD.respond(first.challenge))


def _quote() -> AttestationRequest:
    return SoftDevId(kind=soft_devid.QUOTE).request()


def _other_node() -> SoftDevId:
    return SoftDevId(ek=OTHER_RSA, ak=OTHER_RSA)


def _software_key_with_another_statement() -> AttestationRequest:
    """The certificate is of a key in software; what is certified is some other key that is in a TPM."""
    return changed(SoftDevId().request(), devid_cert=SoftDevId().request().devid_cert)


def _expired() -> AttestationRequest:
    key = ec_key()
    leaf = DEVID_ROOT.node(Shape(begins=-2 * DAY, ends=-DAY), key)
    return SoftDevId(devid=key, chain=(leaf,)).request()


SAME = "cannot verify that DevID is in the same TPM than AK: "
DIFFERS = "public key in EK certificate differs from public key created via EK template: "
REFUSED: dict[str, tuple[Callable[[], AttestationRequest], str]] = {
    "nothing": (AttestationRequest, "no DevID certificate to attest"),
    "garbage for a certificate": (lambda: changed(REQUEST, devid_cert=(b"x",)), "unable to parse DevID certificate: "),
    "garbage for an intermediate": (
        lambda: changed(REQUEST, devid_cert=(LEAF, b"x")),
        "unable to parse DevID intermediate certificate 0: ",
    ),
    "too many intermediates": (
        lambda: changed(REQUEST, devid_cert=(LEAF,) * 17),
        "too many DevID intermediate certificates",
    ),
    "a missing intermediate": (
        lambda: changed(REQUEST, devid_cert=(LEAF,)),
        "unable to verify DevID signature: verification failed: x509: certificate signed by unknown authority",
    ),
    "an expired DevID": (_expired, "x509: certificate has expired or is not yet valid"),
    "a DevID of another CA": (
        lambda: SoftDevId(chain=(root("devid-root").node(),)).request(),
        "unable to verify DevID signature: verification failed: x509: certificate signed by unknown authority",
    ),
    "no AK": (lambda: changed(REQUEST, ak_pub=None), "missing attestation key public blob"),
    "no DevID key": (lambda: changed(REQUEST, devid_pub=None), "missing DevID key public blob"),
    "no EK certificate": (lambda: changed(REQUEST, ek_cert=None), "missing endorsement certificate"),
    "no EK": (lambda: changed(REQUEST, ek_pub=b""), "missing endorsement key public blob"),
    "a damaged EK certificate": (lambda: changed(REQUEST, ek_cert=b"0"), "cannot parse endorsement certificate: "),
    "a damaged DevID key": (lambda: changed(REQUEST, devid_pub=b"0"), "cannot decode DevID key public blob: "),
    "a damaged AK": (lambda: changed(REQUEST, ak_pub=b"0"), "cannot decode attestation key public blob: "),
    "a damaged EK": (lambda: changed(REQUEST, ek_pub=b"0"), "cannot decode endorsement key public blob"),
    "a huge EK": (lambda: changed(REQUEST, ek_pub=bytes(70_000)), "cannot decode endorsement key public blob"),
    "another TPM's EK": (
        lambda: changed(REQUEST, ek_pub=_other_node().request().ek_pub),
        f"{DIFFERS}modulus mismatch",
    ),
    "an ECC endorsement certificate": (
        lambda: changed(REQUEST, ek_cert=SoftDevId(ek=ec_key()).request().ek_cert),
        f"{DIFFERS}key from certificate is not an RSA key",
    ),
    "an ECC EK": (
        lambda: changed(REQUEST, ek_pub=SoftDevId(ek=ec_key()).request().ek_pub),
        f"{DIFFERS}key from template is not an RSA key",
    ),
    "an EK that anybody may use": (
        lambda: SoftDevId(ek_attributes=soft_devid.EK_ATTRIBUTES & ~soft_devid.RESTRICTED).request(),
        "the endorsement key is not one that only opens credentials",
    ),
    "a TPM of another manufacturer": (
        lambda: SoftDevId(ek_authority=root("other")).request(),
        "cannot verify EK signature: endorsement certificate verification failed: x509: certificate signed by unknown",
    ),
    "an endorsement certificate with an unknown critical extension": (
        lambda: SoftDevId(ek_shape=Shape(critical=True)).request(),
        "cannot verify EK signature: endorsement certificate verification failed: x509: ",
    ),
    "an expired endorsement certificate": (
        lambda: SoftDevId(ek_shape=Shape(begins=-2 * DAY, ends=-DAY)).request(),
        "x509: certificate has expired or is not yet valid",
    ),
    "an AK that signs anything": (
        lambda: SoftDevId(ak_attributes=soft_devid.AK_ATTRIBUTES & ~soft_devid.RESTRICTED).request(),
        f"{SAME}the attestation key is not one that signs only what its TPM states: restricted is not set",
    ),
    "an AK that was brought into its TPM": (
        lambda: SoftDevId(ak_attributes=soft_devid.AK_ATTRIBUTES & ~soft_devid.FIXED_TPM).request(),
        f"{SAME}the attestation key is not one that signs only what its TPM states: fixedTPM is not set",
    ),
    "an ECC AK": (lambda: SoftDevId(ak=ec_key()).request(), f"{SAME}only RSA keys are supported"),
    "another AK's statement": (
        lambda: changed(REQUEST, ak_pub=public_of(OTHER_RSA, soft_devid.AK_ATTRIBUTES)),
        f"{SAME}the signature over the TPM's statement is not the attestation key's",
    ),
    "no statement": (lambda: changed(REQUEST, certified_devid=None), SAME),
    "no signature": (lambda: changed(REQUEST, certification_signature=None), SAME),
    "a quote": (_quote, SAME),
    "what no TPM made": (lambda: SoftDevId(magic=0).request(), f"{SAME}this is no statement that a TPM made"),
    "a statement over somebody's nonce": (lambda: SoftDevId(nonce=b"n").request(), SAME),
    "a statement about another key": (
        lambda: changed(REQUEST, devid_pub=public_of(ec_key(), soft_devid.DEVID_ATTRIBUTES)),
        f"{SAME}the TPM certified another key than the one that was sent",
    ),
    "a DevID key that may leave": (
        lambda: SoftDevId(devid_attributes=soft_devid.DEVID_ATTRIBUTES & ~soft_devid.FIXED_TPM).request(),
        f"{SAME}the certified key was not made in the TPM to stay there and sign: fixedTPM is not set",
    ),
    "a DevID key that came from outside": (
        lambda: SoftDevId(devid_attributes=soft_devid.DEVID_ATTRIBUTES & ~soft_devid.SENSITIVE_DATA_ORIGIN).request(),
        f"{SAME}the certified key was not made in the TPM to stay there and sign: sensitiveDataOrigin is not set",
    ),
    "a software key behind another key's statement": (
        _software_key_with_another_statement,
        f"{SAME}the DevID certificate is of another key than the one that the AK certified",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(InvalidArgument) as caught:
        verify(make())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_responses_that_prove_nothing() -> None:
    verdict = verify(REQUEST)
    good = GOOD.respond(verdict.challenge)
    for response, words in (
        (ChallengeResponse(), "devID challenge verification failed: "),
        (changed_response(good, devid=SoftDevId().respond(verdict.challenge).devid), "devID challenge verification"),
        (changed_response(good, cred_activation=None), "credential activation failed: nonces are different"),
        (changed_response(good, cred_activation=bytes(32)), "credential activation failed: nonces are different"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            verification.prove(verdict, response)
    verification.prove(verdict, good)


def changed_response(response: ChallengeResponse, **changes: object) -> ChallengeResponse:
    return msgspec.structs.replace(response, **changes)


def test_a_credential_is_of_use_to_the_key_that_certified_alone() -> None:
    verdict = verify(REQUEST)
    other = SoftDevId(ek=GOOD.ek, ak=OTHER_RSA)
    assert other.activate(verdict.challenge) != verdict.secret


PARTS = ("devid_pub", "ek_cert", "ak_pub", "certified_devid", "certification_signature")
"""Of `ek_pub` the key alone is vouched for; what else is changed there changes what its TPM can open."""


@settings(max_examples=200)
@given(st.sampled_from(PARTS), st.data())
def test_no_bit_may_change(part: str, data: st.DataObject) -> None:
    """Nor may anything be cut off or added."""
    for cut in (REQUEST.ek_pub or b"")[:-1], (REQUEST.ek_pub or b"") + b"\0":
        with pytest.raises(InvalidArgument):
            verify(changed(REQUEST, ek_pub=cut))
    content: bytes = getattr(REQUEST, part)
    at = data.draw(st.integers(0, len(content) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    flipped = bytearray(content)
    flipped[at] ^= bit
    for bad in (bytes(flipped), content[:at], content + b"\0"):
        with pytest.raises(InvalidArgument):
            attest(changed(REQUEST, **{part: bad}))


def attest(request: AttestationRequest) -> None:
    """An attestation key of another Name is one that the TPM opens no credential for."""
    verdict = verify(request)
    verification.prove(verdict, GOOD.respond(verdict.challenge))


@given(st.binary(max_size=400) | st.just(messages.encode(REQUEST)[:-1]))
def test_messages_that_are_none(document: bytes) -> None:
    with pytest.raises(InvalidArgument):
        verify(messages.decode(AttestationRequest, document, messages.REQUEST_LIMIT))


def test_messages_that_are_too_long() -> None:
    with pytest.raises(InvalidArgument, match="more than the 1048576 that it may have"):
        messages.decode(AttestationRequest, bytes(messages.REQUEST_LIMIT + 1), messages.REQUEST_LIMIT)


def test_documents_as_spires_halves_write_them() -> None:
    """Nothing is `null`, and fields that nobody knows are passed over."""
    document = b'{"DevIDCert":null,"DevIDPub":"AAE=","EKCert":null,"EKPub":"","AKPub":null,"CertifiedDevID":null,'
    document += b'"CertificationSignature":null,"Later":1}'
    assert messages.decode(AttestationRequest, document, 1000) == AttestationRequest(devid_pub=b"\0\1", ek_pub=b"")
    challenge = messages.ChallengeRequest(devid=b"n", cred_activation=messages.CredentialActivation(b"c", b"s"))
    assert messages.encode(challenge) == b'{"DevID":"bg==","CredActivation":{"Credential":"Yw==","Secret":"cw=="}}'
    response = ChallengeResponse(devid=b"s", cred_activation=b"c")
    assert messages.encode(response) == b'{"DevID":"cw==","CredActivation":"Yw=="}'
    assert list(msgspec.json.decode(messages.encode(REQUEST))) == [
        *("DevIDCert", "DevIDPub", "EKCert", "EKPub", "AKPub", "CertifiedDevID", "CertificationSignature")
    ]
