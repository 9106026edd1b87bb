"""Public areas and schemes, as tpm2-pytss has them. Only the worker's process imports this."""

from __future__ import annotations

from typing import Final

from tpm2_pytss import (
    ESYS_TR,
    TPM2_ALG,
    TPM2_ECC,
    TPM2_RH,
    TPM2_ST,
    TPM2B_PUBLIC,
    TPMA_OBJECT,
    TPML_PCR_SELECTION,
    TPMS_ECC_PARMS,
    TPMS_ECC_POINT,
    TPMS_KEYEDHASH_PARMS,
    TPMS_RSA_PARMS,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_KEYEDHASH_SCHEME,
    TPMT_PUBLIC,
    TPMT_RSA_SCHEME,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF_OBJECT,
    TPMT_TK_HASHCHECK,
    TPMU_PUBLIC_ID,
    TPMU_PUBLIC_PARMS,
)

HASHES: Final = {"sha256": TPM2_ALG.SHA256, "sha384": TPM2_ALG.SHA384, "sha512": TPM2_ALG.SHA512}
_CURVES: Final = {"ec-p256": TPM2_ECC.NIST_P256, "ec-p384": TPM2_ECC.NIST_P384}
_HERE: Final = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
STORAGE: Final = _HERE | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.NODA | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT
SIGNING: Final = _HERE | TPMA_OBJECT.NODA | TPMA_OBJECT.SIGN_ENCRYPT
"""noDA, because there is no authorization value to be guessed: otherwise power losses count as guesses."""
ATTESTATION: Final = SIGNING | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.RESTRICTED


def _parameters(kind: str, symmetric: str | None, signing_hash: int | None = None) -> TPMU_PUBLIC_PARMS:
    cipher = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL) if symmetric is None else TPMT_SYM_DEF_OBJECT.parse(symmetric)
    if kind == "rsa-2048":
        scheme = TPMT_RSA_SCHEME(scheme=TPM2_ALG.NULL)
        return TPMU_PUBLIC_PARMS(rsaDetail=TPMS_RSA_PARMS(symmetric=cipher, scheme=scheme, keyBits=2048))
    ecc_scheme = TPMT_ECC_SCHEME(scheme=TPM2_ALG.NULL)
    if signing_hash is not None:
        ecc_scheme = TPMT_ECC_SCHEME(scheme=TPM2_ALG.ECDSA)
        ecc_scheme.details.ecdsa.hashAlg = signing_hash
    kdf = TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL)
    detail = TPMS_ECC_PARMS(symmetric=cipher, scheme=ecc_scheme, curveID=_CURVES[kind], kdf=kdf)
    return TPMU_PUBLIC_PARMS(eccDetail=detail)


def _public(
    kind: str,
    attributes: int,
    parameters: TPMU_PUBLIC_PARMS,
    policy: bytes = b"",
    unique: TPMU_PUBLIC_ID | None = None,
    name_hash: int = TPM2_ALG.SHA256,
) -> TPM2B_PUBLIC:
    algorithm = TPM2_ALG.RSA if kind.startswith("rsa") else TPM2_ALG.ECC
    return TPM2B_PUBLIC(
        TPMT_PUBLIC(
            type=algorithm,
            nameAlg=name_hash,
            objectAttributes=attributes,
            authPolicy=policy,
            parameters=parameters,
            unique=TPMU_PUBLIC_ID() if unique is None else unique,
        )
    )


def storage_key(kind: str, *, zeros: bool) -> TPM2B_PUBLIC:
    """The SRK's template (TCG TPM v2.0 Provisioning Guidance, 7.5.1), whose unique fields are zeros; without them the
    primary key that TSS2 key files mean by TPM_RH_OWNER."""
    unique = TPMU_PUBLIC_ID()
    if zeros and kind == "rsa-2048":
        unique = TPMU_PUBLIC_ID(rsa=bytes(256))
    elif zeros:
        unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=bytes(32), y=bytes(32)))
    return _public(kind, STORAGE, _parameters(kind, "aes128cfb"), unique=unique)


def endorsement_key(kind: str, attributes: int, policy: bytes, name_hash: int, unique: TPMU_PUBLIC_ID) -> TPM2B_PUBLIC:
    """A template of the EK Credential Profile: AES has as many bits as go with the hash."""
    cipher = "aes128cfb" if name_hash == TPM2_ALG.SHA256 else "aes256cfb"
    return _public(kind, attributes, _parameters(kind, cipher), policy, unique, name_hash)


def _with_policy(attributes: int, policy: bytes) -> int:
    return attributes if policy else attributes | TPMA_OBJECT.USERWITHAUTH


def signing_key(kind: str, policy: bytes) -> TPM2B_PUBLIC:
    """A key for any signing scheme, by the policy if there is one. Raises KeyError for a type that TPMs lack."""
    return _public(kind, _with_policy(SIGNING, policy), _parameters(kind, None), policy)


def attestation_key() -> TPM2B_PUBLIC:
    """A restricted P-256 key: it signs only what the TPM itself states."""
    return _public("ec-p256", ATTESTATION, _parameters("ec-p256", None, TPM2_ALG.SHA256))


def sealed(policy: bytes) -> TPM2B_PUBLIC:
    """A sealed data object. Its data come from outside, so sensitiveDataOrigin is clear."""
    attributes = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.NODA
    detail = TPMS_KEYEDHASH_PARMS(scheme=TPMT_KEYEDHASH_SCHEME(scheme=TPM2_ALG.NULL))
    return TPM2B_PUBLIC(
        TPMT_PUBLIC(
            type=TPM2_ALG.KEYEDHASH,
            nameAlg=TPM2_ALG.SHA256,
            objectAttributes=_with_policy(attributes, policy),
            authPolicy=policy,
            parameters=TPMU_PUBLIC_PARMS(keyedHashDetail=detail),
        )
    )


def is_storage_parent(public: TPM2B_PUBLIC) -> bool:
    """A restricted decryption key that never leaves its TPM."""
    attributes = int(public.publicArea.objectAttributes)
    wanted = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT
    return attributes & wanted == wanted and not attributes & TPMA_OBJECT.SIGN_ENCRYPT


def scheme(algorithm: int, hash_algorithm: int) -> TPMT_SIG_SCHEME:
    made = TPMT_SIG_SCHEME(scheme=algorithm)
    made.details.any.hashAlg = hash_algorithm
    return made


def no_ticket() -> TPMT_TK_HASHCHECK:
    """For digests that the TPM did not make itself: keys that are not restricted sign them."""
    return TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)


def pcr_selection(bank: str, numbers: tuple[int, ...]) -> TPML_PCR_SELECTION:
    return TPML_PCR_SELECTION.parse(f"{bank}:{','.join(map(str, numbers))}")


NO_SESSION: Final = ESYS_TR.NONE
