"""`spire-server agent`: attested agents."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import empty_pb2

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.types import agent_pb2 as types
from generated.spire.api.types import spiffeid_pb2
from identity.spiffeid import SpiffeId
from operations import output, times
from operations.errors import InvalidArgument
from operations.flags import Flag, FlagSet, Run
from server.cli import values
from server.cli.agent_filter import AgentFilter
from server.cli.client import calling
from transport.client import Channel

SERVICE = "/spire.api.server.agent.v1.Agent"
PAGE = 1000


def list_all(flags: FlagSet) -> Run:
    wanted = AgentFilter(flags)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = agent_pb2.ListAgentsRequest(filter=wanted.to_list(), page_size=PAGE)
        found = agent_pb2.ListAgentsResponse()
        while True:
            page = await server.unary(f"{SERVICE}/ListAgents", request, agent_pb2.ListAgentsResponse)
            found.agents.extend(page.agents)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        output.print_result(form.value, found, pretty=lambda: _print_list(found.agents))

    return calling(flags, act)


def count(flags: FlagSet) -> Run:
    wanted = AgentFilter(flags)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = agent_pb2.CountAgentsRequest(filter=wanted.to_count())
        found = await server.unary(f"{SERVICE}/CountAgents", request, agent_pb2.CountAgentsResponse)
        text = f"{found.count} attested {_agents(found.count)}"
        output.print_result(form.value, found, pretty=lambda: print(text))

    return calling(flags, act)


def show(flags: FlagSet) -> Run:
    spiffe_id = flags.string("spiffeID", "", "SPIFFE ID of the agent, as agent list prints it; required")
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = agent_pb2.GetAgentRequest(id=_required(spiffe_id))
        agent = await server.unary(f"{SERVICE}/GetAgent", request, types.Agent)
        output.print_result(form.value, agent, pretty=lambda: _print_one(agent))

    return calling(flags, act)


def evict(flags: FlagSet) -> Run:
    spiffe_id = flags.string("spiffeID", "", "SPIFFE ID of the agent to forget, as agent list prints it; required")
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = agent_pb2.DeleteAgentRequest(id=_required(spiffe_id))
        done = await server.unary(f"{SERVICE}/DeleteAgent", request, empty_pb2.Empty)
        output.print_result(form.value, done, pretty=lambda: print("Agent evicted successfully"))

    return calling(flags, act)


def ban(flags: FlagSet) -> Run:
    spiffe_id = flags.string("spiffeID", "", "SPIFFE ID of the agent to shut out, as agent list prints it; required")
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = agent_pb2.BanAgentRequest(id=_required(spiffe_id))
        done = await server.unary(f"{SERVICE}/BanAgent", request, empty_pb2.Empty)
        output.print_result(form.value, done, pretty=lambda: print("Agent banned successfully"))

    return calling(flags, act)


def _required(spiffe_id: Flag[str]) -> spiffeid_pb2.SPIFFEID:
    if not spiffe_id.value:
        raise InvalidArgument("a SPIFFE ID is required")
    return values.spiffe_id(spiffe_id.value)


def _agents(number: int) -> str:
    return "agent" if number == 1 else "agents"


def _print_list(agents: Sequence[types.Agent]) -> None:
    if not agents:
        print("No attested agents found")
        return
    print(f"Found {len(agents)} attested {_agents(len(agents))}:\n")
    for agent in agents:
        _print_agent(agent)


def _print_one(agent: types.Agent) -> None:
    print("Found an attested agent given its SPIFFE ID\n")
    _print_agent(agent)
    for selector in agent.selectors:
        print(f"Selectors         : {selector.type}:{selector.value}")


def _print_agent(agent: types.Agent) -> None:
    print(f"SPIFFE ID         : {SpiffeId.from_proto(agent.id)}")
    print(f"Attestation type  : {agent.attestation_type}")
    print(f"Expiration time   : {times.text(agent.x509svid_expires_at, None)}")
    if agent.banned:  # a banned agent has no serial number
        print("Banned            : true")
    else:
        print(f"Serial number     : {agent.x509svid_serial_number}")
    print(f"Can re-attest     : {str(agent.can_reattest).lower()}")
    if agent.agent_version:
        print(f"Agent version     : {agent.agent_version}")
    print()
