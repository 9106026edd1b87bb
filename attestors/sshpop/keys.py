"""Public keys and signatures of SSH (RFC 4253, 6.6; RFC 5656; RFC 8332; RFC 8709; OpenSSH's PROTOCOL.u2f).

cryptography reads the keys and checks the signatures; what SSH puts around them is here. DSA is not taken: OpenSSH has
given it up, and its keys are too short.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from attestors.sshpop.wire import Reader, natural, string
from operations.errors import InvalidArgument, Refused

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

SHA1 = "ssh-rsa"
"""The signature format of RSA with SHA-1. Go's agents still sign so, what they sign being a digest by SHA-256."""

_FIELDS: Mapping[str, int] = {
    "ssh-rsa": 2,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "ssh-ed25519": 1,
    "sk-ecdsa-sha2-nistp256@openssh.com": 3,
    "sk-ssh-ed25519@openssh.com": 2,
}
_RSA: Mapping[str, hashes.HashAlgorithm] = {
    SHA1: hashes.SHA1(),  # noqa: S303 - see SHA1
    "rsa-sha2-256": hashes.SHA256(),
    "rsa-sha2-512": hashes.SHA512(),
}
CURVES: Mapping[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}

_SHORTEST_RSA = 1024
_LONGEST_RSA = 16384
_LONGEST_EXPONENT = 24
_USER_PRESENT = 0x01

KINDS = frozenset(_FIELDS)
"""The types of keys by name."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """`blob` is the key as SSH writes it, its kind first. `application` is that of a security key (U2F)."""

    kind: str
    blob: bytes
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
    application: bytes | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """`rest` follows the signature of a security key: its flags and counter."""

    format: str
    blob: bytes
    rest: bytes = b""


def kind_of(blob: bytes) -> str:
    """The name that a key or a certificate begins with. Raises InvalidArgument."""
    return Reader(blob).string().decode("utf-8", "backslashreplace")


def parse(blob: bytes) -> PublicKey:
    """Raises InvalidArgument."""
    reader = Reader(blob)
    key = read(reader, reader.string().decode("utf-8", "backslashreplace"))
    reader.end("public key")
    return key


def read(reader: Reader, kind: str) -> PublicKey:
    """The fields of a key, whose kind has been read. Raises InvalidArgument."""
    if kind not in _FIELDS:
        raise InvalidArgument(f"ssh: unknown key algorithm: {kind[:100]}")
    fields = [reader.string() for _ in range(_FIELDS[kind])]
    blob = b"".join(map(string, (kind.encode(), *fields)))
    try:
        key = load_ssh_public_key(kind.encode() + b" " + base64.b64encode(blob))
    except (ValueError, UnsupportedAlgorithm, NotImplementedError) as error:  # the last for a compressed point
        raise InvalidArgument(f"ssh: the {kind} key cannot be used: {error}") from error
    if isinstance(key, rsa.RSAPublicKey):
        _require_size(key)
    elif not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise InvalidArgument(f"ssh: unknown key algorithm: {kind}")
    return PublicKey(kind, blob, key, fields[-1] if kind.startswith("sk-") else None)


def _require_size(key: rsa.RSAPublicKey) -> None:
    if not _SHORTEST_RSA <= key.key_size <= _LONGEST_RSA:
        raise InvalidArgument(f"ssh: RSA keys have {_SHORTEST_RSA} to {_LONGEST_RSA} bits, not {key.key_size}")
    if key.public_numbers().e.bit_length() > _LONGEST_EXPONENT:
        raise InvalidArgument("ssh: exponent too large")


def public_blob(key: PrivateKey) -> bytes:
    """The public half, as in PublicKey."""
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])


def sign(key: PrivateKey, data: bytes) -> Signature:
    """By RSA with SHA-256, whatever its kind's name says: every verifier of the last years knows rsa-sha2-256."""
    if isinstance(key, rsa.RSAPrivateKey):
        return Signature("rsa-sha2-256", key.sign(data, padding.PKCS1v15(), hashes.SHA256()))
    kind = kind_of(public_blob(key))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(CURVES[key.curve.name])))
        return Signature(kind, natural(r) + natural(s))
    return Signature(kind, key.sign(data))


def verify(key: PublicKey, data: bytes, signature: Signature, *, presence: bool = True) -> None:
    """Raise Refused unless it is this key's signature of `data`.

    `presence` asks a security key's signature to say that a person touched it.
    """
    fitting = signature.format in _RSA if isinstance(key.key, rsa.RSAPublicKey) else signature.format == key.kind
    if not fitting:
        raise Refused(f"ssh: signature type {signature.format[:100]} for key type {key.kind}")
    if signature.rest and key.application is None:
        raise Refused("ssh: signature parse error")
    try:
        if key.application is not None:
            data = _by_security_key(key.application, data, signature.rest, presence=presence)
        _check(key, data, signature)
    except (InvalidSignature, InvalidArgument) as error:
        raise Refused("ssh: signature did not verify") from error


def _check(key: PublicKey, data: bytes, signature: Signature) -> None:
    if isinstance(key.key, rsa.RSAPublicKey):
        # Some signers leave zeroes in front away (RFC 4253, 6.6).
        padded = signature.blob.rjust((key.key.key_size + 7) // 8, b"\0")
        key.key.verify(padded, data, padding.PKCS1v15(), _RSA[signature.format])
    elif isinstance(key.key, ec.EllipticCurvePublicKey):
        reader = Reader(signature.blob)
        r, s = reader.natural(), reader.natural()
        reader.end("signature")
        if max(r, s).bit_length() > key.key.key_size:
            raise InvalidSignature
        key.key.verify(encode_dss_signature(r, s), data, ec.ECDSA(CURVES[key.key.curve.name]))
    else:
        key.key.verify(signature.blob, data)


def _by_security_key(application: bytes, data: bytes, rest: bytes, *, presence: bool) -> bytes:
    """What a security key signs in the place of `data`. Raises InvalidArgument."""
    reader = Reader(rest)
    flags, counter = reader.take(1), reader.take(4)
    reader.end("signature")
    if presence and not flags[0] & _USER_PRESENT:
        raise InvalidArgument("ssh: signature missing required user presence flag")
    return sha256(application).digest() + flags + counter + sha256(data).digest()
