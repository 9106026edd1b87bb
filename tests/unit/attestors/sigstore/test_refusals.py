"""Signatures and attestations that do not count, and in which words."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from operations.errors import Refused
from tests.simulators.signed_images import ANYBODY, WITH_ATTESTATIONS, House
from tests.simulators.sigstore import (
    BUNDLE,
    CERTIFICATE,
    CHAIN,
    MINUTE,
    NOW,
    SIGNATURE,
    Attachment,
    Identity,
    Sigstore,
    new_key,
    pem,
)

Attach = Callable[[Sigstore, str], Sequence[Attachment]]


def by(identity: Identity) -> Attach:
    return lambda sigstore, digest: [sigstore.signature(digest, sigstore.signer(identity))]


def _stolen_certificate(sigstore: Sigstore, digest: str) -> Attachment:
    """Signed by a key of one's own, under the certificate of another."""
    own, theirs = sigstore.signer(), sigstore.signer()
    return sigstore.signature(digest, replace(theirs, key=own.key))


def _below_a_leaf(sigstore: Sigstore, digest: str) -> Attachment:
    """Whoever has a certificate makes himself another."""
    leaf = sigstore.signer()
    forged = sigstore.signer(issuer=(leaf.certificate.subject, leaf.key))
    return sigstore.signature(digest, forged).having(CHAIN, pem(leaf.certificate, sigstore.root))


BAD: dict[str, tuple[Attach, str]] = {
    "of another image, copied": (
        lambda sigstore, _: [sigstore.signature("sha256:" + "ab" * 32)],
        "it was signed for another image",
    ),
    "somebody else": (by(Identity(subject="evil@example.com")), "none of the expected identities matched"),
    "somebody else's log": (
        lambda sigstore, digest: [
            (signature := sigstore.signature(digest)).having(BUNDLE, _elsewhere(signature, sigstore))
        ],
        "rekor log public key not found",
    ),
    "another signature's entry": (
        lambda sigstore, digest: [
            sigstore.signature(digest).having(BUNDLE, sigstore.signature(digest).annotations[BUNDLE])
        ],
        "signature in bundle does not match",
    ),
    "tampered payload": (
        lambda sigstore, digest: [replace(signature := sigstore.signature(digest), payload=signature.payload + b" ")],
        "the log entry is of another payload",
    ),
    "tampered time": (
        lambda sigstore, digest: [
            (signature := sigstore.signature(digest)).having(
                BUNDLE, signature.annotations[BUNDLE].replace('"integratedTime": ', '"integratedTime": 1')
            )
        ],
        "unable to verify SET|the log entry",
    ),
    "stolen certificate": (lambda sigstore, digest: [_stolen_certificate(sigstore, digest)], "invalid signature"),
    "certificate expired when it signed": (
        lambda sigstore, digest: [sigstore.signature(digest, at=NOW + timedelta(hours=1))],
        "certificate has expired or is not yet valid",
    ),
    "certificate younger than what it signed": (
        lambda sigstore, digest: [sigstore.signature(digest, at=NOW - timedelta(hours=1))],
        "certificate has expired or is not yet valid",
    ),
    "another CA": (lambda _, digest: [Sigstore().signature(digest)], "rekor log public key not found"),
    "a CA that is none": (
        lambda sigstore, digest: [_below_a_leaf(sigstore, digest)],
        "certificate signed by unknown authority",
    ),
    "no SCT": (by(Identity(scts=0)), "does not include required embedded SCT"),
    "an SCT of nobody's": (by(Identity(ct_key=new_key())), "SCT is not signed by the CT log"),
    "for another use": (by(Identity(usage=ExtendedKeyUsageOID.SERVER_AUTH)), "certificate is not for code signing"),
    "two issuers": (by(Identity(issuer_v2="https://accounts.google.com")), "names two different OIDC issuers"),
    "a bare key": (
        lambda sigstore, digest: [sigstore.signature(digest).without(CERTIFICATE)],
        "no certificate found on signature",
    ),
    "no signature": (
        lambda sigstore, digest: [sigstore.signature(digest).without(SIGNATURE)],
        "is missing annotation dev.cosignproject.cosign/signature",
    ),
    "garbage for a certificate": (
        lambda sigstore, digest: [sigstore.signature(digest).having(CERTIFICATE, "-----BEGIN CERTIFICATE-----")],
        "its certificate is malformed",
    ),
    "garbage for an entry": (
        lambda sigstore, digest: [sigstore.signature(digest).having(BUNDLE, "[" * 100_000)],
        "rekor bundle is malformed",
    ),
    "garbage for a signature": (
        lambda sigstore, digest: [sigstore.signature(digest).having(SIGNATURE, "!")],
        "signature is not in base64",
    ),
    "an attestation in place of a signature": (
        lambda sigstore, digest: [sigstore.attestation(digest)],
        "entry of kind dsse does not stand for this",
    ),
    "a payload of another kind": (
        lambda sigstore, digest: [
            sigstore.signed(json.dumps({"critical": {"image": {"docker-manifest-digest": digest}}}).encode(),
                            sigstore.signer())
        ],
        "no container image signature",
    ),
    "a payload that is none": (
        lambda sigstore, _: [sigstore.signed(b"\xff", sigstore.signer())],
        "the signed payload is malformed",
    ),
}  # fmt: skip


def _elsewhere(signature: Attachment, sigstore: Sigstore) -> str:
    """The same entry, in a log of one's own."""
    body = json.loads(base64.b64decode(json.loads(signature.annotations[BUNDLE])["Payload"]["body"]))
    own = Sigstore()
    return own.log.bundle(own.log.add(body, NOW + MINUTE))


@pytest.mark.parametrize("kind", BAD)
async def test_a_signature_that_does_not_count_is_refused_in_one_line(house: House, kind: str) -> None:
    attach, reason = BAD[kind]
    digest = house.registry.push_image()
    house.registry.attach(digest, *attach(house.sigstore, digest))
    with pytest.raises(Refused, match=reason) as refusal:
        await house.verifier().verify(house.image(digest))
    assert str(refusal.value).startswith("failed to verify signatures: no matching signatures: ")
    assert "\n" not in str(refusal.value)


async def test_nobody_signed_when_the_certificate_does_not_say_who(house: House) -> None:
    for identity, reason in (
        (Identity(subject=""), "no subject found in certificate"),
        (Identity(issuer="", issuer_v2=""), "no OIDC issuer found in certificate extensions"),
    ):
        digest = house.registry.push_image(reason)
        house.registry.attach(digest, house.sigstore.signature(digest, house.sigstore.signer(identity)))
        with pytest.raises(Refused, match=reason):
            await house.verifier(ANYBODY).verify(house.image(digest))


BAD_ATTESTATIONS: dict[str, tuple[Attach, str]] = {
    "none": (lambda _sigstore, _digest: [], "no matching attestations"),
    "of another image, copied": (
        lambda sigstore, _: [sigstore.attestation("sha256:" + "ab" * 32)],
        "no matching subject digest found",
    ),
    "a signature in place of one": (
        lambda sigstore, digest: [sigstore.signature(digest)],
        "entry of kind hashedrekord does not stand for this",
    ),
    "tampered": (
        lambda sigstore, digest: [replace(made := sigstore.attestation(digest), payload=made.payload + b" ")],
        "the log entry is of another payload",
    ),
    "stolen certificate": (
        lambda sigstore, digest: [sigstore.attestation(digest, replace(sigstore.signer(), key=sigstore.signer().key))],
        "not signed by its certificate's key",
    ),
    "no statement": (
        lambda sigstore, _: [sigstore.attested(b"[]", sigstore.signer())],
        "the attestation's statement is malformed",
    ),
}


@pytest.mark.parametrize("kind", BAD_ATTESTATIONS)
async def test_an_attestation_that_does_not_count_is_refused(house: House, kind: str) -> None:
    attach, reason = BAD_ATTESTATIONS[kind]
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    house.registry.attach(digest, *attach(house.sigstore, digest), suffix="att")
    with pytest.raises(Refused, match=reason) as refusal:
        await house.verifier(WITH_ATTESTATIONS).verify(house.image(digest))
    assert str(refusal.value).startswith("failed to verify image attestations: ")
