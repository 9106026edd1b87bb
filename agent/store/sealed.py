"""The form of the store: a line of JSON that says whose it is, then AES-256-GCM (NIST SP 800-38D) over the content.

The line is authenticated with the content. Each writing has a key of its own, derived with a random salt, so that no
number of writings wears a key out.
"""

from __future__ import annotations

import os

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from operations.documents import Malformed, decode
from operations.errors import Corrupt

VERSION = 1
_LONGEST_HEADER = 8192
_SALT_SIZE = 32
_NONCE_SIZE = 12
_INFO = b"spire agent store"


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose content it is, and which of its writings. `saved_at` is in Unix seconds."""

    version: int = VERSION
    trust_domain: str
    agent: str
    generation: int
    saved_at: float
    salt: bytes = b""
    nonce: bytes = b""


def seal(secret: bytes, header: Header, content: bytes) -> bytes:
    """`secret` has 32 bytes. The header's salt and nonce are made here."""
    fresh = msgspec.structs.replace(header, salt=os.urandom(_SALT_SIZE), nonce=os.urandom(_NONCE_SIZE))
    line = msgspec.json.encode(fresh)
    return line + b"\n" + _cipher(secret, fresh.salt).encrypt(fresh.nonce, content, line)


def read_header(sealed: bytes) -> Header:
    """Raises Corrupt. Nothing of it is to be believed before `unseal` has succeeded."""
    line, newline, _ = sealed[: _LONGEST_HEADER + 1].partition(b"\n")
    try:
        header = decode(line, Header)
    except Malformed as error:
        raise Corrupt("it does not begin as a store does") from error
    if not newline or len(header.salt) != _SALT_SIZE or len(header.nonce) != _NONCE_SIZE:
        raise Corrupt("it does not begin as a store does")
    return header


def unseal(secret: bytes, sealed: bytes) -> bytes:
    """Raises Corrupt for what was not sealed with this secret, or is not as it was then."""
    header = read_header(sealed)
    line, _, ciphertext = sealed.partition(b"\n")
    try:
        return _cipher(secret, header.salt).decrypt(header.nonce, ciphertext, line)
    except InvalidTag as error:
        raise Corrupt("it does not decrypt: another key manager sealed it, or it was damaged") from error


def _cipher(secret: bytes, salt: bytes) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), 32, salt=salt, info=_INFO).derive(secret))
