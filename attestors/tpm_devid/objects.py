"""Templates of the keys that SPIRE's halves expect, and encodings, as tpm2-pytss has them."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from tpm2_pytss import (
    TPM2_ALG,
    TPM2_ECC,
    TPM2B_PUBLIC,
    TPMA_OBJECT,
    TPMS_ECC_PARMS,
    TPMS_RSA_PARMS,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_PUBLIC,
    TPMT_RSA_SCHEME,
    TPMT_SIGNATURE,
    TPMT_SYM_DEF_OBJECT,
    TPMU_PUBLIC_ID,
    TPMU_PUBLIC_PARMS,
)

from keystores.tpm import templates
from keystores.tpm.failures import Fault

HASHES: Final = {"sha1": TPM2_ALG.SHA1, **templates.HASHES}
_EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""TPM2_PolicySecret of the endorsement hierarchy (TCG EK Credential Profile 2.5, B.2.3)."""
_HERE: Final = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
_EK: Final = _HERE | TPMA_OBJECT.ADMINWITHPOLICY | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT
DEVID: Final = _HERE | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.SIGN_ENCRYPT
_AK: Final = DEVID | TPMA_OBJECT.RESTRICTED


def storage_key(kind: str) -> TPM2B_PUBLIC:
    """The SRK by its high range template, H-1 or H-2 of the EK Credential Profile, whose unique field is empty."""
    return templates.storage_key(kind, zeros=False)


def endorsement_key() -> TPM2B_PUBLIC:
    """The RSA-2048 one by its low range template, L-1, whose unique field is zeros."""
    cipher = TPMT_SYM_DEF_OBJECT.parse("aes128cfb")
    detail = TPMS_RSA_PARMS(symmetric=cipher, scheme=TPMT_RSA_SCHEME(scheme=TPM2_ALG.NULL), keyBits=2048)
    parameters = TPMU_PUBLIC_PARMS(rsaDetail=detail)
    return _public(TPM2_ALG.RSA, _EK, parameters, policy=_EK_POLICY, unique=TPMU_PUBLIC_ID(rsa=bytes(256)))


def attestation_key() -> TPM2B_PUBLIC:
    """A restricted RSA-2048 key, as SPIRE's server takes no other."""
    return _public(TPM2_ALG.RSA, _AK, _rsa_parameters())


def devid_key(kind: str, *, guessable: bool) -> TPM2B_PUBLIC:
    """A signing key bound to SHA-256. `guessable` has guesses at its password count towards the TPM's lockout."""
    attributes = DEVID if guessable else DEVID | TPMA_OBJECT.NODA
    if kind == "rsa-2048":
        return _public(TPM2_ALG.RSA, attributes, _rsa_parameters())
    scheme = TPMT_ECC_SCHEME(scheme=TPM2_ALG.ECDSA)
    scheme.details.ecdsa.hashAlg = TPM2_ALG.SHA256
    detail = TPMS_ECC_PARMS(
        symmetric=TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL),
        scheme=scheme,
        curveID=TPM2_ECC.NIST_P256,
        kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
    )
    return _public(TPM2_ALG.ECC, attributes, TPMU_PUBLIC_PARMS(eccDetail=detail))


def _rsa_parameters() -> TPMU_PUBLIC_PARMS:
    scheme = TPMT_RSA_SCHEME(scheme=TPM2_ALG.RSASSA)
    scheme.details.rsassa.hashAlg = TPM2_ALG.SHA256
    none = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL)
    return TPMU_PUBLIC_PARMS(rsaDetail=TPMS_RSA_PARMS(symmetric=none, scheme=scheme, keyBits=2048))


def _public(
    algorithm: int,
    attributes: int,
    parameters: TPMU_PUBLIC_PARMS,
    *,
    policy: bytes = b"",
    unique: TPMU_PUBLIC_ID | None = None,
) -> TPM2B_PUBLIC:
    return TPM2B_PUBLIC(
        TPMT_PUBLIC(
            type=algorithm,
            nameAlg=TPM2_ALG.SHA256,
            objectAttributes=attributes,
            authPolicy=policy,
            parameters=parameters,
            unique=TPMU_PUBLIC_ID() if unique is None else unique,
        )
    )


def signature(made: TPMT_SIGNATURE) -> bytes:
    """PKCS #1 v1.5, or a DER Ecdsa-Sig-Value. Raises Fault for other schemes."""
    match int(made.sigAlg):
        case TPM2_ALG.ECDSA:
            pair = made.signature.ecdsa
            return encode_dss_signature(int.from_bytes(bytes(pair.signatureR)), int.from_bytes(bytes(pair.signatureS)))
        case TPM2_ALG.RSASSA:
            return bytes(made.signature.rsassa.sig)
        case other:
            raise Fault("Unsupported", f"the DevID's key signs by scheme {other:#06x}: use RSASSA or ECDSA")


def first_element(content: bytes) -> bytes:
    """The DER element that the content begins with: some TPMs pad their certificates. Raises Fault."""
    octets = content[1] & 0x7F if len(content) > 1 and content[1] & 0x80 else 0
    head = 2 + octets
    size = int.from_bytes(content[2:head]) if octets else content[1] if len(content) > 1 else 0
    if len(content) < 2 or head + size > len(content):
        raise Fault("PermanentlyUnusable", "failed to unmarshall certificate: it is cut short")
    return content[: head + size]
