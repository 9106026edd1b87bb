"""Registration entries, as far as an agent needs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from generated.spire.api.types import entry_pb2
from identity.selectors import Selector
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument

MASK = entry_pb2.EntryMask(
    spiffe_id=True,
    selectors=True,
    federates_with=True,
    admin=True,
    downstream=True,
    revision_number=True,
    store_svid=True,
    hint=True,
    additional_attributes=True,
    created_at=True,
)
"""The fields that the agent asks the server for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that this agent is authorized for. `federates_with` names trust domains without the scheme."""

    id: str
    spiffe_id: str
    selectors: frozenset[Selector]
    federates_with: tuple[str, ...] = ()
    revision: int = 0
    created_at: int = 0
    hint: str = ""
    store_svid: bool = False
    prefetch: bool = True
    include_jti: bool = False
    admin: bool = False
    downstream: bool = False

    @property
    def may_be_delegated(self) -> bool:
        """Whether others than the workload itself may be given its identity: never one that commands servers."""
        return not (self.admin or self.downstream)

    @classmethod
    def from_proto(cls, message: entry_pb2.Entry) -> Entry:
        """Raises InvalidArgument for an entry that no server should send."""
        if not message.id:
            raise InvalidArgument("missing entry ID")
        if not message.selectors:
            raise InvalidArgument("selector list is empty")
        attributes = message.additional_attributes
        return cls(
            id=message.id,
            spiffe_id=str(SpiffeId.from_proto(message.spiffe_id)),
            selectors=frozenset(Selector.of(each.type, each.value) for each in message.selectors),
            federates_with=tuple(TrustDomain.parse(name).name for name in message.federates_with),
            revision=message.revision_number,
            created_at=message.created_at,
            hint=message.hint,
            store_svid=message.store_svid,
            prefetch=not attributes.disable_x509_svid_prefetch,
            include_jti=attributes.jwt_svid_include_jti,
            admin=message.admin,
            downstream=message.downstream,
        )


def without_duplicate_hints(entries: Iterable[Entry]) -> list[Entry]:
    """Of entries with the same hint only the oldest stays; the smaller id decides between equals."""
    entries = list(entries)
    oldest: dict[str, Entry] = {}
    for entry in entries:
        known = oldest.setdefault(entry.hint, entry)
        if (entry.created_at, entry.id) < (known.created_at, known.id):
            oldest[entry.hint] = entry
    return [entry for entry in entries if not entry.hint or oldest[entry.hint] is entry]
