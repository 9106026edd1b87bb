"""Registration entries: the statements. All run inside a transaction of the worker."""

from __future__ import annotations

import re
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, get_args

from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, Table, bindparam, delete, func, insert, select, update

from identity.selectors import Selector
from operations.errors import AlreadyExists, InvalidArgument, NotFound
from server.datastore import schema
from server.datastore.entry_rows import BY_ID, EVERYTHING, Reading, chosen
from server.datastore.matching import matches
from server.datastore.paging import first_page, page, parts
from server.datastore.records import Changes, Entry, EntryField, EntryFilter, Match, Page

_entries = schema.entries
_row = schema.entries.c.seq

ALL_FIELDS: frozenset[EntryField] = frozenset(get_args(EntryField))

_ENTRY_ID = re.compile(r"[a-zA-Z0-9\-._]{0,255}")
_INSERT = insert(_entries).returning(_row)
_DELETE = delete(_entries).where(_entries.c.id == bindparam("entry_id"))
# Fields of a mask that are columns of their own; the rest live in tables beside.
_COLUMNS: dict[EntryField, tuple[str, ...]] = {
    "spiffe_id": ("spiffe_id",),
    "parent_id": ("parent_id",),
    "x509_svid_ttl": ("x509_svid_ttl",),
    "jwt_svid_ttl": ("jwt_svid_ttl",),
    "hint": ("hint",),
    "admin": ("admin",),
    "downstream": ("downstream",),
    "expires_at": ("expires_at",),
    "store_svid": ("store_svid",),
    "additional_attributes": ("jwt_svid_include_jti", "disable_x509_svid_prefetch"),
}


def create(connection: Connection, changes: Changes, entry: Entry) -> tuple[Entry, bool]:
    """Store the entry, or return the one with the same SPIFFE ID, parent and selectors; True when it was there."""
    entry = _normalised(entry)
    _validate(entry)
    if similar := _similar(connection, entry):
        return similar, True
    if entry.id and connection.scalar(select(_row).where(_entries.c.id == entry.id)) is not None:
        raise AlreadyExists(f"an entry with id {entry.id!r} exists already")
    entry = replace(entry, id=entry.id or str(uuid.uuid4()), created_at=int(time.time()), revision_number=0)
    columns = {"id": entry.id, "created_at": entry.created_at, "revision_number": 0, **_columns(entry, ALL_FIELDS)}
    key = connection.execute(_INSERT, columns).scalar_one()
    _write_members(connection, key, entry, ALL_FIELDS)
    changes.entries[entry.id] = entry
    return entry, False


def fetch(connection: Connection, ids: Collection[str]) -> dict[str, Entry]:
    """The entries that exist, by id."""
    return {entry.id: entry for part in parts(list(ids)) for entry in BY_ID.read(connection, ids=part)}


def change(connection: Connection, changes: Changes, entry: Entry, fields: Collection[EntryField]) -> Entry:
    """Replace the given fields of the entry with that id and count its revision up. Raises NotFound."""
    found = BY_ID.read_numbered(connection, ids=[entry.id])
    if not found:
        raise NotFound("entry not found")
    [(key, old)] = found
    names = {name for field in fields for name in _COLUMNS.get(field, (field,))}
    entry = _normalised(entry)
    new = replace(old, revision_number=old.revision_number + 1, **{name: getattr(entry, name) for name in names})
    _validate(new)
    connection.execute(
        update(_entries).where(_row == key).values(revision_number=new.revision_number, **_columns(new, fields))
    )
    for table, field in (
        (schema.entry_selectors, "selectors"),
        (schema.entry_dns_names, "dns_names"),
        (schema.entry_federations, "federates_with"),
    ):
        if field in fields:
            connection.execute(delete(table).where(table.c.entry == key))
    _write_members(connection, key, new, fields)
    changes.entries[new.id] = new
    return new


def remove(connection: Connection, changes: Changes, entry_id: str) -> Entry:
    """Delete the entry and return it. Raises NotFound."""
    found = BY_ID.read(connection, ids=[entry_id])
    if not found:
        raise NotFound("entry not found")
    connection.execute(_DELETE, {"entry_id": entry_id})
    changes.entries[entry_id] = None
    return found[0]


def remove_where(connection: Connection, changes: Changes, condition: ColumnElement[bool]) -> list[Entry]:
    """Delete the entries that the condition selects and return them."""
    found = Reading(select(_row).where(condition)).read(connection)
    if found:
        connection.execute(delete(_entries).where(condition))
        changes.entries.update((entry.id, None) for entry in found)
    return found


def prune(connection: Connection, changes: Changes, expires_before: int) -> list[Entry]:
    """Delete the entries that expired before that time, and return them."""
    return remove_where(connection, changes, (_entries.c.expires_at != 0) & (_entries.c.expires_at < expires_before))


def dissociate(connection: Connection, changes: Changes, trust_domain: str) -> None:
    """Let no entry federate with that trust domain any more; their revisions go up, so that agents notice."""
    federations = schema.entry_federations
    federating = select(federations.c.entry).where(federations.c.trust_domain == trust_domain)
    for entry in Reading(federating).read(connection):
        names = tuple(name for name in entry.federates_with if name != trust_domain)
        changes.entries[entry.id] = replace(entry, federates_with=names, revision_number=entry.revision_number + 1)
    advanced = update(_entries).values(revision_number=_entries.c.revision_number + 1)
    connection.execute(advanced.where(_row.in_(federating)))
    connection.execute(delete(federations).where(federations.c.trust_domain == trust_domain))


def listing(connection: Connection, wanted: EntryFilter, page_size: int, page_token: str) -> Page[Entry]:
    """A page of the entries that the filter selects, oldest first."""
    rows = page(select(_row).where(*_conditions(wanted)), _row, page_size, page_token)
    costly = wanted.selectors is not None or wanted.federates_with is not None
    found = chosen(connection, rows) if costly else Reading(rows).read_numbered(connection)
    return first_page(found, page_size)


def count(connection: Connection, wanted: EntryFilter) -> int:
    return connection.scalar(select(func.count()).select_from(_entries).where(*_conditions(wanted))) or 0


def everything(connection: Connection) -> tuple[Entry, ...]:
    return tuple(EVERYTHING.read(connection))


_SELECTORS_OF_NAMESAKES = (
    select(schema.entry_selectors.c.entry, schema.entry_selectors.c.type, schema.entry_selectors.c.value)
    .join(_entries, _row == schema.entry_selectors.c.entry)
    .where(_entries.c.parent_id == bindparam("parent_id"), _entries.c.spiffe_id == bindparam("spiffe_id"))
    .order_by(_row)
)


def _similar(connection: Connection, entry: Entry) -> Entry | None:
    """The oldest entry with the same SPIFFE ID, parent and selectors."""
    namesakes = {"parent_id": entry.parent_id, "spiffe_id": entry.spiffe_id}
    selectors: defaultdict[int, set[Selector]] = defaultdict(set)
    for key, kind, value in connection.execute(_SELECTORS_OF_NAMESAKES, namesakes):
        selectors[key].add(Selector(kind, value))
    for key, found in selectors.items():
        if found == set(entry.selectors):
            return Reading(select(_row).where(_row == key)).read(connection)[0]
    return None


def _conditions(wanted: EntryFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.spiffe_id:
        conditions.append(_entries.c.spiffe_id == wanted.spiffe_id)
    if wanted.parent_id:
        conditions.append(_entries.c.parent_id == wanted.parent_id)
    if wanted.hint:
        conditions.append(_entries.c.hint == wanted.hint)
    if wanted.downstream is not None:
        conditions.append(_entries.c.downstream.is_(wanted.downstream))
    if wanted.selectors is not None:
        if not wanted.selectors.selectors:
            raise InvalidArgument("cannot list by empty selector set")
        conditions.append(_by_selectors(wanted.selectors.selectors, wanted.selectors.match))
    if wanted.federates_with is not None and wanted.federates_with.trust_domains:
        federations = schema.entry_federations.c
        names = [(name,) for name in dict.fromkeys(wanted.federates_with.trust_domains)]
        conditions.append(
            matches(_row, federations.entry, [federations.trust_domain], names, wanted.federates_with.match)
        )
    return conditions


def _by_selectors(selectors: Iterable[Selector], match: Match) -> ColumnElement[bool]:
    table = schema.entry_selectors.c
    pairs = [(selector.type, selector.value) for selector in dict.fromkeys(selectors)]
    return matches(_row, table.entry, [table.type, table.value], pairs, match)


def _columns(entry: Entry, fields: Collection[EntryField]) -> dict[str, Any]:
    return {name: getattr(entry, name) for field in fields for name in _COLUMNS.get(field, ())}


def _write_members(connection: Connection, key: int, entry: Entry, fields: Collection[EntryField]) -> None:
    if "selectors" in fields:
        _insert(connection, schema.entry_selectors, key, [{"type": s.type, "value": s.value} for s in entry.selectors])
    if "dns_names" in fields:
        _insert(connection, schema.entry_dns_names, key, [{"name": name} for name in entry.dns_names])
    if "federates_with" in fields and entry.federates_with:
        bundles = schema.bundles.c.trust_domain
        for part in parts(entry.federates_with):
            known = set(connection.scalars(select(bundles).where(bundles.in_(part))))
            for name in part:
                if name not in known:
                    raise InvalidArgument(f'unable to find federated bundle "spiffe://{name}"')
        _insert(connection, schema.entry_federations, key, [{"trust_domain": name} for name in entry.federates_with])


def _insert(connection: Connection, table: Table, key: int, members: Sequence[dict[str, str]]) -> None:
    if members:
        rows = [{"entry": key, "position": position, **member} for position, member in enumerate(members)]
        connection.execute(insert(table), rows)


def _normalised(entry: Entry) -> Entry:
    """Sets without duplicates, in the order given."""
    return replace(
        entry,
        selectors=tuple(dict.fromkeys(entry.selectors)),
        dns_names=tuple(dict.fromkeys(entry.dns_names)),
        federates_with=tuple(dict.fromkeys(entry.federates_with)),
    )


def _validate(entry: Entry) -> None:
    """The rules that SPIRE's store holds, with its texts. Raises InvalidArgument."""
    fault = _fault(entry)
    if fault:
        raise InvalidArgument(f"invalid registration entry: {fault}")


def _fault(entry: Entry) -> str | None:
    if not entry.selectors:
        return "missing selector list"
    if entry.store_svid and entry.disable_x509_svid_prefetch:
        return "specifying cache behaviour is incompatible with storable SVIDs"
    if entry.store_svid and len({selector.type for selector in entry.selectors}) > 1:
        return "selector types must be the same when store SVID is enabled"
    if len(entry.id) > 255:
        return "entry ID too long"
    if not _ENTRY_ID.fullmatch(entry.id):
        return "entry ID contains invalid characters"
    if not entry.spiffe_id:
        return "missing SPIFFE ID"
    if entry.x509_svid_ttl < 0:
        return "X509SvidTtl is not set"
    if entry.jwt_svid_ttl < 0:
        return "JwtSvidTtl is not set"
    return None
