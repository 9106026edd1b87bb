"""What a server acknowledged, to hold it to: after a crash it has all of that, and of the rest none by halves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from generated.spire.api.types import agent_pb2, entry_pb2


@dataclass
class Node:
    """An agent. `serials` are those of the SVIDs that may be its current one; None for `banned` is either."""

    serials: set[str]
    banned: bool | None = False


@dataclass
class Ledger:
    """Entries and nodes as acknowledged.

    `doubtful` has the entries whose last request was not answered, with each state that they may be in; None is none.
    """

    entries: dict[str, entry_pb2.Entry] = field(default_factory=dict[str, entry_pb2.Entry])
    doubtful: dict[str, tuple[entry_pb2.Entry | None, ...]] = field(
        default_factory=dict[str, tuple[entry_pb2.Entry | None, ...]]
    )
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])

    def doubt(self, entry_id: str, wanted: entry_pb2.Entry | None) -> None:
        """A request that is to make the entry `wanted` is under way."""
        self.doubtful[entry_id] = (self.entries.get(entry_id), wanted)

    def settle(self, entry_id: str, now: entry_pb2.Entry | None) -> None:
        """The entry is known to be as it is now."""
        self.doubtful.pop(entry_id, None)
        if now is None:
            self.entries.pop(entry_id, None)
        else:
            self.entries[entry_id] = now

    def check_entries(self, found: Iterable[entry_pb2.Entry]) -> None:
        """Hold the server's entries to what was acknowledged, and settle what was doubtful."""
        present = {entry.id: entry for entry in found}
        for entry_id, states in list(self.doubtful.items()):
            now = present.get(entry_id)
            assert any(_alike(now, state) for state in states), f"entry {entry_id} is half written: {now}"
            self.settle(entry_id, now)
        missing = self.entries.keys() - present.keys()
        assert not missing, f"acknowledged entries are lost: {sorted(missing)[:5]}"
        extra = present.keys() - self.entries.keys()
        assert not extra, f"entries that were deleted, or that nobody made: {sorted(extra)[:5]}"
        for entry_id, entry in self.entries.items():
            assert present[entry_id] == entry, f"entry {entry_id} is not as it was acknowledged"

    def check_nodes(self, found: Iterable[agent_pb2.Agent]) -> None:
        present: Mapping[str, agent_pb2.Agent] = {
            f"spiffe://{agent.id.trust_domain}{agent.id.path}": agent for agent in found
        }
        missing = self.nodes.keys() - present.keys()
        assert not missing, f"acknowledged attestations are lost: {sorted(missing)[:5]}"
        for spiffe_id, node in self.nodes.items():
            agent = present[spiffe_id]
            if node.banned is None:
                node.banned = agent.banned
            assert agent.banned == node.banned, f"{spiffe_id}: banned is {agent.banned}"
            if not agent.banned:
                assert agent.x509svid_serial_number in node.serials, f"{spiffe_id} has an SVID nobody was given"


def _alike(found: entry_pb2.Entry | None, state: entry_pb2.Entry | None) -> bool:
    """Whether an entry is in a state, apart from what the server numbers and dates itself."""
    if found is None or state is None:
        return found is state
    copies = [entry_pb2.Entry(), entry_pb2.Entry()]
    for copy, entry in zip(copies, (found, state), strict=True):
        copy.CopyFrom(entry)
        copy.ClearField("revision_number")
        copy.ClearField("created_at")
    return copies[0] == copies[1]
