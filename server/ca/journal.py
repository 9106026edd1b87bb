"""The CA journal: which keys are authorities, since when and until when, so that a restart goes on with them.

It is one document, saved whole: JSON with a version and a checksum over its content. It holds no secret.
"""

from __future__ import annotations

import hashlib
from enum import Enum

import msgspec

from operations.errors import Corrupt

_VERSION = 1
_REMEDY = (
    "restore the database from a backup, or, without one, delete the row of table ca_journals: "
    "the server then makes new authorities, and what the old ones signed stays valid"
)


class Status(Enum):
    """An authority's state; the names are those of SPIRE's localauthority API."""

    PREPARED = "prepared"
    ACTIVE = "active"
    OLD = "old"


class X509Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An X.509 authority. Times are unix seconds, certificates DER; the chain leads upstream, its own first."""

    slot: str
    status: Status
    issued_at: int
    not_after: int
    certificate: bytes
    upstream_chain: tuple[bytes, ...] = ()


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JWT or WIT authority. Times are unix seconds, the public key is a DER SubjectPublicKeyInfo."""

    slot: str
    status: Status
    issued_at: int
    not_after: int
    key_id: str
    public_key: bytes


class Journal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Kinds without an authority are left out, so that a release that does not know of them reads it."""

    x509: tuple[X509Record, ...] = ()
    jwt: tuple[TokenRecord, ...] = ()
    wit: tuple[TokenRecord, ...] = ()


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    sha256: str
    content: msgspec.Raw


def dump(journal: Journal) -> bytes:
    return seal(msgspec.json.encode(journal))


def seal(content: bytes) -> bytes:
    """JSON content with the version and checksum that `load` asks for."""
    return msgspec.json.encode(_Document(version=_VERSION, sha256=_checksum(content), content=msgspec.Raw(content)))


def load(data: bytes) -> Journal:
    """Read what `dump` wrote. Raises Corrupt for anything else; nothing is guessed and nothing overwritten."""
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"the CA journal in the database is damaged (not a journal): {_REMEDY}") from error
    if document.version != _VERSION:
        raise Corrupt(
            f"the CA journal in the database has version {document.version}, and this server reads version {_VERSION}: "
            "run the server release that wrote it"
        )
    content = bytes(document.content)
    if document.sha256 != _checksum(content):
        raise Corrupt(f"the CA journal in the database is damaged (its checksum does not match): {_REMEDY}")
    try:
        return msgspec.json.decode(content, type=Journal)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"the CA journal in the database is damaged ({error}): {_REMEDY}") from error


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
