"""What looks at the agent from beside its APIs: health over HTTP and metrics, where they are configured.

It begins before the attestation, which may take long, and is what operators want to watch then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from agent.config import AgentConfig
from agent.health import workload_api_answers
from agent.identity import tls_identity
from agent.manager import Manager
from identity.spiffeid import TrustDomain
from operations import telemetry
from operations.errors import NotFound, TemporarilyUnavailable, Unsupported
from operations.health import Checker, State
from operations.telemetry import Sinks
from transport.tls import InProcessIdentity

if TYPE_CHECKING:
    from agent.identity import AgentSvid


class Observed:
    """What is known of the agent so far. `manager` is there once it is attested; `started` when it serves."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._identity: tuple[AgentSvid, InProcessIdentity] | None = None
        self.manager: Manager | None = None
        self.started = False

    async def check(self) -> State:
        well = self.started and await workload_api_answers(self._socket_path)
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
            identity = tls_identity(svid.key, svid.chain)
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
    subject = Observed(config.socket_path)
    checker = Checker({"agent": subject.check})
    async with AsyncExitStack() as stack:
        await _listen(config, subject, checker, sinks, stack)
        running: list[Coroutine[None, None, None]] = [checker.run()]
        if sinks:
            running.append(sinks.run(config.trust_domain.name))
        tasks = [asyncio.create_task(each) for each in running]
        try:
            yield subject
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _listen(
    config: AgentConfig, subject: Observed, checker: Checker, sinks: Sinks, stack: AsyncExitStack
) -> None:
    if config.health_checks.listener_enabled:
        from transport.endpoints import serve_health

        stack.push_async_callback((await serve_health(config.health_checks, checker)).close)
    if config.telemetry.prometheus is not None and sinks.prometheus is not None:
        from transport.endpoints import SvidSource, serve_metrics

        served = await serve_metrics(
            config.telemetry.prometheus,
            sinks.prometheus.respond,
            SvidSource(subject.identity, subject.authorities),
            require_pq_kem=config.require_pq_kem,
        )
        stack.push_async_callback(served.close)
