"""Signatures as a TPM makes them: what it is asked, and what may leave. For the event loop's side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from keystores import public_keys
from keystores.errors import PermanentlyUnusable, Unsupported
from keystores.tpm.messages import LoadedKey, Sign
from plugins.keymanager import Hash, Scheme

_OWN_HASHES: Final = {32: "sha256", 48: "sha384"}
_HASHES: Final[dict[Hash, hashes.HashAlgorithm]] = {
    Hash.SHA256: hashes.SHA256(),
    Hash.SHA384: hashes.SHA384(),
    Hash.SHA512: hashes.SHA512(),
}


def request(key: LoadedKey, public_key: public_keys.PublicKey, digests: Sequence[bytes], scheme: Scheme) -> Sign:
    """ECDSA takes no more of a digest than its curve is long (FIPS 186-5, 6.4.1). Cut to that, a digest needs no hash
    but the curve's own, or a shorter one, and TPMs that have a curve have those: SHA-512 not all."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return Sign(key=key, digests=list(digests), scheme="rsapss" if scheme.pss else "rsassa", hash=scheme.hash.value)
    size = (public_key.curve.key_size + 7) // 8
    cut = [digest[:size] for digest in digests]
    hash_name = _OWN_HASHES[len(cut[0])] if cut else scheme.hash.value
    return Sign(key=key, digests=cut, scheme="ecdsa", hash=hash_name)


def check(
    key: public_keys.PublicKey, digests: Sequence[bytes], signatures: Sequence[bytes], scheme: Scheme
) -> list[bytes]:
    """The signatures, none of which leaves unverified. Raises PermanentlyUnusable, and Unsupported for a TPM whose PSS
    salts are as long as they can be, as those before the library's revision 1.38 have them."""
    try:
        public_keys.verify(key, digests, signatures, scheme)
    except PermanentlyUnusable as error:
        if scheme.pss and isinstance(key, rsa.RSAPublicKey) and _salted_otherwise(key, digests, signatures, scheme):
            raise Unsupported(
                "this TPM makes PSS signatures whose salt is not as long as the hash, which TLS 1.3 (RFC 8446, 4.2.3) "
                "and JWS refuse; use keys of type ec-p256, or PKCS #1 v1.5"
            ) from error
        raise
    return list(signatures)


def _salted_otherwise(
    key: rsa.RSAPublicKey, digests: Sequence[bytes], signatures: Sequence[bytes], scheme: Scheme
) -> bool:
    any_salt = padding.PSS(padding.MGF1(_HASHES[scheme.hash]), padding.PSS.AUTO)
    try:
        for digest, signature in zip(digests, signatures, strict=True):
            key.verify(signature, digest, any_salt, public_keys.prehashed(scheme))
    except (InvalidSignature, ValueError):
        return False
    return True
