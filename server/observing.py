"""What looks at the running server from beside its APIs: health over HTTP and metrics, where they are configured."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from operations.health import Check, Checker
from operations.telemetry import Sinks
from server.config import ServerConfig
from server.own_svid import ServerSvid
from server.trust import TrustBundles


@dataclass(frozen=True, slots=True)
class View:
    """What there is to look at: the checks of the server's parts, its own SVID, and whom it trusts."""

    config: ServerConfig
    checks: Mapping[str, Check]
    svid: ServerSvid
    bundles: TrustBundles

    async def open(self, sinks: Sinks, cleanup: AsyncExitStack) -> Sequence[Coroutine[None, None, None]]:
        """Listen for what is configured; returns what runs meanwhile. Raises ConfigurationError."""
        config = self.config
        checker = Checker(self.checks)
        running = [checker.run()]
        if sinks:
            running.append(sinks.run(config.trust_domain.name))
        if config.health_checks.listener_enabled:
            from transport.endpoints import serve_health

            cleanup.push_async_callback((await serve_health(config.health_checks, checker)).close)
        if config.telemetry.prometheus is not None and sinks.prometheus is not None:
            from transport.endpoints import SvidSource, serve_metrics

            served = await serve_metrics(
                config.telemetry.prometheus,
                sinks.prometheus.respond,
                SvidSource(self.svid.identity, self.bundles.roots),
                require_pq_kem=config.require_pq_kem,
            )
            cleanup.push_async_callback(served.close)
        if config.profiling is not None:
            from operations import profiling
            from transport.endpoints import serve_profiles

            profiler = profiling.Profiler(config.profiling, "server")
            if config.profiling.port:
                served = await serve_profiles(profiler.handler(), config.profiling.port, profiling.LONGEST)
                cleanup.push_async_callback(served.close)
            if config.profiling.frequency:
                running.append(profiler.write_files())
        return running
