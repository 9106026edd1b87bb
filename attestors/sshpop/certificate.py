"""Certificates of OpenSSH (PROTOCOL.certkeys), taken apart: every byte of one is signed, or is the signature.

cryptography reads them too, but none that a security key signed, and of CAs there are such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attestors.sshpop import keys
from attestors.sshpop.keys import PublicKey, Signature
from attestors.sshpop.wire import Reader
from operations.errors import InvalidArgument

LONGEST = 64 << 10
"""Bytes. OpenSSH's own have a few hundred."""
FOREVER = (1 << 64) - 1
HOST = 2

_VERSION = "-cert-v01@openssh.com"


@dataclass(frozen=True, slots=True)
class Certificate:
    """`raw` is all of it, `signed` what the CA signed; times are in unix seconds."""

    raw: bytes
    kind: str
    nonce: bytes
    key: PublicKey
    serial: int
    type: int
    key_id: bytes
    principals: tuple[bytes, ...]
    valid_after: int
    valid_before: int
    critical_options: Mapping[bytes, bytes]
    extensions: Mapping[bytes, bytes]
    reserved: bytes
    signature_key: PublicKey
    signature: Signature
    signed: bytes


def is_certificate(kind: str) -> bool:
    """Whether a key type's name is that of a certificate."""
    return kind.endswith(_VERSION)


def parse(data: bytes) -> Certificate:
    """Raises InvalidArgument for what is no certificate of a kind that is known."""
    if len(data) > LONGEST:
        raise InvalidArgument(f"ssh: the certificate is larger than {LONGEST} bytes")
    reader = Reader(data)
    kind = reader.string().decode("utf-8", "backslashreplace")
    if not is_certificate(kind):
        raise InvalidArgument(f"ssh: unknown key algorithm: {kind[:100]}")
    nonce = reader.string()
    key = keys.read(reader, _certified(kind))
    serial, certificate_type, key_id = reader.uint64(), reader.uint32(), reader.string()
    principals = _strings(reader.string())
    valid_after, valid_before = reader.uint64(), reader.uint64()
    critical_options, extensions = _options(reader.string()), _options(reader.string())
    reserved = reader.string()
    signature_key = _signature_key(reader.string())
    signed = data[: reader.position]
    signature = _signature(reader.string())
    reader.end("certificate")
    return Certificate(
        raw=data,
        kind=kind,
        nonce=nonce,
        key=key,
        serial=serial,
        type=certificate_type,
        key_id=key_id,
        principals=principals,
        valid_after=valid_after,
        valid_before=valid_before,
        critical_options=critical_options,
        extensions=extensions,
        reserved=reserved,
        signature_key=signature_key,
        signature=signature,
        signed=signed,
    )


def _certified(kind: str) -> str:
    """The kind of the key in a certificate: a security key's name has the domain at its end."""
    name = kind.removesuffix(_VERSION)
    return f"{name}@openssh.com" if name.startswith("sk-") else name


def _strings(data: bytes) -> tuple[bytes, ...]:
    reader = Reader(data)
    found: list[bytes] = []
    while reader.left:
        found.append(reader.string())
    return tuple(found)


def _options(data: bytes) -> Mapping[bytes, bytes]:
    """Names in their order, each with its value: a string in a string, or nothing."""
    reader = Reader(data)
    options: dict[bytes, bytes] = {}
    last: bytes | None = None
    while reader.left:
        name, value = reader.string(), Reader(reader.string())
        if last is not None and name <= last:
            raise InvalidArgument("ssh: certificate options are not in lexical order")
        last = name
        options[name] = value.string() if value.left else b""
        value.end("certificate option")
    return options


def _signature_key(blob: bytes) -> PublicKey:
    kind = keys.kind_of(blob)
    if is_certificate(kind):
        raise InvalidArgument("ssh: a certificate is signed by another certificate's key, which SSH does not have")
    return keys.parse(blob)


def _signature(data: bytes) -> Signature:
    reader = Reader(data)
    name = reader.string().decode("utf-8", "backslashreplace")
    blob = reader.string()
    return Signature(name, blob, reader.take(reader.left))
