"""What one call that is counted and timed costs in each sink: `python -m bench.metrics`."""

from __future__ import annotations

import time

from operations import metrics
from operations.in_memory import InMemory
from operations.metric_rules import Ruled, Sink
from operations.prometheus import Prometheus
from operations.sections import Telemetry
from operations.statsd import DogStatsd, Statsd

TIMES = 50_000


def sinks() -> dict[str, Sink]:
    lines: list[bytes] = []

    def put(line: bytes) -> None:
        if len(lines) >= 1000:
            lines.clear()
        lines.append(line)

    return {"Prometheus": Prometheus(), "InMem": InMemory(), "Statsd": Statsd(put), "DogStatsd": DogStatsd(put, {})}


def cost() -> float:
    """Microseconds of CPU for one value; a call has two."""
    begin = time.process_time()
    for _ in range(TIMES):
        metrics.called(("datastore", "node", "fetch"), 0.0012)
    return (time.process_time() - begin) / TIMES / 2 * 1e6


def main() -> None:
    print(f"no sink     {cost():5.2f} us a value")
    for name, sink in sinks().items():
        metrics.use([Ruled(sink, Telemetry(), service="spire_server", trust_domain="example.org", host="host")])
        print(f"{name:11} {cost():5.2f} us a value")
    metrics.use(())


if __name__ == "__main__":
    main()
