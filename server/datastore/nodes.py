"""Attested nodes and their selectors: the statements. All run inside a transaction of the worker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, delete, func, insert, select, update

from identity.selectors import Selector
from operations.errors import AlreadyExists, InvalidArgument, NotFound, Refused
from server.datastore import entries, node_records, schema
from server.datastore.matching import matches
from server.datastore.paging import first_page, page, parts
from server.datastore.records import AttestedNode, Changes, Match, NodeField, NodeFilter, Page

_nodes = schema.nodes
_row = schema.nodes.c.seq
_selectors = schema.node_selectors

_SELECTORS = select(_selectors.c.spiffe_id, _selectors.c.type, _selectors.c.value).order_by(
    _selectors.c.spiffe_id, _selectors.c.position
)
_SELECTORS_OF_ONE = _SELECTORS.where(_selectors.c.spiffe_id == bindparam("spiffe_id"))

ALL_FIELDS: frozenset[NodeField] = frozenset(get_args(NodeField))


def create(connection: Connection, changes: Changes, node: AttestedNode) -> AttestedNode:
    """Store the node, and its selectors if it brings any. Raises AlreadyExists."""
    if not node.spiffe_id:
        raise InvalidArgument("invalid attested node: missing SPIFFE ID")
    if connection.scalar(select(_row).where(_nodes.c.spiffe_id == node.spiffe_id)) is not None:
        raise AlreadyExists(f"an agent with id {node.spiffe_id!r} exists already")
    values = {name: getattr(node, name) for name in ALL_FIELDS}
    connection.execute(
        insert(_nodes).values(spiffe_id=node.spiffe_id, attestation_type=node.attestation_type, **values)
    )
    if node.selectors:
        set_selectors(connection, changes, node.spiffe_id, node.selectors)
    return node


_CERTIFICATE: frozenset[NodeField] = frozenset(
    ("serial_number", "expires_at", "new_serial_number", "new_expires_at", "can_reattest")
)


EVICTED = "0"
"""In the place of a serial number: that of no certificate (RFC 5280, section 4.1.2.2), so none is the active one."""


def admit(connection: Connection, changes: Changes, node: AttestedNode, record: bytes | None = None) -> None:
    """Store a node that was attested, with its selectors, or give the one there was its new certificate.

    `record` is what its attestor remembers of it; None keeps the one that is there. Raises Refused for a banned node:
    its ban may have come while the certificate was signed.
    """
    old = fetch(connection, [node.spiffe_id]).get(node.spiffe_id)
    if old is None:
        create(connection, changes, replace(node, selectors=()))
    elif old.banned:
        raise Refused("agent is banned")
    else:
        change(connection, node, _CERTIFICATE)
    set_selectors(connection, changes, node.spiffe_id, node.selectors)
    if record is not None:
        node_records.put(connection, node.spiffe_id, record)


def evict(connection: Connection, spiffe_id: str) -> bool:
    """Take no certificate of the node any more until it attests again; whether there is such a node, not banned."""
    here = (_nodes.c.spiffe_id == spiffe_id) & (_nodes.c.serial_number != "")
    values = {"serial_number": EVICTED, "new_serial_number": "", "new_expires_at": 0}
    return bool(connection.execute(update(_nodes).where(here).values(**values)).rowcount)


def activate(connection: Connection, spiffe_id: str, serial_number: str) -> AttestedNode | None:
    """Make the certificate with that number, if the node was given it last, its only one; the node as it is then.

    What the caller knew may be old by now, so all is decided here: a ban stays a ban, a later renewal is kept.
    """
    node = fetch(connection, [spiffe_id]).get(spiffe_id)
    if node is None or node.banned or node.new_serial_number != serial_number:
        return node
    active = replace(
        node, serial_number=serial_number, expires_at=node.new_expires_at, new_serial_number="", new_expires_at=0
    )
    return change(connection, active, _CERTIFICATE)


def fetch(connection: Connection, spiffe_ids: Collection[str]) -> dict[str, AttestedNode]:
    """The nodes that exist, with their selectors, by SPIFFE ID."""
    return {node.spiffe_id: node for part in parts(list(spiffe_ids)) for node in _BY_ID.read(connection, ids=part)}


def change(connection: Connection, node: AttestedNode, fields: Collection[NodeField]) -> AttestedNode:
    """Replace the given fields of the node with that SPIFFE ID. Raises NotFound."""
    old = _existing(connection, node.spiffe_id)
    values = {name: getattr(node, name) for name in fields}
    if values:
        connection.execute(update(_nodes).where(_nodes.c.spiffe_id == node.spiffe_id).values(**values))
    return replace(old, **values)


def remove(connection: Connection, changes: Changes, spiffe_id: str) -> AttestedNode:
    """Delete the node, its selectors and the alias that its join token made, and return it. Raises NotFound."""
    found = _existing(connection, spiffe_id)
    _delete(connection, changes, [found])
    return found


def prune(
    connection: Connection, changes: Changes, expired_before: int, include_non_reattestable: bool, limit: int
) -> list[AttestedNode]:
    """Delete up to `limit` nodes that expired before that time, and return them; banned ones stay banned."""
    query = select(_row).where(_nodes.c.expires_at < expired_before, _nodes.c.serial_number != "")
    if not include_non_reattestable:
        query = query.where(_nodes.c.can_reattest.is_(True))
    found = _Reading(query.order_by(_row).limit(limit)).read(connection)
    _delete(connection, changes, found)
    return found


def listing(
    connection: Connection, wanted: NodeFilter, page_size: int, page_token: str, with_selectors: bool
) -> Page[AttestedNode]:
    """A page of the nodes that the filter selects, oldest first."""
    rows = page(select(_row).where(*_conditions(wanted)), _row, page_size, page_token)
    found = (
        _chosen(connection, rows, with_selectors)
        if wanted.selectors is not None
        else _Reading(rows).read_numbered(connection, with_selectors=with_selectors)
    )
    return first_page(found, page_size)


def count(connection: Connection, wanted: NodeFilter) -> int:
    return connection.scalar(select(func.count()).select_from(_nodes).where(*_conditions(wanted))) or 0


def set_selectors(connection: Connection, changes: Changes, spiffe_id: str, selectors: Sequence[Selector]) -> None:
    """Replace the selectors of a node, which need not exist yet."""
    distinct = tuple(dict.fromkeys(selectors))
    connection.execute(delete(_selectors).where(_selectors.c.spiffe_id == spiffe_id))
    if distinct:
        rows = [
            {"spiffe_id": spiffe_id, "position": position, "type": selector.type, "value": selector.value}
            for position, selector in enumerate(distinct)
        ]
        connection.execute(insert(_selectors), rows)
    changes.node_selectors[spiffe_id] = distinct


def get_selectors(connection: Connection, spiffe_id: str) -> tuple[Selector, ...]:
    return _grouped(connection, _SELECTORS_OF_ONE, {"spiffe_id": spiffe_id}).get(spiffe_id, ())


def all_selectors(connection: Connection) -> dict[str, tuple[Selector, ...]]:
    return _grouped(connection, _SELECTORS, {})


def _grouped(
    connection: Connection, query: Select[Any, Any, Any], parameters: Mapping[str, Any]
) -> dict[str, tuple[Selector, ...]]:
    """Selectors by SPIFFE ID."""
    rows: Sequence[Sequence[Any]] = connection.execute(query, parameters).all()
    found: defaultdict[str, list[Selector]] = defaultdict(list)
    for spiffe_id, kind, value in rows:
        found[spiffe_id].append(Selector(kind, value))
    return {spiffe_id: tuple(selectors) for spiffe_id, selectors in found.items()}


def _existing(connection: Connection, spiffe_id: str) -> AttestedNode:
    found = _BY_ID.read(connection, ids=[spiffe_id])
    if not found:
        raise NotFound("agent not found")
    return found[0]


class _Reading:
    """Reads the nodes whose row numbers `rows` selects, in the order of these numbers, in at most two statements."""

    def __init__(self, rows: Select[Any]) -> None:
        self._nodes = select(*_nodes.c).where(_row.in_(rows)).order_by(_row)
        ids = select(_nodes.c.spiffe_id).where(_row.in_(rows))
        self._selectors = _SELECTORS.where(_selectors.c.spiffe_id.in_(ids))

    def read(self, connection: Connection, **parameters: Any) -> list[AttestedNode]:
        """With their selectors."""
        return [node for _, node in self.read_numbered(connection, with_selectors=True, **parameters)]

    def read_numbered(
        self, connection: Connection, *, with_selectors: bool, **parameters: Any
    ) -> list[tuple[int, AttestedNode]]:
        """With the row number of each."""
        found = connection.execute(self._nodes, parameters).all()
        selectors = _grouped(connection, self._selectors, parameters) if found and with_selectors else {}
        return [
            (
                row.seq,
                AttestedNode(
                    spiffe_id=row.spiffe_id,
                    attestation_type=row.attestation_type,
                    serial_number=row.serial_number,
                    expires_at=row.expires_at,
                    new_serial_number=row.new_serial_number,
                    new_expires_at=row.new_expires_at,
                    can_reattest=row.can_reattest,
                    agent_version=row.agent_version,
                    selectors=selectors.get(row.spiffe_id, ()),
                ),
            )
            for row in found
        ]


_BY_ID = _Reading(select(_row).where(_nodes.c.spiffe_id.in_(bindparam("ids", expanding=True))))
_BY_NUMBER = _Reading(select(_row).where(_row.in_(bindparam("numbers", expanding=True))))


def _chosen(connection: Connection, rows: Select[Any], with_selectors: bool) -> list[tuple[int, AttestedNode]]:
    """The nodes that `rows` selects, with their numbers: the selection runs once, not once for each table."""
    numbers: Sequence[int] = connection.scalars(rows).all()
    return [
        found
        for part in parts(numbers)
        for found in _BY_NUMBER.read_numbered(connection, with_selectors=with_selectors, numbers=part)
    ]


def _conditions(wanted: NodeFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.attestation_type:
        conditions.append(_nodes.c.attestation_type == wanted.attestation_type)
    if wanted.banned is not None:
        conditions.append(_nodes.c.serial_number == "" if wanted.banned else _nodes.c.serial_number != "")
    if wanted.can_reattest is not None:
        conditions.append(_nodes.c.can_reattest.is_(wanted.can_reattest))
    if wanted.expires_before is not None:
        conditions.append(_nodes.c.expires_at < wanted.expires_before)
    if wanted.valid_at is not None:
        conditions.append(_nodes.c.expires_at >= wanted.valid_at)
    if wanted.spiffe_ids:
        conditions.append(_nodes.c.spiffe_id.in_(wanted.spiffe_ids))
    if wanted.selectors is not None:
        if not wanted.selectors.selectors:
            raise InvalidArgument("cannot list by empty selectors set")
        pairs = [(selector.type, selector.value) for selector in dict.fromkeys(wanted.selectors.selectors)]
        conditions.append(
            matches(
                _nodes.c.spiffe_id,
                _selectors.c.spiffe_id,
                [_selectors.c.type, _selectors.c.value],
                pairs,
                wanted.selectors.match,
            )
        )
    return conditions


def _delete(connection: Connection, changes: Changes, found: Sequence[AttestedNode]) -> None:
    ids = [node.spiffe_id for node in found]
    connection.execute(delete(_nodes).where(_nodes.c.spiffe_id.in_(ids)))
    connection.execute(delete(_selectors).where(_selectors.c.spiffe_id.in_(ids)))
    node_records.remove(connection, ids)
    for node in found:
        changes.node_selectors[node.spiffe_id] = ()
        if node.attestation_type == "join_token":
            entries.remove_where(connection, changes, _alias_of(node.spiffe_id))


def _alias_of(spiffe_id: str) -> ColumnElement[bool]:
    """The entry that attestation by join token makes: it selects the agent's own ID. Users' entries stay."""
    table = schema.entry_selectors.c
    alias = matches(
        schema.entries.c.seq, table.entry, [table.type, table.value], [("spiffe_id", spiffe_id)], Match.EXACT
    )
    return and_(schema.entries.c.parent_id == spiffe_id, alias)
