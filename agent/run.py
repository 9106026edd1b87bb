"""The running agent: plugins, attestation, keeping in step with the server, and sockets, until it is told to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import manager
from agent.attest import Attestation
from agent.bootstrap import TrustBundleSource
from agent.catalog import BUILTINS, FACADES, host_services
from agent.config import AgentConfig
from agent.endpoints import endpoints
from agent.manager import Manager
from agent.metrics import time_key_manager
from agent.observing import observed
from agent.rotation import RotationStrategy
from agent.server_client import TIMEOUT, ServerAddress
from agent.startup import Start, begin
from agent.storage import Storage
from agent.store.store import Store
from agent.sync import DEFAULT_INTERVAL
from agent.trust import Mode, Rebootstrap, Trust
from attestors.join_token.agent import JoinTokenAttestor
from operations import logs, program, sdnotify, startup
from operations.errors import ConfigurationError
from operations.version import VERSION
from plugins import catalog
from plugins.blocks import PluginBlock
from plugins.catalog import PluginContext
from plugins.external.loading import ExternalPlugins
from plugins.keymanager import KeyManager
from plugins.nodeattestor import AgentNodeAttestor
from plugins.svidstore import SvidStore
from plugins.workloadattestor import HoldsConnections, WorkloadAttestor

SOCKET_FOLDER_MODE = 0o755
DATA_DIR_MODE = 0o755

_log = logs.get()


async def run(config: AgentConfig) -> int:
    """Serve until SIGTERM or SIGINT. Returns the process's exit status: 0, or 1 after one line in the log."""
    return await program.serve(config, lambda: serve(config), name="Agent", failed="Agent crashed")


async def serve(config: AgentConfig) -> None:
    """Attest, tell systemd, serve until cancelled. Raises SpireError when the agent cannot start or go on."""
    _log.info("Starting agent", data_dir=config.data_dir, version=VERSION)
    _make_folder(config.data_dir, "data_dir", DATA_DIR_MODE)
    if config.serves_workloads:
        _make_folder(str(Path(config.socket_path).parent), "socket_path", SOCKET_FOLDER_MODE)
    if config.admin_socket_path is not None:
        _make_folder(str(Path(config.admin_socket_path).parent), "admin_socket_path", SOCKET_FOLDER_MODE)
    if config.broker is not None and config.broker.socket_path is not None:
        folder = str(Path(config.broker.socket_path).parent)
        _make_folder(folder, "socket_path of experimental.broker", SOCKET_FOLDER_MODE)
    storage = await asyncio.to_thread(Storage.open, config.data_dir)
    address = ServerAddress(
        config.server_address, config.server_port, config.trust_domain, require_pq_kem=config.require_pq_kem
    )
    async with AsyncExitStack() as stack:
        watched = await stack.enter_async_context(observed(config))
        plugins = await stack.enter_async_context(_plugins(config))
        trust = Trust(_source(config), storage, _rebootstrap(config))
        store = Store(config.data_dir, config.trust_domain, plugins.keys, storage)
        start = Start(address, trust, plugins.keys, plugins.node_attestor, storage, store)
        sdnotify.starting(f"Attesting to {config.server_address}:{config.server_port}")
        begun = await begin(start)
        _warn_of_lost_key(config, begun.attestation)
        managing = Manager(_settings(config), start, begun, {store.name: store for store in plugins.svid_stores})
        stack.push_async_callback(managing.close)
        watched.manager = managing
        await managing.initialise(VERSION)
        await stack.enter_async_context(endpoints(config, managing, plugins.workload_attestors))
        watched.serves()
        startup.finished()
        sdnotify.serving(managing.status)
        stack.callback(sdnotify.stopping)
        await managing.run()


def _make_folder(path: str, setting: str, mode: int) -> None:
    try:
        Path(path).mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot create {path}: {error.strerror}; check {setting}") from error


def _warn_of_lost_key(config: AgentConfig, found: Attestation) -> None:
    in_memory = any((block.type, block.name) == ("KeyManager", "memory") for block in config.plugins)
    if in_memory and not found.svid.reattestable:
        _log.warning(
            "This node can attest only once, and its key is kept in memory alone: after a restart the agent needs a "
            'new join token. Use KeyManager "disk", or one on hardware, to let it go on with what it has'
        )


def _source(config: AgentConfig) -> TrustBundleSource:
    return TrustBundleSource(
        trust_domain=config.trust_domain,
        server_address=config.server_address,
        server_port=config.server_port,
        path=config.trust_bundle_path or "",
        url=config.trust_bundle_url or "",
        unix_socket=config.trust_bundle_unix_socket or "",
        format=config.trust_bundle_format,
        workload_api=config.trust_bundle_spiffe_workload_api or "",
    )


def _rebootstrap(config: AgentConfig) -> Rebootstrap:
    return Rebootstrap(Mode(config.rebootstrap_mode), config.rebootstrap_delay.total_seconds())


def _settings(config: AgentConfig) -> manager.Settings:
    target = config.availability_target
    return manager.Settings(
        sync_interval=config.sync_interval.total_seconds() if config.sync_interval else DEFAULT_INTERVAL,
        sync_by_revision=config.use_sync_authorized_entries,
        workload_key_type=config.workload_key_type,
        strategy=RotationStrategy(target.total_seconds() if target else 0.0),
        x509_cache_size=config.x509_svid_cache_max_size,
        jwt_cache_size=config.jwt_svid_cache_max_size,
        jwt_hit_timeout=hit.total_seconds() if (hit := config.jwt_svid_cache_hit_timeout) else TIMEOUT,
    )


@dataclass(frozen=True, slots=True)
class _Plugins:
    keys: KeyManager
    node_attestor: AgentNodeAttestor
    workload_attestors: Sequence[WorkloadAttestor]
    svid_stores: Sequence[SvidStore]


@asynccontextmanager
async def _plugins(config: AgentConfig) -> AsyncGenerator[_Plugins, None]:
    catalog.check(config.plugins, catalog.AGENT, BUILTINS, config.file, FACADES)
    external = ExternalPlugins(FACADES, host_services)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(external.close)
        external.reconfigure_on_signal()
        keys: KeyManager = (await _load(config, "KeyManager", external))[0]
        stack.push_async_callback(keys.close)
        time_key_manager(keys)
        node_attestors: list[AgentNodeAttestor] = await _load(config, "NodeAttestor", external)
        # A join token wins over whatever attestor is configured, as in SPIRE.
        node_attestor = JoinTokenAttestor(config.join_token) if config.join_token else node_attestors[0]
        if isinstance(node_attestor, HoldsConnections):
            stack.push_async_callback(node_attestor.close)
        workload_attestors: list[WorkloadAttestor] = await _load(config, "WorkloadAttestor", external)
        for attestor in workload_attestors:
            if isinstance(attestor, HoldsConnections):
                stack.push_async_callback(attestor.close)
        stores: list[SvidStore] = await _load(config, "SVIDStore", external)
        yield _Plugins(keys, node_attestor, workload_attestors, stores)


async def _load(config: AgentConfig, kind: str, external: ExternalPlugins) -> list[Any]:
    blocks = [block for block in config.plugins if block.type == kind and block.enabled]
    return [await catalog.load(block, BUILTINS, _context(config, block, external)) for block in blocks]


def _context(config: AgentConfig, block: PluginBlock, external: ExternalPlugins) -> PluginContext:
    log = logs.get("catalog").bind(plugin_name=block.name, plugin_type=block.type)
    return PluginContext(config.trust_domain.name, config.data_dir, log, external=external)
