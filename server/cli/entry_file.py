"""Registration data as JSON, for `entry create -data` and `entry update -data`.

The names are those of SPIRE's files: `{"entries": [{"spiffe_id": "spiffe://…", "parent_id": "spiffe://…", "selectors":
[{"type": "unix", "value": "uid:1000"}], …}]}`. As there, names may be written in any case, and null is as good as
absent. Unknown names do no harm there, so they only bring a warning here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from generated.spire.api.types import entry_pb2, selector_pb2
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument


class _Selector(msgspec.Struct):
    type: str = ""
    value: str = ""


class _Attributes(msgspec.Struct):
    disable_x509_svid_prefetch: bool = False
    jwt_svid_include_jti: bool = False


class _Entry(msgspec.Struct, rename="lower"):
    spiffe_id: str = ""
    parent_id: str = ""
    selectors: tuple[_Selector, ...] = ()
    entry_id: str = ""
    x509_svid_ttl: int = 0
    jwt_svid_ttl: int = 0
    federates_with: tuple[str, ...] = ()
    admin: bool = False
    downstream: bool = False
    entryExpiry: int = 0  # noqa: N815  the name in SPIRE's files, case aside
    dns_names: tuple[str, ...] = ()
    revision_number: int = 0
    store_svid: bool = False
    hint: str = ""
    created_at: int = 0
    additional_attributes: _Attributes | None = None


class _File(msgspec.Struct):
    entries: tuple[_Entry, ...] = ()


class _Ids(msgspec.Struct):
    ids: list[str] = []


def read(path: str) -> list[entry_pb2.Entry]:
    """The entries of a file, or of standard input for `-`. Raises InvalidArgument."""
    try:
        document = json.loads(read_input(path))
        entries = msgspec.convert(_folded(document), _File).entries
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{_named_input(path)}: no registration data: {error}") from error
    _warn_of_unknown_names(path, document)
    return [_to_proto(entry) for entry in entries]


def read_ids(path: str) -> list[str]:
    """The entry IDs of `{"ids": [...]}`, for `entry delete -file`. Raises InvalidArgument."""
    try:
        return msgspec.convert(_folded(json.loads(read_input(path))), _Ids).ids
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{_named_input(path)}: no list of entry IDs: {error}") from error


def read_input(path: str) -> str:
    """A file's text, or standard input's for `-`. Raises InvalidArgument."""
    try:
        if path == "-":
            return sys.stdin.read()
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"open {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{_named_input(path)}: not UTF-8 text") from error


def _named_input(path: str) -> str:
    return "standard input" if path == "-" else path


def _folded(value: Any) -> Any:
    """JSON with the names of all members in lower case, and without those that are null."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value).items()
        return {name.lower(): _folded(member) for name, member in members if member is not None}
    if isinstance(value, list):
        return [_folded(member) for member in cast("list[object]", value)]
    return value


def _to_proto(entry: _Entry) -> entry_pb2.Entry:
    try:
        message = entry_pb2.Entry(
            id=entry.entry_id,
            spiffe_id=_named("invalid SPIFFE ID", entry.spiffe_id).to_proto(),
            parent_id=_named("invalid parent ID", entry.parent_id).to_proto(),
            selectors=[selector_pb2.Selector(type=part.type, value=part.value) for part in entry.selectors],
            x509_svid_ttl=entry.x509_svid_ttl,
            jwt_svid_ttl=entry.jwt_svid_ttl,
            federates_with=_trust_domains(entry.federates_with),
            admin=entry.admin,
            downstream=entry.downstream,
            expires_at=entry.entryExpiry,
            dns_names=entry.dns_names,
            revision_number=entry.revision_number,
            store_svid=entry.store_svid,
            hint=entry.hint,
            created_at=entry.created_at,
        )
    except ValueError as error:  # a number outside of its field
        raise InvalidArgument(f"entry {entry.spiffe_id}: {error}") from error
    if entry.additional_attributes is not None:
        message.additional_attributes.disable_x509_svid_prefetch = (
            entry.additional_attributes.disable_x509_svid_prefetch
        )
        message.additional_attributes.jwt_svid_include_jti = entry.additional_attributes.jwt_svid_include_jti
    return message


def _named(reason: str, text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except InvalidArgument as error:
        raise InvalidArgument(f"{reason}: {error}") from error


def _trust_domains(texts: Sequence[str]) -> list[str]:
    try:
        return [TrustDomain.parse(text).name for text in texts]
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid federated trust domain: {error}") from error


def _warn_of_unknown_names(path: str, document: dict[str, Any]) -> None:
    known = {field.encode_name for field in msgspec.structs.fields(_Entry)}
    lists = [entries for name, entries in document.items() if name.lower() == "entries" and entries]
    found = {name for entries in lists for entry in entries for name in entry}
    for name in sorted(name for name in found if name.lower() not in known):
        print(f"Warning: {_named_input(path)}: {name} is not known and was ignored", file=sys.stderr)
