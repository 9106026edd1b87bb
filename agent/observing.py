"""What looks at the agent from beside its APIs: health over HTTP and metrics, where they are configured.

Metrics begin before the attestation, which may take long, and is what operators want to watch then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from agent.config import AgentConfig
from agent.health import workload_api_answers
from agent.manager import Manager
from identity.spiffeid import TrustDomain
from operations import logs, telemetry
from operations.errors import NotFound, TemporarilyUnavailable, Unsupported
from operations.health import Checker, State
from plugins.tls_identity import client_identity
from transport.tls import InProcessIdentity

if TYPE_CHECKING:
    from agent.identity import AgentSvid


_log = logs.get("health")

HEALTH_PATIENCE = 90.0
"""Seconds that an agent may take to its first answer before it is said to be unwell."""


class Observed:
    """What is known of the agent so far. `manager` is there once it is attested.

    `socket_path` is None where the agent serves no workloads: it is well once it runs.
    """

    def __init__(self, socket_path: str | None) -> None:
        self._socket_path = socket_path
        self._identity: tuple[AgentSvid, InProcessIdentity] | None = None
        self._serving = asyncio.Event()
        self.manager: Manager | None = None

    @property
    def started(self) -> bool:
        return self._serving.is_set()

    def serves(self) -> None:
        """The Workload API is there from now on."""
        self._serving.set()

    async def wait_until_it_serves(self, seconds: float) -> None:
        """Or until so many seconds have gone by."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._serving.wait()

    async def check(self) -> State:
        well = self.started and (self._socket_path is None or await workload_api_answers(self._socket_path))
        details = {} if well else {"make_new_x509_err": "workload api is unavailable"}
        return State(
            live=well or not self.started,
            ready=well,
            started=self.started,
            live_details=details if self.started else {},
            ready_details=details,
        )

    def identity(self) -> InProcessIdentity:
        """The agent's SVID. Raises TemporarilyUnavailable without one, Unsupported where its key is in a device."""
        if self.manager is None:
            raise TemporarilyUnavailable("the agent is not attested yet")
        svid = self.manager.svid
        if self._identity is None or self._identity[0] is not svid:
            identity = client_identity(svid.chain, svid.key)
            if not isinstance(identity, InProcessIdentity):
                raise Unsupported("use_spire_svid needs a key in this process; with one in a device use cert_file")
            self._identity = (svid, identity)
        return self._identity[1]

    async def authorities(self, trust_domain: TrustDomain) -> Sequence[bytes]:
        """Raises NotFound."""
        bundle = None if self.manager is None else self.manager.cache.bundle_of(trust_domain)
        if bundle is None:
            raise NotFound(f'no bundle found for trust domain "{trust_domain}"')
        return tuple(authority.der for authority in bundle.x509_authorities)


@asynccontextmanager
async def observed(config: AgentConfig) -> AsyncGenerator[Observed, None]:
    """Listen for what is configured. Raises ConfigurationError."""
    sinks = telemetry.open_sinks(config.telemetry, service="spire_agent", trust_domain=config.trust_domain.name)
    subject = Observed(config.socket_path if config.serves_workloads else None)
    async with AsyncExitStack() as stack:
        running: list[Coroutine[None, None, None]] = [_watch_health(config, subject)]
        if sinks:
            running.append(sinks.run(config.trust_domain.name))
        if config.telemetry.prometheus is not None and sinks.prometheus is not None:
            from transport.endpoints import SvidSource, serve_metrics

            served = await serve_metrics(
                config.telemetry.prometheus,
                sinks.prometheus.respond,
                SvidSource(subject.identity, subject.authorities),
                require_pq_kem=config.require_pq_kem,
            )
            stack.push_async_callback(served.close)
        if config.profiling is not None:
            from operations import profiling
            from transport.endpoints import serve_profiles

            profiler = profiling.Profiler(config.profiling, "agent")
            if config.profiling.port:
                served = await serve_profiles(profiler.handler(), config.profiling.port, profiling.LONGEST)
                stack.push_async_callback(served.close)
            if config.profiling.frequency:
                running.append(profiler.write_files())
        tasks = [asyncio.create_task(each) for each in running]
        for task in tasks:
            task.add_done_callback(_tell_failure)
        try:
            yield subject
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _tell_failure(task: asyncio.Task[None]) -> None:
    """The agent goes on without what looks at it, but not in silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("The agent's health or metrics are not watched any more", error=repr(error))


async def _watch_health(config: AgentConfig, subject: Observed) -> None:
    """Look, and answer who asks, once the agent serves; earlier only when that takes very long."""
    await subject.wait_until_it_serves(HEALTH_PATIENCE)
    checker = Checker({"agent": subject.check})
    if not config.health_checks.listener_enabled:
        await checker.run()
        return
    from transport.endpoints import serve_health

    served = await serve_health(config.health_checks, checker)
    try:
        await checker.run()
    finally:
        await served.close()
