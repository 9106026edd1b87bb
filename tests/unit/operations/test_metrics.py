"""What is counted and timed, the rules before it is collected, and how Prometheus and the log get to see it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations import in_memory, metric_rules, metrics, prometheus
from operations.errors import NotFound, SpireError
from operations.http import Request
from operations.in_memory import InMemory
from operations.metric_rules import Ruled
from operations.prometheus import Prometheus
from operations.sections import Telemetry
from transport.status import Code, RpcError


@pytest.fixture(autouse=True)
def _nobody_collects() -> Iterator[None]:
    yield
    metrics.use(())


def collected(*, host: str = "h", **settings: Any) -> Prometheus:
    """A sink that gets everything from now on, by these rules."""
    sink = Prometheus(clock=lambda: 0.0)
    rules = Telemetry(**settings)
    metrics.use([Ruled(sink, rules, service="spire_server", trust_domain="example.org", host=host)])
    return sink


def series(sink: Prometheus) -> list[str]:
    return [line for line in sink.text().splitlines() if not line.startswith("#")]


def test_nothing_happens_without_a_sink() -> None:
    assert not metrics.on()
    metrics.count("a")
    metrics.gauge("a", value=1)
    metrics.sample("a", value=1)
    with metrics.call("a"):
        pass
    subject = _Subject()
    before = subject.work
    metrics.time_methods(subject, {"work": ("work",)})
    assert subject.work == before


def test_counters_gauges_and_samples_as_prometheus_reads_them() -> None:
    sink = collected()
    metrics.count("rpc", "health", "check", status="OK")
    metrics.count("rpc", "health", "check", by=2, status="OK")
    metrics.gauge("started", value=1, version="1.2.3", trust_domain_id="example.org")
    for value in range(1, 101):
        metrics.sample("took", value=value)
    assert sink.text() == (
        "# HELP spire_server_rpc_health_check spire_server_rpc_health_check\n"
        "# TYPE spire_server_rpc_health_check counter\n"
        'spire_server_rpc_health_check{host="h",status="OK"} 3\n'
        "# HELP spire_server_started spire_server_started\n"
        "# TYPE spire_server_started gauge\n"
        'spire_server_started{host="h",trust_domain_id="example_org",version="1_2_3"} 1\n'
        "# HELP spire_server_took spire_server_took\n"
        "# TYPE spire_server_took summary\n"
        'spire_server_took{host="h",quantile="0.5"} 50\n'
        'spire_server_took{host="h",quantile="0.9"} 90\n'
        'spire_server_took{host="h",quantile="0.99"} 99\n'
        'spire_server_took_sum{host="h"} 5050\n'
        'spire_server_took_count{host="h"} 100\n'
    )


def test_quantiles_are_of_the_last_seconds() -> None:
    now = [0.0]
    sink = Prometheus(clock=lambda: now[0])
    sink.sample(("a",), 1000.0, ())
    now[0] = 8.0
    sink.sample(("a",), 1.0, ())
    now[0] = 11.0
    assert 'a{quantile="0.99"} 1' in sink.text()
    now[0] = 60.0
    assert sink.text().endswith(
        'a{quantile="0.5"} NaN\na{quantile="0.9"} NaN\na{quantile="0.99"} NaN\na_sum 1001\na_count 2\n'
    )


def test_a_call_is_counted_and_timed_with_its_end() -> None:
    sink = collected()
    with metrics.call("svid", "rotate"):
        pass
    for error in (NotFound("x"), RpcError(Code.CANCELLED, "x"), SpireError("x"), ValueError("x")):
        with pytest.raises(type(error)), metrics.call("svid", "rotate"):
            raise error
    found = series(sink)
    for status, times in (("OK", 1), ("NotFound", 1), ("Canceled", 1), ("Unknown", 2)):
        assert f'spire_server_svid_rotate{{host="h",status="{status}"}} {times}' in found
        assert f'spire_server_svid_rotate_elapsed_time_count{{host="h",status="{status}"}} {times}' in found


class _Subject:
    async def work(self, number: int = 1) -> int:
        await asyncio.sleep(0)
        return number


async def test_methods_are_timed() -> None:
    sink = collected()
    subject = _Subject()
    metrics.time_methods(subject, {"work": ("work",)})
    assert await subject.work(7) == 7
    assert 'spire_server_work{host="h",status="OK"} 1' in series(sink)


@pytest.mark.parametrize(
    ("service", "method", "key"),
    [
        ("spire.api.server.agent.v1.Agent", "AttestAgent", "agent_v1_agent_attest_agent"),
        ("spire.api.server.svid.v1.SVID", "BatchNewX509SVID", "svid_v1_svid_batch_new_x509svid"),
        ("spire.api.server.svid.v1.SVID", "NewJWTSVID", "svid_v1_svid_new_jwtsvid"),
        ("spire.api.server.logger.v1.Logger", "GetLogger", "logger_get_logger"),
        ("spire.api.agent.logger.v1.Logger", "SetLogLevel", "logger_set_log_level"),
        ("spire.api.server.debug.v1.Debug", "GetInfo", "debug_v1_debug_get_info"),
        ("spire.agent.debug.v1.Debug", "GetInfo", "debug_get_info"),
        ("grpc.health.v1.Health", "Check", "health_check"),
        ("SpiffeWorkloadAPI", "FetchJWTBundles", "workload_api_fetch_jwt_bundles"),
        ("SpiffeWorkloadAPI", "FetchX509SVID", "workload_api_fetch_x509svid"),
        ("envoy.service.secret.v3.SecretDiscoveryService", "StreamSecrets", "sds_v3_stream_secrets"),
        (
            "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
            "SubscribeToX509SVIDs",
            "delegated_identity_subscribe_to_x509_svids",
        ),
    ],
)
def test_rpcs_have_spires_names(service: str, method: str, key: str) -> None:
    assert "_".join(metrics.rpc_key(service, method)) == key


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"spire_server_a_b", "spire_server_a_c", "spire_server_d"}),
        ({"metric_prefix": "x"}, {"x_a_b", "x_a_c", "x_d"}),
        ({"blocked_prefixes": ("spire_server.a",)}, {"spire_server_d"}),
        (
            {"blocked_prefixes": ("spire_server.a",), "allowed_prefixes": ("spire_server.a.b",)},
            {"spire_server_a_b", "spire_server_d"},
        ),
        # What no rule names passes, whatever else is allowed; of equal prefixes the blocked counts.
        ({"allowed_prefixes": ("spire_server.d",)}, {"spire_server_a_b", "spire_server_a_c", "spire_server_d"}),
        (
            {"allowed_prefixes": ("spire_server.d",), "blocked_prefixes": ("spire_server.d",)},
            {"spire_server_a_b", "spire_server_a_c"},
        ),
    ],
)
def test_prefixes(settings: dict[str, Any], names: set[str]) -> None:
    sink = collected(host="", **settings)
    for key in (("a", "b"), ("a", "c"), ("d",)):
        metrics.count(*key)
    assert {line.split()[0] for line in series(sink)} == names


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({}, '{host="h",one="1",two="2"}'),
        ({"enable_hostname_label": False}, '{one="1",two="2"}'),
        ({"enable_trust_domain_label": True}, '{host="h",one="1",trust_domain="example_org",two="2"}'),
        ({"blocked_labels": ("host", "two")}, '{one="1"}'),
        ({"allowed_labels": ("one", "two"), "blocked_labels": ("two",)}, '{one="1"}'),
        ({"allowed_labels": ()}, '{host="h",one="1",two="2"}'),
        ({"allowed_labels": ("three",)}, ""),
    ],
)
def test_labels(settings: dict[str, Any], labels: str) -> None:
    sink = collected(**settings)
    metrics.count("a", one="1", two="2")
    assert series(sink) == [f"spire_server_a{labels} 1"]


@given(st.text(), st.text())
def test_whatever_a_label_holds_the_text_stays_one(name: str, value: str) -> None:
    sink = Prometheus()
    sink.count(("a-b c", metric_rules.sanitized(name)), 1, (("label", value),))
    lines = sink.text().split("\n")
    assert len(lines) == 4
    assert re.fullmatch(r'[a-zA-Z0-9_:]+\{label="(?:[^"\\]|\\["\\n])*"\} 1', lines[2], re.DOTALL)


def test_series_are_limited_and_kinds_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_SERIES", 3)
    sink = Prometheus()
    for number in range(9):
        sink.count(("a",), 1, (("n", str(number)),))
        sink.sample(("b",), 1, (("n", str(number)),))
    sink.gauge(("a",), 5, (("n", "0"),))
    assert len([line for line in series(sink) if line.startswith("a{")]) == 2
    assert 'a{n="0"} 1' in series(sink)
    assert 'b_count{n="0"} 1' in series(sink)


async def test_extra_values_are_looked_up_at_each_scrape() -> None:
    numbers = iter((1.0, 2.5e20))
    sink = Prometheus(lambda: [("gauge", "process_open_fds", next(numbers))])
    assert b"process_open_fds 1\n" in (await sink.respond(Request("GET", "/metrics"))).body
    response = await sink.respond(Request("GET", "/metrics"))
    assert b"process_open_fds 2.5e+20\n" in response.body
    assert response.content_type.startswith("text/plain; version=0.0.4")


def test_memory_holds_seconds_and_tells_them_as_lines() -> None:
    now = [1_800_000_000.25]
    sink = InMemory(lambda: now[0])
    sink.gauge(("s", "g"), 2.5, (("host", "my host"),))
    sink.count(("s", "c"), 1, ())
    sink.count(("s", "c"), 1, ())
    sink.sample(("s", "t"), 1, ())
    sink.sample(("s", "t"), 3, ())
    assert list(sink.lines()) == [], "this second may get more"
    now[0] += 1
    sink.count(("s", "c"), 1, ())
    begin = "[2027-01-15 08:00:00 +0000 UTC]"
    updated = "LastUpdated: 2027-01-15 08:00:00.25 +0000 UTC"
    assert list(sink.lines()) == [
        f"{begin}[G] 's.g.my_host': 2.500",
        f"{begin}[C] 's.c': Count: 2 Sum: 2.000 {updated}",
        f"{begin}[S] 's.t': Count: 2 Min: 1.000 Mean: 2.000 Max: 3.000 Stddev: 1.414 Sum: 4.000 {updated}",
    ]


def test_memory_is_limited() -> None:
    now = [0.0]
    sink = InMemory(lambda: now[0])
    for _ in range(in_memory.RETENTION + 100):
        now[0] += 1
        sink.count(("c",), 1, ())
    assert len(sink.finished()) == in_memory.RETENTION - 1
