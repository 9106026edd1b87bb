"""A server that answers too much, too slowly, by halves or nonsense: the agent keeps what it has, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from generated.spiffe.workload import workload_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_rpc_pb2
from generated.spire.api.server.entry.v1 import entry_pb2 as entry_rpc_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2, entry_pb2, jwtsvid_pb2, selector_pb2, spiffeid_pb2
from tests.simulators.fake_server import FakeServer
from tests.simulators.in_process_agent import Home, RunningAgent, until
from transport.peer import Peer
from transport.router import Context

X509 = ("FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse)
JWT = ("FetchJWTSVID", workload_pb2.JWTSVIDRequest(audience=["billing"]), workload_pb2.JWTSVIDResponse)

Sync = entry_rpc_pb2.SyncAuthorizedEntriesResponse
Revision = entry_rpc_pb2.EntryRevision
Answers = Callable[["WrongServer", AsyncIterator[object]], AsyncIterator[Sync]]


@dataclass
class WrongServer(FakeServer):
    """`answers` take the place of the synchronisation's, the others that of the method in their name."""

    answers: Answers | None = None
    wrong_entries: entry_rpc_pb2.GetAuthorizedEntriesResponse | None = None
    wrong_svids: Callable[[svid_pb2.BatchNewX509SVIDResponse], None] | None = None
    wrong_jwt: jwtsvid_pb2.JWTSVID | None = None
    silent: bool = False
    broken_syncs: int = 0

    async def _sync_entries(
        self, requests: AsyncIterator[entry_rpc_pb2.SyncAuthorizedEntriesRequest], peer: Peer, context: Context
    ) -> AsyncIterator[Sync]:
        if self.answers is None:
            async for response in super()._sync_entries(requests, peer, context):
                yield response
            return
        self.broken_syncs += 1
        await anext(requests)
        async for response in self.answers(self, requests):
            yield response

    async def _get_entries(
        self, request: entry_rpc_pb2.GetAuthorizedEntriesRequest, peer: Peer, context: Context
    ) -> entry_rpc_pb2.GetAuthorizedEntriesResponse:
        if self.wrong_entries is not None:
            self.broken_syncs += 1
            return self.wrong_entries
        return await super()._get_entries(request, peer, context)

    async def _get_bundle(
        self, request: bundle_rpc_pb2.GetBundleRequest, peer: Peer, context: Context
    ) -> bundle_pb2.Bundle:
        if self.silent:
            await asyncio.Event().wait()
        return await super()._get_bundle(request, peer, context)

    async def _new_x509_svids(
        self, request: svid_pb2.BatchNewX509SVIDRequest, peer: Peer, context: Context
    ) -> svid_pb2.BatchNewX509SVIDResponse:
        response = await super()._new_x509_svids(request, peer, context)
        if self.wrong_svids is not None:
            self.wrong_svids(response)
        return response

    async def _new_jwt_svid(
        self, request: svid_pb2.NewJWTSVIDRequest, peer: Peer, context: Context
    ) -> svid_pb2.NewJWTSVIDResponse:
        response = await super()._new_jwt_svid(request, peer, context)
        return response if self.wrong_jwt is None else svid_pb2.NewJWTSVIDResponse(svid=self.wrong_jwt)


@pytest.fixture
async def server() -> AsyncGenerator[WrongServer]:
    made = WrongServer()
    made.add_entry("a")
    async with made.running():
        yield made


@pytest.fixture
def home(tmp_path: Path, server: WrongServer) -> Home:
    return Home(tmp_path, server)


@pytest.fixture
async def agent(home: Home, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[RunningAgent]:
    monkeypatch.setattr("agent.server_client.TIMEOUT", 2.0)
    async with home.running() as running:
        await running.first(*X509)
        yield running


async def too_many_revisions(server: WrongServer, requests: object) -> AsyncIterator[Sync]:
    del server, requests
    for page in range(1000):
        yield Sync(entry_revisions=[Revision(id=f"{page}-{each}") for each in range(10)], more=True)


async def too_many_at_once(server: WrongServer, requests: object) -> AsyncIterator[Sync]:
    del requests
    yield Sync(entries=[_copy(server, f"e{each}") for each in range(200)])


async def pages_without_end(server: WrongServer, requests: AsyncIterator[object]) -> AsyncIterator[Sync]:
    yield Sync(entry_revisions=[Revision(id=each, revision_number=9) for each in ("a", "b", "c")])
    await anext(requests)
    while True:
        yield Sync(entries=[_copy(server, "a", selectors=2000)], more=True)


async def huge_message(server: WrongServer, requests: object) -> AsyncIterator[Sync]:
    del requests
    yield Sync(entries=[_copy(server, "a", selectors=400_000)])


async def silence(server: WrongServer, requests: object) -> AsyncIterator[Sync]:
    del server, requests
    await asyncio.Event().wait()
    yield Sync()


async def drip(server: WrongServer, requests: object) -> AsyncIterator[Sync]:
    del server, requests
    while True:
        yield Sync(entry_revisions=[Revision(id="a")], more=True)
        await asyncio.sleep(0.3)


async def half(server: WrongServer, requests: object) -> AsyncIterator[Sync]:
    del server, requests
    yield Sync(entry_revisions=[Revision(id="b", revision_number=1)], more=True)


async def nothing(server: WrongServer, requests: object) -> AsyncIterator[Sync]:
    del server, requests
    responses: list[Sync] = []
    for response in responses:
        yield response


async def revisions_for_entries(server: WrongServer, requests: AsyncIterator[object]) -> AsyncIterator[Sync]:
    del server
    yield Sync(entry_revisions=[Revision(id="b", revision_number=1)])
    await anext(requests)
    yield Sync(entry_revisions=[Revision(id="c", revision_number=1)])


async def entries_for_revisions(server: WrongServer, requests: object) -> AsyncIterator[Sync]:
    del requests
    yield Sync(entry_revisions=[Revision(id="b", revision_number=1)], more=True)
    yield Sync(entries=[_copy(server, "b")], more=True)


async def what_nobody_asked_for(server: WrongServer, requests: AsyncIterator[object]) -> AsyncIterator[Sync]:
    yield Sync(entry_revisions=[Revision(id="a", revision_number=0, created_at=1), Revision(id="b")])
    await anext(requests)
    yield Sync(entries=[_copy(server, "z")])


def _copy(server: WrongServer, entry_id: str, *, selectors: int = 0) -> entry_pb2.Entry:
    entry = entry_pb2.Entry()
    entry.CopyFrom(server.entries["a"])
    entry.id = entry_id
    entry.selectors.extend(selector_pb2.Selector(type="unix", value=f"uid:{each}") for each in range(selectors))
    return entry


@pytest.mark.parametrize(
    "answers",
    [
        *(too_many_revisions, too_many_at_once, pages_without_end, huge_message, silence, drip, half, nothing),
        *(revisions_for_entries, entries_for_revisions, what_nobody_asked_for),
    ],
)
async def test_a_synchronisation_that_cannot_be_leaves_everything_as_it_was(
    agent: RunningAgent,
    server: WrongServer,
    answers: Answers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("agent.server_client.LARGEST_ENTRIES", 100)
    monkeypatch.setattr("agent.server_client.LARGEST_SYNC", 1 << 20)
    before = await agent.first(*X509)
    server.answers = answers
    await until(lambda: "Synchronize failed" in caplog.text)
    assert set(agent.managing.cache.entries()) == {"a"}
    assert await agent.first(*X509) == before
    server.answers = None
    server.add_entry("b", "/later")
    await until(lambda: agent.managing.cache.svid_count == 2)
    assert not agent.task.done()


async def test_too_many_entries_are_said_clearly(
    agent: RunningAgent, server: WrongServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.server_client.LARGEST_ENTRIES", 100)
    server.answers = too_many_revisions
    await until(lambda: "Synchronize failed" in caplog.text)
    said = [getattr(record, "fields", {}) for record in caplog.records if "Synchronize failed" in record.message]
    assert "more than 100 entries" in str(said[0])
    assert not agent.task.done()


async def test_garbage_revisions_take_nothing_away(
    agent: RunningAgent, server: WrongServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def garbage(server: WrongServer, requests: object) -> AsyncIterator[Sync]:
        del server, requests
        yield Sync(entry_revisions=[Revision(id="", revision_number=3), Revision(id="a", revision_number=-1)])

    before = await agent.first(*X509)
    server.answers = garbage
    await until(lambda: "malformed entry revision" in caplog.text)
    await until(lambda: server.broken_syncs >= 2)
    assert await agent.first(*X509) == before


@pytest.mark.parametrize("by_revision", [True, False])
async def test_a_malformed_entry_stays_as_it_was(
    home: Home, server: WrongServer, by_revision: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server.by_revision = by_revision
    async with home.running() as agent:
        before = await agent.first(*X509)
        entry = server.entries["a"]
        entry.revision_number = 5
        entry.spiffe_id.path = "/../garbage"
        await until(lambda: "malformed entry from" in caplog.text)
        assert await agent.first(*X509) == before


async def test_all_entries_at_once_have_the_same_limit(
    home: Home, server: WrongServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.server_client.LARGEST_ENTRIES", 100)
    server.by_revision = False
    async with home.running() as agent:
        before = await agent.first(*X509)
        many = [_copy(server, f"e{each}") for each in range(200)]
        server.wrong_entries = entry_rpc_pb2.GetAuthorizedEntriesResponse(entries=many)
        await until(lambda: "Synchronize failed" in caplog.text)
        assert await agent.first(*X509) == before
        assert set(agent.managing.cache.entries()) == {"a"}


async def test_too_many_federated_trust_domains_are_cut(
    agent: RunningAgent, server: WrongServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.server_client.MOST_BUNDLES", 3)
    server.add_entry("a", federates_with=[f"td{each}.org" for each in range(10)], revision_number=2)
    await until(lambda: "too many trust domains" in caplog.text)
    asked = server.calls["GetFederatedBundle"]
    assert asked % 3 == 0
    assert (await agent.first(*X509)).svids


async def test_a_bundle_that_never_comes_is_given_up(
    agent: RunningAgent, server: WrongServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = await agent.first(*X509)
    server.silent = True
    await until(lambda: "Synchronize failed" in caplog.text)
    assert await agent.first(*X509) == before
    server.silent = False
    server.add_entry("b", "/later")
    await until(lambda: agent.managing.cache.svid_count == 2)


def swapped(response: svid_pb2.BatchNewX509SVIDResponse) -> None:
    """Each entry's answer is another's."""
    first, second = (list(each.svid.cert_chain) for each in response.results[:2])
    response.results[0].svid.cert_chain[:] = second
    response.results[1].svid.cert_chain[:] = first


def fewer(response: svid_pb2.BatchNewX509SVIDResponse) -> None:
    del response.results[:]


def more(response: svid_pb2.BatchNewX509SVIDResponse) -> None:
    """One answer too many, before the others."""
    right = list(response.results)
    del response.results[:]
    response.results.add().svid.cert_chain.append(b"garbage")
    response.results.extend(right)


@pytest.mark.parametrize("wrong", [swapped, fewer, more])
async def test_answers_for_other_entries_are_not_taken(
    home: Home, server: WrongServer, wrong: Callable[[svid_pb2.BatchNewX509SVIDResponse], None]
) -> None:
    server.add_entry("b", "/other")
    async with home.running() as agent:
        await until(lambda: agent.managing.cache.svid_count == 2)
        before = await agent.first(*X509)
        server.wrong_svids = wrong
        asked = server.calls["BatchNewX509SVID"]
        for entry_id, path in (("a", "/workload"), ("b", "/other")):
            server.add_entry(entry_id, path, revision_number=1)
        await until(lambda: server.calls["BatchNewX509SVID"] > asked)
        await until(lambda: agent.managing.cache.entries()["b"].revision == 1)
        assert await agent.first(*X509) == before
        assert not agent.task.done()


@pytest.mark.parametrize(
    "wrong",
    [
        jwtsvid_pb2.JWTSVID(),
        jwtsvid_pb2.JWTSVID(token="t", id=spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/workload")),
        jwtsvid_pb2.JWTSVID(
            token="t", id=spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/w"), issued_at=5, expires_at=9
        ),
        jwtsvid_pb2.JWTSVID(
            token="t", id=spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/workload"), issued_at=5, expires_at=9
        ),
    ],
    ids=["nothing", "without times", "another's", "expired"],
)
async def test_a_token_that_cannot_be_does_not_take_the_place_of_one_that_is(
    home: Home, server: WrongServer, wrong: jwtsvid_pb2.JWTSVID
) -> None:
    server.svid_ttl = 4
    async with home.running() as agent:
        token = await agent.ask(*JWT)
        server.wrong_jwt = wrong
        await asyncio.sleep(2.5)
        assert await agent.ask(*JWT) == token
