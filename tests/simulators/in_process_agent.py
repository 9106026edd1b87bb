"""A whole agent in this process, against a fake server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from agent import manager, workload_api
from agent.bootstrap import TrustBundleSource
from agent.config.file import RateLimit, Sds
from agent.health import HealthService
from agent.manager import Manager
from agent.rate_limits import Admission, RateLimits
from agent.sds.service import SecretDiscovery
from agent.server_client import ServerAddress
from agent.startup import Start, begin
from agent.storage import Storage
from agent.store.store import Store
from agent.stream_limits import SOCKET, StreamLimits
from agent.trust import Rebootstrap, Trust
from agent.workload_api import SECURITY_HEADER, WorkloadApi
from agent.workload_attestation import WorkloadAttestation
from attestors.join_token.agent import JoinTokenAttestor
from identity.selectors import Selector
from keystores.memory import MemoryKeyManager
from plugins.keymanager import KeyManager
from plugins.svidstore import SvidStore
from tests.simulators.fake_server import FakeServer
from transport.client import Channel
from transport.peer import Process
from transport.router import Router
from transport.server import Server

R = TypeVar("R", bound=Message)
API = "/SpiffeWorkloadAPI/"
HEADER = {SECURITY_HEADER: "true"}
PATIENCE = 60.0


@dataclass
class Attestor:
    """Says of every caller what the test says."""

    selectors: Sequence[str] = ("unix:uid:1000",)
    name: str = "fake"

    async def attest(self, process: Process) -> Sequence[Selector]:
        del process
        return [Selector.parse(each) for each in self.selectors]


@dataclass
class RunningAgent:
    managing: Manager
    task: asyncio.Task[None]
    channel: Channel
    storage: Storage
    attestor: Attestor

    def stream(self, method: str, request: Message, response: type[R], *, header: bool = True) -> AsyncIterator[R]:
        metadata = HEADER if header else {}
        return self.channel.server_stream(API + method, request, response, timeout=PATIENCE, metadata=metadata)

    async def first(self, method: str, request: Message, response: type[R], *, header: bool = True) -> R:
        async with asyncio.timeout(PATIENCE):
            return await anext(aiter(self.stream(method, request, response, header=header)))

    async def ask(self, method: str, request: Message, response: type[R]) -> R:
        return await self.channel.unary(API + method, request, response, timeout=PATIENCE, metadata=HEADER)


@dataclass
class Home:
    """What an agent keeps over its restarts."""

    folder: Path
    server: FakeServer
    keys: KeyManager = field(default_factory=MemoryKeyManager)
    token: str = "token"
    settings: manager.Settings = field(default_factory=lambda: manager.Settings(sync_interval=0.2))
    allow_unauthenticated_verifiers: bool = False
    log_selectors: tuple[str, ...] = ()
    ratelimit: RateLimit = field(default_factory=RateLimit)
    stores: Mapping[str, SvidStore] = field(default_factory=dict[str, SvidStore])
    sds: Sds = field(default_factory=Sds)
    rebootstrap: Rebootstrap = field(default_factory=Rebootstrap)

    def start(self) -> Start:
        bundle = self.folder / "bundle.pem"
        bundle.write_text(self.server.authority.pem)
        trust_domain = self.server.trust_domain
        storage = Storage.open(str(self.folder))
        source = TrustBundleSource(trust_domain, "127.0.0.1", self.server.port, path=str(bundle))
        return Start(
            ServerAddress("127.0.0.1", self.server.port, trust_domain),
            Trust(source, storage, self.rebootstrap),
            self.keys,
            JoinTokenAttestor(self.token),
            storage,
            Store(str(self.folder), trust_domain, self.keys, storage),
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[RunningAgent, None]:
        start = self.start()
        managing = Manager(self.settings, start, await begin(start), self.stores)
        task: asyncio.Task[None] | None = None
        path = str(self.folder / "api.sock")
        attestor = Attestor()
        router = Router()
        router.before = workload_api.require_security_header
        api = workload_api.Settings(
            self.server.trust_domain,
            allow_unauthenticated_verifiers=self.allow_unauthenticated_verifiers,
            allowed_foreign_jwt_claims=frozenset(("extra",)),
            log_selectors=self.log_selectors,
        )
        admission, limits = Admission(WorkloadAttestation([attestor]), RateLimits(self.ratelimit)), StreamLimits()
        WorkloadApi(api, admission, managing.cache, managing.jwt_svids, limits).add_to(router)
        SecretDiscovery(self.sds, admission, managing.cache, limits).add_to(router)
        HealthService(path).add_to(router)
        server = Server(router, limits=SOCKET)
        channel = Channel.unix(path)
        try:
            await managing.initialise("1.2.3")
            await server.listen_unix(path, mode=0o777)
            task = asyncio.ensure_future(managing.run())
            yield RunningAgent(managing, task, channel, start.storage, attestor)
        finally:
            await channel.close()
            await server.drain(0.1)
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await managing.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that nobody tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.02)
