"""Operators and agents who do everything at the wrong moment: whatever they do, all answers go on telling one story."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest
from google.protobuf import empty_pb2
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.entry.v1 import entry_pb2 as api
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import agent_pb2 as agent_types
from generated.spire.api.types import entry_pb2, jointoken_pb2, spiffeid_pb2
from tests.simulators.house import (
    AGENT,
    ENTRY,
    PATIENCE,
    SVID,
    AgentClient,
    House,
    attest,
    csr,
    new_entry,
    running,
    spiffe_id,
)
from tests.simulators.pki import ec_key
from transport.status import Code, RpcError

EXAMPLES = 40
LONGEST = 15
REFUSALS = (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.PERMISSION_DENIED)
EXISTS_ALREADY = "failed to create token: this join token exists already"
"""INTERNAL, as SPIRE has it."""

TOKENS = ("t1", "t2", "t3")
IDS = ("e1", "e2", "e3", "e4", "")
_AGENTS = [f"/spire/agent/join_token/{token}" for token in TOKENS]
PARENTS = (*_AGENTS, "/a", "/b", "/c", "/spire/server")
PATHS = ("/a", "/b", "/c")
FIELDS = tuple(field.name for field in entry_pb2.EntryMask.DESCRIPTOR.fields)


class Crowd:
    """A server, and the agents that it has let in so far."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.agents: dict[str, AgentClient] = {}

    async def tell(self, path: str, request: Message, response: type[Message], agent: str = "") -> Message | None:
        """The answer, or None for a refusal that is in order."""
        channel = self.agents[agent].channel if agent else self.house.local
        try:
            return await channel.unary(path, request, response, timeout=PATIENCE)
        except RpcError as error:
            if error.code in REFUSALS or error.message == EXISTS_ALREADY:
                return None
            raise

    async def make_token(self, token: str, alias: str) -> None:
        request = agent_pb2.CreateJoinTokenRequest(ttl=600, token=token)
        if alias:
            request.agent_id.CopyFrom(spiffe_id(alias))
        await self.tell(AGENT + "CreateJoinToken", request, jointoken_pb2.JoinToken)

    async def attest(self, token: str) -> None:
        key = ec_key()
        try:
            response = await attest(await self.house.remote(), "join_token", token.encode(), csr(key))
        except RpcError as error:
            if error.code not in REFUSALS:
                raise
        else:
            self.agents[token] = await self.house.as_agent(response.result.svid, key)

    async def renew(self, token: str) -> None:
        if token not in self.agents:
            return
        try:
            self.agents[token] = await self.agents[token].renew()
        except RpcError as error:
            if error.code not in REFUSALS:
                raise

    async def entries(self) -> list[entry_pb2.Entry]:
        response = await self.house.local.unary(
            ENTRY + "ListEntries", api.ListEntriesRequest(), api.ListEntriesResponse
        )
        return list(response.entries)

    async def check(self, *, in_order: bool) -> None:
        """All answers about entries agree, also those to agents.

        Unless all was done in order, an agent may hold another SVID than the one that it was given last.
        """
        entries = await self.entries()
        assert await self._paged(2) == entries
        count = await self.house.local.unary(
            ENTRY + "CountEntries", api.CountEntriesRequest(), api.CountEntriesResponse
        )
        assert count.count == len(entries)
        shown = await self.house.local.unary(
            AGENT + "ListAgents", agent_pb2.ListAgentsRequest(), agent_pb2.ListAgentsResponse
        )
        active = {each.id.path for each in shown.agents if not each.banned}
        for token, agent in self.agents.items():
            if f"/spire/agent/join_token/{token}" not in active:
                assert await self._authorized(agent) is None
            elif (authorized := await self._authorized(agent)) is not None:
                assert authorized == below(agent.id, entries)
                assert await self._synced(agent) == authorized
            else:
                assert not in_order

    async def _paged(self, size: int) -> list[entry_pb2.Entry]:
        found: list[entry_pb2.Entry] = []
        request = api.ListEntriesRequest(page_size=size)
        while True:
            page = await self.house.local.unary(ENTRY + "ListEntries", request, api.ListEntriesResponse)
            found += page.entries
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    @staticmethod
    async def _authorized(agent: AgentClient) -> dict[str, entry_pb2.Entry] | None:
        """The agent's entries by id, None where it is no agent any more."""
        try:
            return {entry.id: entry for entry in await agent.entries()}
        except RpcError as error:
            if error.code is Code.PERMISSION_DENIED:
                return None
            raise

    @staticmethod
    async def _synced(agent: AgentClient) -> dict[str, entry_pb2.Entry]:
        async with agent.channel.bidi(
            ENTRY + "SyncAuthorizedEntries", api.SyncAuthorizedEntriesResponse, timeout=PATIENCE
        ) as stream:
            await stream.send(api.SyncAuthorizedEntriesRequest())
            response = await stream.recv()
        assert response is not None
        return {entry.id: entry for entry in response.entries}


def below(agent: spiffeid_pb2.SPIFFEID, entries: list[entry_pb2.Entry]) -> dict[str, entry_pb2.Entry]:
    """The entries that the agent may have, by the definition. Agents with a join token match no alias."""
    children: defaultdict[str, list[entry_pb2.Entry]] = defaultdict(list)
    for entry in entries:
        children[entry.parent_id.path].append(entry)
    found: dict[str, entry_pb2.Entry] = {}
    parents = [agent.path]
    for parent in parents:
        for entry in children[parent]:
            if entry.spiffe_id.path not in parents:
                parents.append(entry.spiffe_id.path)
            found[entry.id] = entry
    return found


Step = Callable[[Crowd], Awaitable[object]]
"""Something that somebody does."""


@st.composite
def entry_messages(draw: st.DrawFn) -> entry_pb2.Entry:
    """Few of everything, so that they meet."""
    made = new_entry(
        draw(st.sampled_from(PATHS)),
        spiffe_id(draw(st.sampled_from(PARENTS))),
        *draw(st.lists(st.sampled_from(("a:1", "a:2", "b:1")), min_size=1, max_size=3)),
    )
    made.id = draw(st.sampled_from(IDS))
    made.admin = draw(st.booleans())
    made.store_svid = draw(st.booleans())
    made.x509_svid_ttl = draw(st.sampled_from((0, 60, -1)))
    made.expires_at = draw(st.sampled_from((0, 4102444800)))
    return made


def creating(entries: list[entry_pb2.Entry]) -> Step:
    request = api.BatchCreateEntryRequest(entries=entries)
    return lambda crowd: crowd.tell(ENTRY + "BatchCreateEntry", request, api.BatchCreateEntryResponse)


def updating(entries: list[entry_pb2.Entry], fields: list[str]) -> Step:
    mask = entry_pb2.EntryMask(**dict.fromkeys(fields, True))
    request = api.BatchUpdateEntryRequest(entries=entries, input_mask=mask)
    return lambda crowd: crowd.tell(ENTRY + "BatchUpdateEntry", request, api.BatchUpdateEntryResponse)


def deleting(ids: list[str]) -> Step:
    request = api.BatchDeleteEntryRequest(ids=ids)
    return lambda crowd: crowd.tell(ENTRY + "BatchDeleteEntry", request, api.BatchDeleteEntryResponse)


def shutting_out(token: str, method: str) -> Step:
    agent_id = spiffe_id(f"/spire/agent/join_token/{token}")
    request = (
        agent_pb2.BanAgentRequest(id=agent_id) if method == "BanAgent" else agent_pb2.DeleteAgentRequest(id=agent_id)
    )
    return lambda crowd: crowd.tell(AGENT + method, request, empty_pb2.Empty)


def asking(token: str, entry_id: str) -> Step:
    """Ask for an SVID that may be somebody else's by now."""
    params = svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=csr(ec_key()))
    request = svid_pb2.BatchNewX509SVIDRequest(params=[params, params])

    async def ask(crowd: Crowd) -> None:
        if token in crowd.agents:
            await crowd.tell(SVID + "BatchNewX509SVID", request, svid_pb2.BatchNewX509SVIDResponse, agent=token)

    return ask


def showing(token: str) -> Step:
    request = agent_pb2.GetAgentRequest(id=spiffe_id(f"/spire/agent/join_token/{token}"))
    return lambda crowd: crowd.tell(AGENT + "GetAgent", request, agent_types.Agent)


def making_token(token: str, alias: str) -> Step:
    return lambda crowd: crowd.make_token(token, alias)


def attesting(token: str) -> Step:
    return lambda crowd: crowd.attest(token)


def renewing(token: str) -> Step:
    return lambda crowd: crowd.renew(token)


tokens = st.sampled_from(TOKENS)
batches = st.lists(entry_messages(), max_size=4)
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(creating, batches),
    st.builds(updating, batches, st.lists(st.sampled_from(FIELDS), max_size=4)),
    st.builds(deleting, st.lists(st.sampled_from(IDS), max_size=3)),
    st.builds(making_token, tokens, st.sampled_from(("", *PATHS))),
    st.builds(attesting, tokens),
    st.builds(renewing, tokens),
    st.builds(shutting_out, tokens, st.sampled_from(("BanAgent", "DeleteAgent"))),
    st.builds(asking, tokens, st.sampled_from(IDS)),
    st.builds(showing, tokens),
)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Crowd]]:
    """One server for all: what a sequence leaves behind is where the next one starts."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        house = runner.run(stack.enter_async_context(running(tmp_path_factory.mktemp("crowd"))))
        try:
            yield runner, Crowd(house)
        finally:
            runner.run(stack.aclose())


def test_answers_agree_whatever_was_done(crowd: tuple[asyncio.Runner, Crowd]) -> None:
    runner, everybody = crowd

    async def act(sequence: list[Step], *, at_once: bool) -> None:
        if at_once:
            await asyncio.gather(*(step(everybody) for step in sequence))
        else:
            for step in sequence:
                await step(everybody)
        await everybody.check(in_order=not at_once)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
        database=None,
    )
    @given(st.lists(steps, max_size=LONGEST), st.booleans())
    def send(sequence: list[Step], at_once: bool) -> None:
        runner.run(act(sequence, at_once=at_once))

    send()
