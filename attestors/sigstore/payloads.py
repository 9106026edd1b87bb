"""What is signed: "simple signing" of an image's digest, or an attestation in an envelope. Pure.

https://github.com/containers/image/blob/main/docs/containers-signature.5.md, https://github.com/secure-systems-lab/dsse
and https://github.com/in-toto/attestation/tree/main/spec
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Final

import msgspec

from attestors.sigstore.certificates import verifies
from attestors.sigstore.entries import decoded
from operations.documents import Malformed, decode
from operations.errors import Refused

_TYPE: Final = "cosign container image signature"
_OLD_TYPE: Final = "atomic container signature"
_INTOTO: Final = "application/vnd.in-toto+json"
_MOST_SIGNATURES = 16
_MOST_SUBJECTS = 10_000


class _Image(msgspec.Struct, frozen=True, rename={"digest": "docker-manifest-digest"}):
    digest: str = ""


class _Critical(msgspec.Struct, frozen=True):
    image: _Image
    type: str = ""


class _SimpleSigning(msgspec.Struct, frozen=True):
    critical: _Critical


class _EnvelopeSignature(msgspec.Struct, frozen=True):
    sig: str


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    payload_type: str
    payload: str
    signatures: tuple[_EnvelopeSignature, ...]


class _Subject(msgspec.Struct, frozen=True):
    digest: Mapping[str, str] = {}


class _Statement(msgspec.Struct, frozen=True):
    subject: tuple[_Subject, ...]


def require_signature(payload: bytes, signature: str, key: object, image_digest: str) -> None:
    """Raise Refused unless the key signed this payload, and it is about this image (`sha256:…`).

    SPIRE does not look at the digest, so that there the signature of one image, copied, stands for any.
    """
    if not verifies(key, decoded(signature, "signature"), payload):
        raise Refused("invalid signature when validating ASN.1 encoded signature")
    try:
        critical = decode(payload, _SimpleSigning).critical
    except Malformed as error:
        raise Refused("the signed payload is malformed") from error
    if critical.type not in (_TYPE, _OLD_TYPE):
        raise Refused("the signed payload is no container image signature")
    if critical.image.digest != image_digest:
        raise Refused("invalid or missing digest in claim: it was signed for another image")


def require_attestation(envelope: bytes, key: object, image_digest: str) -> None:
    """Raise Refused unless the key signed the envelope's statement, and it has this image among its subjects."""
    try:
        parsed = decode(envelope, _Envelope)
    except Malformed as error:
        raise Refused("the attestation's envelope is malformed") from error
    if parsed.payload_type != _INTOTO:
        raise Refused(f"invalid payloadType {parsed.payload_type[:80]} on envelope. Expected {_INTOTO}")
    if len(parsed.signatures) > _MOST_SIGNATURES:
        raise Refused(f"the attestation's envelope has more than {_MOST_SIGNATURES} signatures")
    statement = _either_base64(parsed.payload)
    signed = _preauthenticated(parsed.payload_type, statement)
    if not any(verifies(key, _either_base64(each.sig), signed) for each in parsed.signatures):
        raise Refused("the attestation is not signed by its certificate's key")
    _require_subject(statement, image_digest)


def _preauthenticated(payload_type: str, payload: bytes) -> bytes:
    """PAE of DSSE, version 1."""
    kind = payload_type.encode()
    return b" ".join((b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload))


def _require_subject(statement: bytes, image_digest: str) -> None:
    try:
        subjects = decode(statement, _Statement).subject
    except Malformed as error:
        raise Refused("the attestation's statement is malformed") from error
    if len(subjects) > _MOST_SUBJECTS:
        raise Refused(f"the attestation has more than {_MOST_SUBJECTS} subjects")
    if not any(f"sha256:{subject.digest.get('sha256')}" == image_digest for subject in subjects):
        raise Refused("no matching subject digest found: the attestation is of another image")


def _either_base64(text: str) -> bytes:
    """DSSE allows the standard's alphabet and that of URLs."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("the attestation's envelope is not in base64") from error
