"""What the two halves of tpm_devid send each other: JSON documents, byte for byte those of SPIRE's halves.

Bytes are base64. Public areas and what TPM2_MakeCredential gives come without the two bytes of their sizes. Fields
that a reader does not know are passed over; a `null` stands for a part that is not there.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from operations import documents
from operations.errors import InvalidArgument

REQUEST_LIMIT = 1 << 20
ANSWER_LIMIT = 64 << 10
"""Bytes of a challenge or of its response."""

T = TypeVar("T", bound=msgspec.Struct)


class AttestationRequest(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The agent's payload: the DevID's chain (DER, leaf first), the DevID's, EK's and AK's TPMT_PUBLIC, the EK's
    certificate (DER), and TPM2_Certify of the DevID's key by the AK: TPMS_ATTEST and TPMT_SIGNATURE."""

    devid_cert: tuple[bytes, ...] | None = msgspec.field(default=None, name="DevIDCert")
    devid_pub: bytes | None = msgspec.field(default=None, name="DevIDPub")
    ek_cert: bytes | None = msgspec.field(default=None, name="EKCert")
    ek_pub: bytes | None = msgspec.field(default=None, name="EKPub")
    ak_pub: bytes | None = msgspec.field(default=None, name="AKPub")
    certified_devid: bytes | None = msgspec.field(default=None, name="CertifiedDevID")
    certification_signature: bytes | None = None


class CredentialActivation(msgspec.Struct, frozen=True, rename="pascal"):
    """`credential` is a TPMS_ID_OBJECT, `secret` the encrypted seed."""

    credential: bytes | None = None
    secret: bytes | None = None


class ChallengeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A nonce for the DevID's key to sign, and a secret that only the TPM of the EK gives out to the AK's owner."""

    devid: bytes | None = msgspec.field(default=None, name="DevID")
    cred_activation: CredentialActivation | None = msgspec.field(default=None, name="CredActivation")


class ChallengeResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The nonce's signature (PKCS #1 v1.5, or a DER Ecdsa-Sig-Value), and the secret."""

    devid: bytes | None = msgspec.field(default=None, name="DevID")
    cred_activation: bytes | None = msgspec.field(default=None, name="CredActivation")


def encode(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message)


def decode(kind: type[T], document: bytes, limit: int) -> T:
    """Raises InvalidArgument."""
    if len(document) > limit:
        raise InvalidArgument(f"{len(document)} bytes, more than the {limit} that it may have")
    return documents.decode(document, kind)
