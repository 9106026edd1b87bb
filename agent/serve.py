"""The agent as a whole: plugins, attestation, the manager and the sockets, from start to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import manager, workload_api
from agent.bootstrap import TrustBundleSource
from agent.catalog import BUILTINS
from agent.health import HealthService
from agent.manager import Manager
from agent.server_client import ServerAddress
from agent.startup import Start, attested
from agent.storage import Storage
from agent.tasks import until_first
from agent.workload_api import WorkloadApi
from agent.workload_attestation import WorkloadAttestation
from attestors.join_token.agent import JoinTokenAttestor
from operations import logs, sdnotify
from operations.errors import ConfigurationError
from operations.version import VERSION
from plugins import catalog
from plugins.catalog import PluginBlock, PluginContext
from plugins.keymanager import KeyManager
from plugins.nodeattestor import AgentNodeAttestor
from plugins.workloadattestor import WorkloadAttestor
from transport.router import Router
from transport.server import Server

_GRACE = 0.5

_log = logs.get()


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything a run needs, out of the configuration. `socket_path` is empty when no API is to be served."""

    address: ServerAddress
    source: TrustBundleSource
    data_dir: str
    socket_path: str
    join_token: str
    plugins: Sequence[PluginBlock]
    manager: manager.Settings
    workload_api: workload_api.Settings
    disable_workload_api: bool = False


@dataclass(frozen=True, slots=True)
class Plugins:
    keys: KeyManager
    node_attestor: AgentNodeAttestor
    workload_attestors: Sequence[WorkloadAttestor]


async def serve(launch: Launch) -> None:
    """Until SIGTERM or SIGINT. Raises SpireError classes for what ends the agent."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await until_first(_run(launch), _until(stop))
    sdnotify.notify("STOPPING=1")


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()


async def _run(launch: Launch) -> None:
    _log.info("Starting agent", data_dir=launch.data_dir, version=VERSION)
    _make_folder(launch.data_dir, "data_dir", 0o700)
    if launch.socket_path:
        _make_folder(str(Path(launch.socket_path).parent), "socket_path", 0o755)
    storage = await asyncio.to_thread(Storage.open, launch.data_dir)
    async with _plugins(launch) as plugins:
        start = Start(launch.address, launch.source, plugins.keys, plugins.node_attestor, storage)
        found = await attested(start)
        managing = Manager(launch.manager, launch.address, found, plugins.keys, plugins.node_attestor, storage)
        try:
            await managing.initialise(VERSION)
            async with _endpoints(launch, managing, plugins):
                sdnotify.notify("READY=1")
                await managing.run()
        finally:
            await managing.close()


def _make_folder(path: str, setting: str, mode: int) -> None:
    try:
        Path(path).mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot create {path}: {error.strerror}; check {setting}") from error


@asynccontextmanager
async def _plugins(launch: Launch) -> AsyncGenerator[Plugins, None]:
    keys: KeyManager = (await _load(launch, "KeyManager"))[0]
    try:
        node_attestors: list[AgentNodeAttestor] = await _load(launch, "NodeAttestor")
        # A join token wins over whatever attestor is configured, as in SPIRE.
        node_attestor = JoinTokenAttestor(launch.join_token) if launch.join_token else node_attestors[0]
        yield Plugins(keys, node_attestor, await _load(launch, "WorkloadAttestor"))
    finally:
        await keys.close()


async def _load(launch: Launch, kind: str) -> list[Any]:
    blocks = [block for block in launch.plugins if block.type == kind and block.enabled]
    return [await catalog.load(block, BUILTINS, _context(launch, block)) for block in blocks]


def _context(launch: Launch, block: PluginBlock) -> PluginContext:
    log = _log.bind(subsystem_name="catalog", plugin_name=block.name, plugin_type=block.type)
    return PluginContext(trust_domain=launch.address.trust_domain.name, data_dir=launch.data_dir, log=log)


@asynccontextmanager
async def _endpoints(launch: Launch, managing: Manager, plugins: Plugins) -> AsyncGenerator[None, None]:
    """The Unix socket with the Workload API and health."""
    if not launch.socket_path:
        _log.info("Skipping agent APIs because public endpoint is disabled")
        yield
        return
    router = Router()
    router.before = workload_api.require_security_header
    if not launch.disable_workload_api:
        attestation = WorkloadAttestation(plugins.workload_attestors)
        WorkloadApi(launch.workload_api, attestation, managing.cache, managing.jwt_svids).add_to(router)
    HealthService(launch.socket_path, with_workload_api=not launch.disable_workload_api).add_to(router)
    server = Server(router)
    await server.listen_unix(launch.socket_path, mode=0o777)
    _log.info("Starting agent APIs", subsystem_name="endpoints", network="unix", address=launch.socket_path)
    try:
        yield
    finally:
        _log.info("Stopping agent APIs", subsystem_name="endpoints")
        await server.drain(_GRACE)
