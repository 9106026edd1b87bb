"""Trust bundles: the statements. All run inside a transaction of the worker.

A bundle is one serialised types.Bundle in one row: it is always read and written whole, and merged in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Literal, TypeVar, get_args

from sqlalchemy import Connection, delete, func, insert, select, update

from generated.spire.api.types import bundle_pb2
from identity.bundles import Bundle, JwtAuthority, WitAuthority
from identity.spiffeid import TrustDomain
from operations.errors import AlreadyExists, InvalidArgument, NotFound, Refused
from operations.quoting import quote
from server.datastore import entries, schema
from server.datastore.records import Changes, DeleteMode, Page

Key = TypeVar("Key", JwtAuthority, WitAuthority)
BundleField = Literal["x509_authorities", "jwt_authorities", "refresh_hint", "sequence_number", "wit_authorities"]

ALL_FIELDS: frozenset[BundleField] = frozenset(get_args(BundleField))

_bundles = schema.bundles
_federations = schema.entry_federations


def fetch(connection: Connection, trust_domain: TrustDomain, *, for_update: bool = False) -> Bundle | None:
    query = select(_bundles.c.data).where(_bundles.c.trust_domain == trust_domain.name)
    # Ignored by SQLite, where the writer is alone anyway.
    data = connection.scalar(query.with_for_update() if for_update else query)
    return _decode(data) if data is not None else None


def create(connection: Connection, changes: Changes, bundle: Bundle) -> Bundle:
    """Store a bundle where there is none. Raises AlreadyExists."""
    if fetch(connection, bundle.trust_domain) is not None:
        raise AlreadyExists("bundle already exists")
    return put(connection, changes, bundle)


def put(connection: Connection, changes: Changes, bundle: Bundle) -> Bundle:
    """Store the bundle in the place of the one there was, if any, with its sequence number as given."""
    name = bundle.trust_domain.name
    data = bundle.to_proto().SerializeToString(deterministic=True)
    changed = connection.execute(update(_bundles).where(_bundles.c.trust_domain == name).values(data=data))
    if not changed.rowcount:
        connection.execute(insert(_bundles).values(trust_domain=name, data=data))
    changes.bundles.add(name)
    return bundle


def replace_known(connection: Connection, changes: Changes, known: Bundle | None, bundle: Bundle) -> bool:
    """Store the bundle if what there is is `known`, None for none; whether it was."""
    if fetch(connection, bundle.trust_domain, for_update=True) != known:
        return False
    put(connection, changes, bundle)
    return True


def append(connection: Connection, changes: Changes, bundle: Bundle) -> Bundle:
    """Add the authorities that are not there yet; the sequence number goes up by one if there are any.

    A key that is there already stays, with the later one of its ends.
    """
    old = fetch(connection, bundle.trust_domain, for_update=True)
    if old is None:
        return put(connection, changes, bundle)
    ders = {authority.der for authority in old.x509_authorities}
    new = replace(
        old,
        x509_authorities=old.x509_authorities + tuple(a for a in bundle.x509_authorities if a.der not in ders),
        jwt_authorities=_joined(old.jwt_authorities, bundle.jwt_authorities),
        wit_authorities=_joined(old.wit_authorities, bundle.wit_authorities),
    )
    return _advance(connection, changes, old, new)


def change(connection: Connection, changes: Changes, bundle: Bundle, fields: Collection[BundleField]) -> Bundle:
    """Replace these fields of the trust domain's bundle, its number only if it is among them. Raises NotFound."""
    old = fetch(connection, bundle.trust_domain, for_update=True)
    if old is None:
        raise NotFound("bundle not found")
    return put(connection, changes, replace(old, **{name: getattr(bundle, name) for name in fields}))


def edit(
    connection: Connection, changes: Changes, trust_domain: TrustDomain, change: Callable[[Bundle], Bundle]
) -> Bundle:
    """Replace the bundle by `change(bundle)`; the sequence number goes up by one if it differs. Raises NotFound."""
    old = fetch(connection, trust_domain, for_update=True)
    if old is None:
        raise NotFound("bundle not found")
    return _advance(connection, changes, old, change(old))


def remove(connection: Connection, changes: Changes, trust_domain: TrustDomain, mode: DeleteMode) -> None:
    """Delete the bundle. Raises NotFound, and Refused where entries federate with it and the mode is RESTRICT."""
    name = trust_domain.name
    federating = select(_federations.c.entry).where(_federations.c.trust_domain == name)
    if fetch(connection, trust_domain, for_update=True) is None:
        raise NotFound("bundle not found")
    number = connection.scalar(select(func.count()).select_from(federating.subquery())) or 0
    if number and mode is DeleteMode.RESTRICT:
        raise Refused(f"datastore-sql: cannot delete bundle; federated with {number} registration entries")
    if mode is DeleteMode.DELETE:
        entries.remove_where(connection, changes, schema.entries.c.seq.in_(federating))
    elif number:
        entries.dissociate(connection, changes, name)
    connection.execute(delete(_bundles).where(_bundles.c.trust_domain == name))
    changes.bundles.add(name)


def listing(
    connection: Connection, page_size: int, page_token: str, without: TrustDomain | None = None
) -> Page[Bundle]:
    """A page of the bundles, by trust domain; the token is the last trust domain of the page before.

    `without` leaves one trust domain out. Raises InvalidArgument for a token that no page gave.
    """
    query = select(_bundles.c.trust_domain, _bundles.c.data).order_by(_bundles.c.trust_domain)
    if without is not None:
        query = query.where(_bundles.c.trust_domain != without.name)
    if page_token:
        query = query.where(_bundles.c.trust_domain > _parse_token(page_token))
    rows = connection.execute(query.limit(page_size + 1) if page_size else query).all()
    more = bool(page_size) and len(rows) > page_size
    shown = rows[:page_size] if more else rows
    return Page(tuple(_decode(row.data) for row in shown), shown[-1].trust_domain if more else "")


def names(connection: Connection) -> list[str]:
    """The trust domains that have one."""
    return list(connection.scalars(select(_bundles.c.trust_domain)))


def count(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(_bundles)) or 0


def _joined(old: Sequence[Key], more: Sequence[Key]) -> tuple[Key, ...]:
    found = {authority.key_id: authority for authority in old}
    for authority in more:
        known = found.setdefault(authority.key_id, authority)
        if known.public_key == authority.public_key and 0 < known.expires_at < authority.expires_at:
            found[known.key_id] = replace(known, expires_at=authority.expires_at)
    return tuple(found.values())


def _parse_token(token: str) -> str:
    try:
        return TrustDomain(token).name
    except InvalidArgument as error:
        raise InvalidArgument(f"could not parse token {quote(token[:64])}") from error


def _advance(connection: Connection, changes: Changes, old: Bundle, new: Bundle) -> Bundle:
    if replace(new, sequence_number=old.sequence_number) == old:
        return old
    return put(connection, changes, replace(new, sequence_number=old.sequence_number + 1))


def _decode(data: bytes) -> Bundle:
    return Bundle.from_proto(bundle_pb2.Bundle.FromString(data))
