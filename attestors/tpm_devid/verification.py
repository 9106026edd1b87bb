"""What a DevID proves: bytes, trust and time in, verdict or typed error out. It fails closed.

Three links hold the chain: the DevID's certificate names a key, a restricted key certifies that this key was made in
its TPM and stays there, and a credential only opens in the TPM of an endorsement key that a manufacturer vouches for.
SPIRE's server leaves two of them open: it neither compares the certificate's key with the certified one, nor asks for
an attestation key that is restricted, without which a statement can be signed by anybody.

Texts are those of SPIRE's server where it has them; all refusals are InvalidArgument, as there.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from attestors.tpm.messages import Certification
from attestors.tpm.verification import certify, credential, quote
from attestors.tpm_devid import blobs
from attestors.tpm_devid.messages import AttestationRequest, ChallengeRequest, ChallengeResponse, CredentialActivation
from attestors.x509pop.paths import verified_paths
from identity import der
from keystores.tpm.public_area import PublicArea
from operations.errors import InvalidArgument, Refused, SpireError, Unsupported

NONCE_SIZE: Final = 32
MAX_INTERMEDIATES: Final = 15
_RSA_BITS: Final = range(1024, 8192 + 1)


@dataclass(frozen=True, slots=True)
class Trust:
    """DER certificates: of the CAs of DevIDs, and of those that sign endorsement certificates themselves."""

    devid: tuple[bytes, ...]
    endorsement: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A DevID that is trusted once its challenge is answered. The CAs above it are in the order of its paths."""

    leaf: x509.Certificate
    authorities: tuple[x509.Certificate, ...]
    challenge: ChallengeRequest
    secret: bytes


def verify(request: AttestationRequest, trust: Trust, now: datetime) -> Verdict:
    """Check what the agent sent, and make its challenge. `now` is aware. Raises InvalidArgument."""
    leaf, authorities = _devid(request.devid_cert or (), trust.devid, now)
    ek = _endorsement_key(request, trust.endorsement, now)
    ak_name = _certified(request, leaf)
    nonce, secret = secrets.token_bytes(NONCE_SIZE), secrets.token_bytes(NONCE_SIZE)
    try:
        identity, seed = credential.make(ek, ak_name, secret)
    except SpireError as error:
        raise InvalidArgument(f"cannot generate credential activation challenge: {error}") from error
    activation = CredentialActivation(blobs.unsized(identity), blobs.unsized(seed))
    return Verdict(leaf, authorities, ChallengeRequest(devid=nonce, cred_activation=activation), secret)


def prove(verdict: Verdict, response: ChallengeResponse) -> None:
    """Raise InvalidArgument unless the response opens the credential and is signed by the DevID's key."""
    try:
        _verify_signature(verdict.leaf.public_key(), verdict.challenge.devid or b"", response.devid or b"")
    except Refused as error:
        raise InvalidArgument(f"devID challenge verification failed: {error}") from error
    if not hmac.compare_digest(verdict.secret, response.cred_activation or b""):
        raise InvalidArgument("credential activation failed: nonces are different")


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-1 in lowercase hex, as SPIRE names agents and CAs; a name, not a check."""
    return certificate.fingerprint(hashes.SHA1()).hex()  # noqa: S303 - a name


def selector_values(verdict: Verdict) -> list[str]:
    """The node's selectors, without their type."""
    names = (("subject:cn", verdict.leaf.subject), ("issuer:cn", verdict.leaf.issuer))
    values = [f"{kind}:{name}" for kind, names_of in names if (name := _common_name(names_of))]
    return values + [f"ca:fingerprint:{fingerprint(authority)}" for authority in verdict.authorities]


def _common_name(name: x509.Name) -> str:
    """The last one, as Go reads it; empty when there is none."""
    values = [attribute.value for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if not values:
        return ""
    return values[-1] if isinstance(values[-1], str) else values[-1].decode("utf-8", "replace")


def _devid(
    chain: Sequence[bytes], anchors: Sequence[bytes], now: datetime
) -> tuple[x509.Certificate, tuple[x509.Certificate, ...]]:
    if not chain:
        raise InvalidArgument("no DevID certificate to attest")
    if len(chain) - 1 > MAX_INTERMEDIATES:
        raise InvalidArgument(f"too many DevID intermediate certificates: {len(chain) - 1} of {MAX_INTERMEDIATES}")
    leaf = _certificate(chain[0], "unable to parse DevID certificate")
    intermediates = [
        _certificate(certificate, f"unable to parse DevID intermediate certificate {number}")
        for number, certificate in enumerate(chain[1:])
    ]
    try:
        paths = verified_paths(leaf, intermediates, [der.certificate(anchor) for anchor in anchors], now)
    except Refused as error:
        raise InvalidArgument(f"unable to verify DevID signature: verification failed: {error}") from error
    return leaf, tuple(dict.fromkeys(certificate for path in paths for certificate in path[1:]))


def _certificate(certificate: bytes, complaint: str) -> x509.Certificate:
    try:
        parsed = der.certificate(certificate)
        key = parsed.public_key()
        # Names and times are read when they are asked for; here is where a malformed one can be told.
        _ = parsed.issuer, parsed.subject, parsed.not_valid_before_utc, parsed.not_valid_after_utc
    except (InvalidArgument, TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument(f"{complaint}: {error}") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size not in _RSA_BITS:
        raise InvalidArgument(f"{complaint}: its RSA key has {key.key_size} bits")
    return parsed


def _endorsement_key(request: AttestationRequest, anchors: Sequence[bytes], now: datetime) -> PublicArea:
    """The key, once its certificate names it and a CA that is trusted signed that: no intermediates come with it."""
    for part, what in (
        (request.ak_pub, "attestation key public blob"),
        (request.devid_pub, "DevID key public blob"),
        (request.ek_cert, "endorsement certificate"),
        (request.ek_pub, "endorsement key public blob"),
    ):
        if not part:
            raise InvalidArgument(f"missing {what}")
    certificate = _certificate(request.ek_cert or b"", "cannot parse endorsement certificate")
    area = _area(request.ek_pub, "cannot decode endorsement key public blob")
    if fault := _mismatch(certificate, area):
        raise InvalidArgument(f"public key in EK certificate differs from public key created via EK template: {fault}")
    if not area.attributes["fixedTPM"] or not area.attributes["restricted"] or not area.attributes["decrypt"]:
        raise InvalidArgument(
            "the endorsement key is not one that only opens credentials: it was made from no template"
        )
    try:
        verified_paths(certificate, (), [der.certificate(anchor) for anchor in anchors], now)
    except Refused as error:
        raise InvalidArgument(
            f"cannot verify EK signature: endorsement certificate verification failed: {error}"
        ) from error
    return area


def _area(public: bytes | None, complaint: str) -> PublicArea:
    try:
        return blobs.area(public or b"")
    except (InvalidArgument, Unsupported) as error:
        raise InvalidArgument(f"{complaint}: {error}") from error


def _mismatch(certificate: x509.Certificate, area: PublicArea) -> str | None:
    certified = certificate.public_key()
    if not isinstance(certified, rsa.RSAPublicKey):
        return "key from certificate is not an RSA key"
    if not isinstance(area.key, rsa.RSAPublicKey):
        return "key from template is not an RSA key"
    ours, theirs = certified.public_numbers(), area.key.public_numbers()
    if ours.e != theirs.e:
        return "exponent mismatch"
    return None if ours.n == theirs.n else "modulus mismatch"


def _certified(request: AttestationRequest, leaf: x509.Certificate) -> bytes:
    """The attestation key's Name, once that key has certified the DevID's."""
    _area(request.devid_pub, "cannot decode DevID key public blob")
    ak = _area(request.ak_pub, "cannot decode attestation key public blob")
    complaint = "cannot verify that DevID is in the same TPM than AK"
    if not isinstance(ak.key, rsa.RSAPublicKey):
        raise InvalidArgument(f"{complaint}: only RSA keys are supported")
    statement = Certification(
        statement=request.certified_devid or b"",
        signature=request.certification_signature or b"",
        public=blobs.sized(request.devid_pub or b""),
    )
    try:
        key = quote.attestation_key(blobs.sized(request.ak_pub or b""))
        found = certify.verify(key, statement, b"")
    except (InvalidArgument, Refused) as error:
        raise InvalidArgument(f"{complaint}: {error}") from error
    if not hmac.compare_digest(found, _key_of(leaf)):
        raise InvalidArgument(
            f"{complaint}: the DevID certificate is of another key than the one that the AK certified"
        )
    return key.name


def _key_of(leaf: x509.Certificate) -> bytes:
    key = leaf.public_key()
    if not isinstance(key, der.PublicKey):
        raise InvalidArgument("devID challenge verification failed: unsupported private key type: use RSA or ECDSA")
    return der.subject_public_key_info(key)


def _verify_signature(key: object, nonce: bytes, signature: bytes) -> None:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, nonce, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, nonce, ec.ECDSA(hashes.SHA256()))
        else:
            raise Refused("unsupported private key type: use RSA or ECDSA")
    except InvalidSignature as error:
        raise Refused("the nonce is not signed by the key of the DevID certificate, with SHA-256") from error
