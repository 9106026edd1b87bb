"""Registration entries: the statements. All run inside a transaction of the worker."""

from __future__ import annotations

import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, TypeVar, get_args

from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, delete, func, insert, select, update

from identity.selectors import Selector
from operations.errors import AlreadyExists, InvalidArgument, NotFound
from server.datastore import schema
from server.datastore.matching import matches
from server.datastore.paging import page
from server.datastore.records import Changes, Entry, EntryField, EntryFilter, Match, Page

T = TypeVar("T")

_entries = schema.entries
_row = schema.entries.c.seq

ALL_FIELDS: frozenset[EntryField] = frozenset(get_args(EntryField))

_ENTRY_ID = re.compile(r"[a-zA-Z0-9\-._]{0,255}")
# Columns that are named and typed as the fields of Entry.
_OWN_COLUMNS = tuple(column.name for column in _entries.c if column is not _row)
_SELECT = select(_row, *(_entries.c[name] for name in _OWN_COLUMNS)).order_by(_row)
_INSERT = insert(_entries).returning(_row)
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
    return {entry.id: entry for entry in _read(connection, select(_row).where(_entries.c.id.in_(ids)))}


def change(connection: Connection, changes: Changes, entry: Entry, fields: Collection[EntryField]) -> Entry:
    """Replace the given fields of the entry with that id and count its revision up. Raises NotFound."""
    key = connection.scalar(select(_row).where(_entries.c.id == entry.id))
    if key is None:
        raise NotFound("entry not found")
    [old] = _read(connection, select(_row).where(_row == key))
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
    found = _read(connection, select(_row).where(_entries.c.id == entry_id))
    if not found:
        raise NotFound("entry not found")
    _delete(connection, changes, found)
    return found[0]


def remove_where(connection: Connection, changes: Changes, condition: ColumnElement[bool]) -> list[Entry]:
    """Delete the entries that the condition selects and return them."""
    found = _read(connection, select(_row).where(condition))
    _delete(connection, changes, found)
    return found


def prune(connection: Connection, changes: Changes, expires_before: int) -> list[Entry]:
    """Delete the entries that expired before that time, and return them."""
    return remove_where(connection, changes, (_entries.c.expires_at != 0) & (_entries.c.expires_at < expires_before))


def dissociate(connection: Connection, changes: Changes, trust_domain: str) -> None:
    """Let no entry federate with that trust domain any more."""
    federations = schema.entry_federations
    federating = select(federations.c.entry).where(federations.c.trust_domain == trust_domain)
    for entry in _read(connection, federating):
        names = tuple(name for name in entry.federates_with if name != trust_domain)
        changes.entries[entry.id] = replace(entry, federates_with=names)
    connection.execute(delete(federations).where(federations.c.trust_domain == trust_domain))


def listing(connection: Connection, wanted: EntryFilter, page_size: int, page_token: str) -> Page[Entry]:
    """A page of the entries that the filter selects, oldest first."""
    rows = page(select(_row).where(*_conditions(wanted)), _row, page_size, page_token)
    keyed = _read_keyed(connection, rows)
    if page_size and len(keyed) > page_size:
        del keyed[page_size:]
        return Page(tuple(entry for _, entry in keyed), str(keyed[-1][0]))
    return Page(tuple(entry for _, entry in keyed))


def count(connection: Connection, wanted: EntryFilter) -> int:
    return connection.scalar(select(func.count()).select_from(_entries).where(*_conditions(wanted))) or 0


def everything(connection: Connection) -> tuple[Entry, ...]:
    return tuple(_read(connection, None))


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
            return _read(connection, select(_row).where(_row == key))[0]
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


def _read(connection: Connection, rows: Select[Any] | None) -> list[Entry]:
    return [entry for _, entry in _read_keyed(connection, rows)]


def _read_keyed(connection: Connection, rows: Select[Any] | None) -> list[tuple[int, Entry]]:
    """The entries whose row numbers the query selects (None: all), in four queries however many they are."""
    query = _SELECT if rows is None else _SELECT.where(_row.in_(rows))
    found = connection.execute(query).all()
    if not found:
        return []

    def members(table: Table, *columns: str, make: Callable[[Sequence[Any]], T]) -> defaultdict[int, tuple[T, ...]]:
        query = select(table.c.entry, *(table.c[name] for name in columns)).order_by(table.c.entry, table.c.position)
        found: Sequence[Sequence[Any]] = connection.execute(
            query if rows is None else query.where(table.c.entry.in_(rows))
        ).all()
        grouped: defaultdict[int, tuple[T, ...]] = defaultdict(tuple)
        for row in found:
            grouped[row[0]] += (make(row),)
        return grouped

    selectors = members(schema.entry_selectors, "type", "value", make=lambda row: Selector(row[1], row[2]))
    dns_names = members(schema.entry_dns_names, "name", make=itemgetter(1))
    federations = members(schema.entry_federations, "trust_domain", make=itemgetter(1))
    return [
        (
            key,
            Entry(
                selectors=selectors[key],
                dns_names=dns_names.get(key, ()),
                federates_with=federations.get(key, ()),
                **dict(zip(_OWN_COLUMNS, columns, strict=True)),
            ),
        )
        for key, *columns in found
    ]


def _columns(entry: Entry, fields: Collection[EntryField]) -> dict[str, Any]:
    return {name: getattr(entry, name) for field in fields for name in _COLUMNS.get(field, ())}


def _write_members(connection: Connection, key: int, entry: Entry, fields: Collection[EntryField]) -> None:
    if "selectors" in fields:
        _insert(connection, schema.entry_selectors, key, [{"type": s.type, "value": s.value} for s in entry.selectors])
    if "dns_names" in fields:
        _insert(connection, schema.entry_dns_names, key, [{"name": name} for name in entry.dns_names])
    if "federates_with" in fields and entry.federates_with:
        bundles = schema.bundles.c.trust_domain
        known = set(connection.scalars(select(bundles).where(bundles.in_(entry.federates_with))))
        for name in entry.federates_with:
            if name not in known:
                raise InvalidArgument(f'unable to find federated bundle "spiffe://{name}"')
        _insert(connection, schema.entry_federations, key, [{"trust_domain": name} for name in entry.federates_with])


def _insert(connection: Connection, table: Table, key: int, members: Sequence[dict[str, str]]) -> None:
    if members:
        rows = [{"entry": key, "position": position, **member} for position, member in enumerate(members)]
        connection.execute(insert(table), rows)


def _delete(connection: Connection, changes: Changes, found: Sequence[Entry]) -> None:
    if found:
        connection.execute(delete(_entries).where(_entries.c.id.in_([entry.id for entry in found])))
    for entry in found:
        changes.entries[entry.id] = None


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
