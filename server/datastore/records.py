"""What the datastore keeps: plain values, free of SQL and of protobuf.

Times are whole seconds since the Unix epoch; 0 means "none". SPIFFE IDs are their full text
(`spiffe://td/path`), trust domains are bare names, as in the SPIRE API types.

Structs, because a start reads every entry: one is made in a tenth of a frozen dataclass's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, Literal, TypeVar

from msgspec import Struct

from identity.selectors import Selector

T = TypeVar("T")

EntryField = Literal[
    "spiffe_id",
    "parent_id",
    "selectors",
    "x509_svid_ttl",
    "jwt_svid_ttl",
    "federates_with",
    "hint",
    "admin",
    "downstream",
    "expires_at",
    "dns_names",
    "store_svid",
    "additional_attributes",
]

NodeField = Literal[
    "serial_number",
    "expires_at",
    "new_serial_number",
    "new_expires_at",
    "can_reattest",
    "agent_version",
]


class Entry(Struct, frozen=True, kw_only=True):
    """A registration entry. `id`, `revision_number` and `created_at` are the store's to give; TTLs are seconds."""

    id: str = ""
    spiffe_id: str
    parent_id: str
    selectors: tuple[Selector, ...]
    x509_svid_ttl: int = 0
    jwt_svid_ttl: int = 0
    federates_with: tuple[str, ...] = ()
    hint: str = ""
    admin: bool = False
    downstream: bool = False
    expires_at: int = 0
    dns_names: tuple[str, ...] = ()
    revision_number: int = 0
    store_svid: bool = False
    created_at: int = 0
    jwt_svid_include_jti: bool = False
    disable_x509_svid_prefetch: bool = False


class AttestedNode(Struct, frozen=True, kw_only=True):
    """An agent. An empty `serial_number` means that it is banned; `new_*` is an SVID it has not used yet."""

    spiffe_id: str
    attestation_type: str
    serial_number: str
    expires_at: int
    new_serial_number: str = ""
    new_expires_at: int = 0
    can_reattest: bool = False
    agent_version: str = ""
    selectors: tuple[Selector, ...] = ()

    @property
    def banned(self) -> bool:
        return not self.serial_number


class JoinToken(Struct, frozen=True):
    token: str
    expires_at: int


class Match(Enum):
    """How a filter's set F must relate to a record's set R."""

    EXACT = "exact"  # R = F
    SUBSET = "subset"  # R ⊆ F, and they share a member
    SUPERSET = "superset"  # R ⊇ F
    ANY = "any"  # they share a member


class BySelectors(Struct, frozen=True):
    selectors: tuple[Selector, ...]
    match: Match


class ByFederatesWith(Struct, frozen=True):
    trust_domains: tuple[str, ...]
    match: Match


class EntryFilter(Struct, frozen=True, kw_only=True):
    """All that is given must hold."""

    spiffe_id: str = ""
    parent_id: str = ""
    selectors: BySelectors | None = None
    federates_with: ByFederatesWith | None = None
    hint: str = ""
    downstream: bool | None = None


class NodeFilter(Struct, frozen=True, kw_only=True):
    """All that is given must hold. `expires_before` and `valid_at` are Unix seconds."""

    attestation_type: str = ""
    banned: bool | None = None
    can_reattest: bool | None = None
    expires_before: int | None = None
    valid_at: int | None = None
    selectors: BySelectors | None = None
    spiffe_ids: tuple[str, ...] = ()


class Page(Struct, Generic[T], frozen=True):
    """Some records in the order of their creation; `next_token` is empty when there are no more."""

    items: tuple[T, ...]
    next_token: str = ""


class DeleteMode(Enum):
    """What becomes of the entries that federate with a bundle that is deleted."""

    RESTRICT = "restrict"  # there must be none
    DELETE = "delete"
    DISSOCIATE = "dissociate"


class Changes(Struct):
    """What one write changed; None stands for a record that is gone."""

    entries: dict[str, Entry | None] = {}
    node_selectors: dict[str, tuple[Selector, ...]] = {}
    bundles: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.entries or self.node_selectors or self.bundles)


class Snapshot(Struct, frozen=True):
    """All that decides who gets which entry, as of one moment."""

    entries: tuple[Entry, ...]
    node_selectors: Mapping[str, tuple[Selector, ...]]
