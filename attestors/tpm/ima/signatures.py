"""Signatures that files carry in security.ima, as the kernel appraises them (security/integrity/digsig_asymmetric.c).

A signature names its key by four bytes of a key identifier and is by RSA (PKCS #1 v1.5) or ECDSA over the file's
digest; one over a digest by fs-verity, version 3, is over the hash of what kind of digest it is and the digest.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from attestors.tpm.ima.model import ImaEntry
from operations.errors import InvalidArgument

KEYS_LIMIT: Final = 64
SIGNATURE_LIMIT: Final = 2048
"""Bytes of security.ima; an RSA key of 8192 bits takes half of it."""
REMEMBERED: Final = 1 << 16
"""Signatures that verified once and need not do so again."""

_HEADER = struct.Struct(">BBB4sH")
_FILE, _VERITY = 0x03, 0x06
_DIGEST, _STRUCTURE = 2, 3
# Numbers of the kernel's enum hash_algo. SHA-1 and what is older is not among them: there are collisions.
_ALGORITHMS: Mapping[int, tuple[str, hashes.HashAlgorithm]] = MappingProxyType(
    {
        4: ("sha256", hashes.SHA256()),
        5: ("sha384", hashes.SHA384()),
        6: ("sha512", hashes.SHA512()),
        7: ("sha224", hashes.SHA224()),
    }
)
_Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Keys:
    """Public keys that files may be signed by."""

    def __init__(self, keys: Mapping[bytes, Sequence[_Key]]) -> None:
        self._keys = keys
        # A fleet has the same files on every machine: what verified once does so again.
        self._verified: set[bytes] = set()

    @classmethod
    def load(cls, pem: Sequence[bytes]) -> Self:
        """From files' contents, each with certificates or public keys in PEM.

        Nothing but its key is taken of a certificate, as the kernel's keyring does. Raises InvalidArgument.
        """
        keys: dict[bytes, list[_Key]] = {}
        count = 0
        for text in pem:
            found = list(_blocks(text))
            count += len(found)
            if not found:
                raise InvalidArgument("no certificate and no public key in it; they are given in PEM")
            if count > KEYS_LIMIT:
                raise InvalidArgument(f"more than {KEYS_LIMIT} keys that sign files")
            for key, identifiers in found:
                if not isinstance(key, _Key):
                    raise InvalidArgument("files are signed by RSA or ECDSA; a key of another kind is of no use here")
                for identifier in identifiers:
                    keys.setdefault(identifier, []).append(key)
        return cls(keys)

    def signed(self, entry: ImaEntry) -> bool:
        """Whether the measured file carries a signature of its digest by one of the keys."""
        signature = entry.signature
        if entry.violation or signature is None or not _HEADER.size < len(signature) <= SIGNATURE_LIMIT:
            return False
        parts = (entry.algorithm.encode(), entry.digest, signature)
        known = hashlib.sha256(b"".join(len(part).to_bytes(2) + part for part in parts)).digest()
        if known in self._verified:
            return True
        if not self._verifies(entry, signature):
            return False
        if len(self._verified) >= REMEMBERED:
            self._verified.clear()
        self._verified.add(known)
        return True

    def _verifies(self, entry: ImaEntry, attribute: bytes) -> bool:
        kind, version, number, identifier, size = _HEADER.unpack_from(attribute)
        signature = attribute[_HEADER.size :]
        if number not in _ALGORITHMS or len(signature) != size:
            return False
        name, algorithm = _ALGORITHMS[number]
        digest = _signed_digest(entry, (kind, version), name, number)
        if digest is None:
            return False
        return any(_verifies(key, signature, digest, algorithm) for key in self._keys.get(identifier, ()))


def _signed_digest(entry: ImaEntry, kind: tuple[int, int], name: str, number: int) -> bytes | None:
    """What a signature of this kind and version is over: the digest, or the hash of a struct ima_file_id."""
    if len(entry.digest) != hashlib.new(name).digest_size:
        return None
    if kind == (_FILE, _DIGEST) and entry.algorithm == name:
        return entry.digest
    if kind == (_FILE, _STRUCTURE) and entry.algorithm == name:
        return hashlib.new(name, bytes((_FILE, number)) + entry.digest).digest()
    if kind == (_VERITY, _STRUCTURE) and entry.algorithm == f"verity:{name}":
        return hashlib.new(name, bytes((_VERITY, number)) + entry.digest).digest()
    return None


def _verifies(key: _Key, signature: bytes, digest: bytes, algorithm: hashes.HashAlgorithm) -> bool:
    prehashed = utils.Prehashed(algorithm)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, padding.PKCS1v15(), prehashed)
        else:
            key.verify(signature, digest, ec.ECDSA(prehashed))
    except InvalidSignature:
        return False
    return True


def _blocks(text: bytes) -> Iterator[tuple[object, set[bytes]]]:
    """Keys and what signatures may call them: the last bytes of SHA-1 of the key, and of a certificate's own name."""
    for block in text.split(b"-----BEGIN ")[1:]:
        pem = b"-----BEGIN " + block
        try:
            if block.startswith(b"CERTIFICATE-----"):
                certificate = x509.load_pem_x509_certificate(pem)
                key: object = certificate.public_key()
                yield key, {_identifier(key), _named(certificate)} - {b""}
            elif block.startswith(b"PUBLIC KEY-----"):
                key = serialization.load_pem_public_key(pem)
                yield key, {_identifier(key)}
            else:
                label = block.partition(b"-----")[0][:40].decode("ascii", "replace")
                raise InvalidArgument(f"{label!r} where a CERTIFICATE or a PUBLIC KEY was wanted")
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidArgument(f"a certificate or public key that cannot be read: {error}") from error


def _identifier(key: object) -> bytes:
    if not isinstance(key, _Key):
        return b""
    return x509.SubjectKeyIdentifier.from_public_key(key).digest[-4:]


def _named(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest[-4:]
    except x509.ExtensionNotFound:
        return b""
