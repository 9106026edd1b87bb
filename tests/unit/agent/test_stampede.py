"""A server that comes back is not run over: real agents, hours of them, under a clock of their own.

Everything that decides when the server is called is the product's: synchronisation, issuing, renewals, attestation.
Only the wire is left out, and the server behind it is a CA that notes when it is called.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from agent import csr, manager
from agent.attest import Attestation
from agent.bootstrap import TrustBundleSource
from agent.entries import Entry
from agent.identity import AgentSvid, next_key
from agent.manager import Manager
from agent.server_client import EntryChanges, ServerAddress
from agent.startup import Begun, Start
from agent.storage import Storage
from agent.store.content import Held
from agent.store.store import Store
from agent.trust import Trust
from attestors.join_token.agent import JoinTokenAttestor
from identity.bundles import Bundle, X509Authority
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from keystores.memory import MemoryKeyManager
from plugins.keymanager import Key, KeyManager
from tests.simulators import virtual_time
from tests.simulators.fake_server import Authority
from transport.status import Code, RpcError

TD = TrustDomain("example.org")
INTERVAL = 5.0
TTL = 600.0
ENTRIES = 2
AGENTS = 200
STEADY = 2 / INTERVAL
"""Calls per second and agent when all is well: entries and the bundle, each interval."""


@dataclass
class Busy:
    """The server: away or there, and how often it is called, by second."""

    root: Authority = field(default_factory=lambda: Authority(TD, lifetime=1e6))
    away: bool = False
    calls: Counter[int] = field(default_factory=Counter[int])
    kinds: Counter[str] = field(default_factory=Counter[str])

    async def called(self, kind: str) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise RpcError(Code.UNAVAILABLE, "away")
        self.calls[int(time.time())] += 1
        self.kinds[kind] += 1

    def sign(self, request: bytes, spiffe_id: str, real_time: Callable[[], float]) -> tuple[bytes, ...]:
        ttl = time.time() - real_time() + TTL
        certificate = self.root.sign_request(request, spiffe_id, ttl)
        return (certificate.public_bytes(serialization.Encoding.DER),)

    def peak(self, begin: float, seconds: float) -> int:
        return max(self.calls[each] for each in range(int(begin), int(begin + seconds)))


class Client:
    """A ServerClient without a wire."""

    def __init__(
        self,
        busy: Busy,
        real_time: Callable[[], float],
        address: ServerAddress,
        svid: AgentSvid,
        authorities: Callable[[], object],
    ) -> None:
        del authorities
        self._busy, self._real_time, self._address = busy, real_time, address
        self.svid = svid

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        yield

    async def use(self, svid: AgentSvid) -> None:
        self.svid = svid

    async def close(self) -> None:
        pass

    async def sync_entries(self, known: Mapping[str, Entry]) -> EntryChanges:
        await self._busy.called("sync")
        return EntryChanges([entry for entry in entries() if known.get(entry.id) != entry], [])

    async def bundles(self, federates_with: Iterable[str]) -> dict[str, Bundle]:
        del federates_with
        await self._busy.called("bundle")
        return {TD.name: Bundle(TD, (X509Authority(self._busy.root.der),))}

    async def new_x509_svids(self, requests: Mapping[str, bytes]) -> dict[str, tuple[bytes, ...]]:
        await self._busy.called("issue")
        ids = {entry.id: entry.spiffe_id for entry in entries()}
        return {each: self._busy.sign(request, ids[each], self._real_time) for each, request in requests.items()}

    async def renew(self, csr: bytes) -> tuple[bytes, ...]:
        await self._busy.called("renew")
        return self._busy.sign(csr, str(self.svid.spiffe_id), self._real_time)

    async def post_status(self, version: str) -> None:
        del version
        await self._busy.called("status")


def entries() -> list[Entry]:
    made = range(ENTRIES)
    return [Entry(str(each), f"spiffe://example.org/w{each}", frozenset((Selector("unix", "uid:1"),))) for each in made]


@dataclass
class Fleet:
    folder: Path
    busy: Busy
    real_time: Callable[[], float]
    members: list[Manager] = field(default_factory=list[Manager])
    tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    async def attest(
        self, address: object, attestor: object, keys: KeyManager, current: Key | None, authorities: object
    ) -> Attestation:
        """In the place of agent.attest: one call more for the bundle."""
        del address, attestor, authorities
        await self.busy.called("bundle")
        await self.busy.called("attest")
        return await self.attestation(keys, current)

    async def attestation(self, keys: KeyManager, current: Key | None = None) -> Attestation:
        key = await next_key(keys, current)
        chain = self.busy.sign(await csr.agent_request(key), "spiffe://example.org/spire/agent/x/a", self.real_time)
        return Attestation(AgentSvid(chain, key, reattestable=True), Bundle(TD, (X509Authority(self.busy.root.der),)))

    async def add(self, number: int, *, held: bool = False) -> None:
        folder = self.folder / str(number)
        folder.mkdir()
        keys, storage = MemoryKeyManager(), Storage.open(str(folder))
        trust = Trust(TrustBundleSource(TD, "h", 1), storage)
        store = Store(str(folder), TD, keys, storage)
        start = Start(ServerAddress("h", 1, TD), trust, keys, JoinTokenAttestor("t"), storage, store)
        attestation = await self.attestation(keys)
        nothing = Held({each.id: each for each in entries()}, {}, {}, {TD.name: attestation.bundle})
        settings = manager.Settings(sync_interval=INTERVAL)
        made = Manager(settings, start, Begun(attestation, nothing if held else None))
        setattr(made.cache, "_clock", time.time)  # noqa: B010 - its default is the real one
        self.members.append(made)
        self.tasks.append(asyncio.create_task(self._serve(made)))

    async def _serve(self, made: Manager) -> None:
        await made.initialise("1")
        await made.run()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for member in self.members:
            await member.close()


def unwritten(*_: object) -> None:
    """Hundreds of synced files take longer than all the rest."""


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return made_fleet(tmp_path, monkeypatch)


def made_fleet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    real_time = time.time
    fleet = Fleet(folder, Busy(), real_time)
    monkeypatch.setattr("agent.manager.ServerClient", partial(Client, fleet.busy, real_time))
    monkeypatch.setattr("agent.own_svid.attest", fleet.attest)
    monkeypatch.setattr("agent.storage.Storage._write", unwritten)
    return fleet


def lived(fleet: Fleet, life: Callable[[Fleet], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    loop, began = virtual_time.VirtualLoop(), fleet.real_time()
    monkeypatch.setattr(time, "time", lambda: began + loop.time())
    monkeypatch.setattr(time, "monotonic", loop.time)

    async def whole() -> None:
        try:
            await life(fleet)
        finally:
            await fleet.end()

    virtual_time.run(whole(), loop)


async def away_for(fleet: Fleet, seconds: float) -> float:
    """Returns when the server came back."""
    fleet.busy.away = True
    await asyncio.sleep(seconds)
    fleet.busy.away = False
    return time.time()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [20.0, 200.0, 1200.0], ids=["short", "into renewals", "until all has expired"])
def test_the_return_after_an_outage(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """In the longest one everything has expired: all attest, and all SVIDs are issued anew."""

    async def life(fleet: Fleet) -> None:
        for number in range(AGENTS):
            await fleet.add(number)
            await asyncio.sleep(random.uniform(0, 2 * INTERVAL / AGENTS))
        await asyncio.sleep(300)
        usual = fleet.busy.peak(time.time() - 200, 200)
        before = Counter(fleet.busy.kinds)
        back = await away_for(fleet, seconds)
        await asyncio.sleep(200)
        peak = fleet.busy.peak(back, 200)
        print(f"{AGENTS} agents, {seconds:.0f} s: peak {peak}/s, usually {usual}/s", fleet.busy.kinds - before)
        assert peak <= 2 * STEADY * AGENTS
        assert all(member.last_sync > back for member in fleet.members)
        assert all(member.cache.svid_count == ENTRIES for member in fleet.members)
        assert all(member.svid.expires > time.time() for member in fleet.members)

    lived(fleet, life, monkeypatch)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [2.0, 60.0], ids=["2 s", "1 min"])
def test_the_return_after_a_power_cut(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """All agents start in the same moment, with something to serve, and the server comes after them."""

    async def life(fleet: Fleet) -> None:
        fleet.busy.away = True
        for number in range(AGENTS):
            await fleet.add(number, held=True)
        back = await away_for(fleet, seconds)
        await asyncio.sleep(200)
        peak = fleet.busy.peak(back, 200)
        print(f"{AGENTS} agents started together, server after {seconds:.0f} s: peak {peak}/s")
        # Each one's first contact is four calls, all in one second, and agents come one after another over an interval:
        # 160 a second and, since they come by chance, 25 either way. All of them at once would be 800.
        assert peak <= 2 * 4 / INTERVAL * AGENTS
        assert all(member.cache.svid_count == ENTRIES for member in fleet.members)

    lived(fleet, life, monkeypatch)
