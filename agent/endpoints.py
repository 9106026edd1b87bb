"""The sockets of a running agent: for workloads and Envoys, for operators and delegates, for brokers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from agent import workload_api
from agent.config import AgentConfig
from agent.health import HealthService
from agent.manager import Manager
from agent.metrics import hooks
from agent.rate_limits import Admission, RateLimits
from agent.reflection import Reflection
from agent.stream_limits import SOCKET, StreamLimits
from agent.workload_api import WorkloadApi
from agent.workload_attestation import WorkloadAttestation
from operations import logs
from plugins.blocks import key_manager_of
from plugins.workloadattestor import WorkloadAttestor
from transport.router import Router
from transport.server import Server

SOCKET_MODE = 0o777

GRACE = 0.5
"""Seconds that calls may still take once the agent is told to stop. Streams would go on for ever."""

_log = logs.get("endpoints")


@asynccontextmanager
async def endpoints(
    config: AgentConfig, manager: Manager, attestors: Sequence[WorkloadAttestor]
) -> AsyncGenerator[None, None]:
    """Raises what transport.unix.bind does for a socket that cannot be had."""
    attestation = WorkloadAttestation(attestors)
    servers: list[Server] = []
    try:
        if config.serves_workloads:
            servers.append(await _serve_workloads(config, manager, attestation))
        if config.admin_socket_path is not None:
            # Few agents have one.
            from agent.admin import serve_admin

            delegates = config.authorized_delegates
            name = key_manager_of(config.plugins)
            path = config.admin_socket_path
            servers.append(await serve_admin(path, manager, attestation, delegates, key_manager=name))
        if config.broker is not None:
            from agent.broker.endpoint import serve_broker

            pq = config.require_pq_kem
            servers.append(await serve_broker(config.broker, manager, attestation, require_pq_kem=pq))
        yield
    finally:
        _log.info("Stopping agent APIs")
        await asyncio.gather(*(each.drain(GRACE) for each in servers))


async def _serve_workloads(config: AgentConfig, manager: Manager, attestation: WorkloadAttestation) -> Server:
    """The Workload API, Envoy's and health, as far as they are not switched off."""
    settings = workload_api.Settings(
        trust_domain=config.trust_domain,
        allow_unauthenticated_verifiers=config.allow_unauthenticated_verifiers,
        allowed_foreign_jwt_claims=frozenset(config.allowed_foreign_jwt_claims),
        log_selectors=config.log_selectors,
    )
    router = Router()
    router.before, router.after = hooks(workload_api.require_security_header)
    admission, limits = Admission(attestation, RateLimits(config.ratelimit)), StreamLimits()
    if not config.disable_workload_api:
        WorkloadApi(settings, admission, manager.cache, manager.jwt_svids, limits).add_to(router)
    if not config.disable_sds_api:
        # What Envoy's messages take to load, the others need not.
        from agent.sds.service import SecretDiscovery

        SecretDiscovery(config.sds, admission, manager.cache, limits).add_to(router)
    HealthService(config.socket_path, workload_api=not config.disable_workload_api).add_to(router)
    Reflection(router).add_to(router)
    server = Server(router, limits=SOCKET)
    await server.listen_unix(config.socket_path, mode=SOCKET_MODE)
    _log.info("Starting agent APIs", network="unix", address=config.socket_path, apis=_served(config))
    return server


def _served(config: AgentConfig) -> str:
    if config.disable_workload_api:
        return "SDS API"
    return "Workload API" if config.disable_sds_api else "Workload and SDS APIs"
