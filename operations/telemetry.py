"""The telemetry and health_checks sections: checked, and their sinks set up."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from operations import metrics
from operations.checks import Checks
from operations.errors import InvalidArgument
from operations.quoting import quote
from operations.sections import HealthChecks, Telemetry, Tls
from operations.version import VERSION

if TYPE_CHECKING:
    from operations.datagrams import Address, Datagrams
    from operations.in_memory import InMemory
    from operations.metric_rules import Sink
    from operations.prometheus import Prometheus

UPTIME_INTERVAL: Final = 10.0
_DATADOG_PORT: Final = 8125
_started: Final = time.monotonic()


def uptime() -> float:
    """Seconds since the program began."""
    return time.monotonic() - _started


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where metrics go; nothing where none is configured."""

    prometheus: Prometheus | None = None
    in_memory: InMemory | None = None
    datagrams: tuple[Datagrams, ...] = ()

    def __bool__(self) -> bool:
        return self.prometheus is not None or self.in_memory is not None or bool(self.datagrams)

    async def run(self, trust_domain: str) -> None:
        """Say that the program has started, and for how long, and do what the sinks need, until cancelled."""
        metrics.gauge("started", value=1, version=VERSION, trust_domain_id=trust_domain)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_tell_uptime())
                if self.in_memory is not None:
                    tasks.create_task(self.in_memory.run())
                for each in self.datagrams:
                    tasks.create_task(each.run())
        finally:
            metrics.use(())


async def _tell_uptime() -> None:
    while True:
        metrics.gauge("uptime_in_ms", value=int(uptime() * 1000))
        await asyncio.sleep(UPTIME_INTERVAL)


def open_sinks(telemetry: Telemetry, *, service: str, trust_domain: str) -> Sinks:
    """Make the configured sinks and send metrics there from now on. `service` is what names begin with."""
    # Programs without sinks pay for none of this.
    opened: list[Sink] = []
    prometheus = in_memory = None
    if telemetry.prometheus is not None:
        from operations.process_stats import process_stats
        from operations.prometheus import Prometheus

        prometheus = Prometheus(process_stats)
        opened.append(prometheus)
    if telemetry.in_mem is not None:
        from operations.in_memory import InMemory

        in_memory = InMemory()
        opened.append(in_memory)
    datagrams: tuple[Datagrams, ...] = ()
    if telemetry.statsd or telemetry.dog_statsd:
        datagrams = _open_statsd(telemetry, opened)
    if opened:
        from operations.metric_rules import Ruled

        host = socket.gethostname()
        metrics.use([Ruled(each, telemetry, service=service, trust_domain=trust_domain, host=host) for each in opened])
    return Sinks(prometheus, in_memory, datagrams)


def _open_statsd(telemetry: Telemetry, opened: list[Sink]) -> tuple[Datagrams, ...]:
    from operations import statsd
    from operations.datagrams import Datagrams

    made: list[Datagrams] = []
    for each in telemetry.statsd:
        sender = Datagrams("Statsd", _statsd_address(each.address), statsd.STATSD_BYTES)
        made.append(sender)
        opened.append(statsd.Statsd(sender.put))
    for each in telemetry.dog_statsd:
        address = _dog_statsd_address(each.address)
        most = statsd.DOGSTATSD_SOCKET_BYTES if address.path else statsd.DOGSTATSD_BYTES
        sender = Datagrams("DogStatsd", address, most)
        made.append(sender)
        opened.append(statsd.DogStatsd(sender.put, os.environ))
    return tuple(made)


def _statsd_address(text: str) -> Address:
    """Raises InvalidArgument."""
    from operations.datagrams import Address

    if not text:
        raise InvalidArgument("address must be configured: use host:port, such as localhost:8125")
    return Address.parse(text)


def _dog_statsd_address(text: str, environment: Mapping[str, str] = os.environ) -> Address:
    """Without one, Datadog's variables tell where its agent is. Raises InvalidArgument."""
    from operations.datagrams import Address

    port = str(_DATADOG_PORT)
    if not text:
        text = environment.get("DD_AGENT_HOST", "")
        port = environment.get("DD_DOGSTATSD_PORT") or port
    if not text:
        raise InvalidArgument("address must be configured, or DD_AGENT_HOST set: use host:port or unix:///path")
    return Address.parse(text, default_port=int(port) if port.isdecimal() else _DATADOG_PORT, unix=True)


def check(telemetry: Telemetry, health: HealthChecks, checks: Checks) -> None:
    """Note what cannot work."""
    if telemetry.prometheus is not None:
        port = telemetry.prometheus.port
        if not 0 < port < 65536:
            checks.fault_in("telemetry", f"Prometheus.port {port} is no TCP port: use 1 to 65535", "Prometheus", "port")
        if telemetry.prometheus.tls is not None:
            try:
                _check_tls(telemetry.prometheus.tls)
            except InvalidArgument as error:
                checks.fault_in("telemetry", str(error), "Prometheus", "tls")
    for each in telemetry.statsd:
        _check_address("Statsd", each.address, _statsd_address, checks)
    for each in telemetry.dog_statsd:
        _check_address("DogStatsd", each.address, _dog_statsd_address, checks)
    if health.listener_enabled and health.bind_port:
        text = health.bind_port
        if not (text.isdecimal() and 0 < int(text) < 65536):
            checks.fault_in("health_checks", f"bind_port {quote(text)} is no TCP port: use 1 to 65535", "bind_port")


def _check_address(block: str, text: str, read: Callable[[str], object], checks: Checks) -> None:
    try:
        read(text)
    except InvalidArgument as error:
        checks.fault_in("telemetry", f"{block}.address: {error}", block)


def _check_tls(tls: Tls) -> None:
    """Raises InvalidArgument in SPIRE's words."""
    if tls.use_spire_svid and (tls.cert_file or tls.key_file):
        raise InvalidArgument("cert_file and key_file cannot be configured when use_spire_svid is enabled")
    if not tls.use_spire_svid and not (tls.cert_file and tls.key_file):
        raise InvalidArgument("cert_file and key_file must both be configured unless use_spire_svid is enabled")
    if tls.authorized_spiffe_ids and tls.client_ca_file:
        raise InvalidArgument("client_ca_file cannot be configured with authorized_spiffe_ids")
