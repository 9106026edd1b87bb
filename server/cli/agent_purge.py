"""`spire-server agent purge`: evicts agents whose SVID expired long ago and that can attest again by themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf import empty_pb2

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.types import agent_pb2 as types
from generated.spire.api.types import spiffeid_pb2
from identity.spiffeid import SpiffeId
from operations import output
from operations.errors import SpireError, TemporarilyUnavailable
from operations.flags import FlagSet, Run
from server.cli.client import calling
from transport.client import Channel

SERVICE = "/spire.api.server.agent.v1.Agent"


@dataclass(frozen=True, slots=True)
class Purged:
    """An expired agent. `error` says why it is still there; it is empty in a dry run too."""

    agent_id: str
    deleted: bool = False
    error: str = ""

    def to_object(self) -> dict[str, object]:
        shown: dict[str, object] = {"agent_id": self.agent_id, "deleted": self.deleted}
        return shown | {"error": self.error} if self.error else shown


def purge(flags: FlagSet) -> Run:
    expired_for = flags.duration(
        "expiredFor",
        timedelta(days=30),
        "Purge agents whose SVID expired longer ago than this, e.g. 12h30m",
        placeholder="duration",
    )
    dry_run = flags.boolean("dryRun", "Show which agents would go, and evict none")
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        before = time.time() - expired_for.value.total_seconds()
        expired = [agent for agent in await _candidates(server) if agent.x509svid_expires_at < before]
        if dry_run.value:
            purged = [Purged(str(SpiffeId.from_proto(agent.id))) for agent in expired]
        else:
            purged = [await _evict(server, agent.id) for agent in expired]
        if form.value == output.JSON:
            output.print_object({"expired_agents": [agent.to_object() for agent in purged]})
        else:
            _print(purged, dry_run=dry_run.value)

    return calling(flags, act)


async def _candidates(server: Channel) -> Sequence[types.Agent]:
    request = agent_pb2.ListAgentsRequest(output_mask=types.AgentMask(x509svid_expires_at=True))
    request.filter.by_can_reattest.value = True
    try:
        return (await server.unary(f"{SERVICE}/ListAgents", request, agent_pb2.ListAgentsResponse)).agents
    except SpireError as error:
        raise TemporarilyUnavailable(f"failed to list agents: {error}") from error


async def _evict(server: Channel, agent_id: spiffeid_pb2.SPIFFEID) -> Purged:
    shown = str(SpiffeId.from_proto(agent_id))
    try:
        await server.unary(f"{SERVICE}/DeleteAgent", agent_pb2.DeleteAgentRequest(id=agent_id), empty_pb2.Empty)
    except SpireError as error:
        return Purged(shown, error=str(error))
    return Purged(shown, deleted=True)


def _print(purged: Sequence[Purged], *, dry_run: bool) -> None:
    if not purged:
        print("No agents to purge.")
        return
    print(f"Found {len(purged)} expired {'agent' if len(purged) == 1 else 'agents'}\n")
    if dry_run:
        print("\nAgents that can be purged:")
        for agent in purged:
            print(f"SPIFFE ID         : {agent.agent_id}")
        return
    gone = [agent for agent in purged if agent.deleted]
    kept = [agent for agent in purged if not agent.deleted]
    if gone:
        print("Agents purged:")
    for agent in gone:
        print(f"SPIFFE ID         : {agent.agent_id}")
    if kept:
        print("Agents not purged:")
    for agent in kept:
        print(f"SPIFFE ID         : {agent.agent_id}")
        print(f"Error             : {agent.error}")
