"""StatsD and DogStatsD: the lines that Go's libraries send, and collectors that are not there."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations import datagrams, metrics, telemetry
from operations.checks import Checks
from operations.datagrams import Address, Datagrams
from operations.errors import ConfigurationErrors, InvalidArgument
from operations.hcl import parse
from operations.metric_rules import Ruled, Sink
from operations.sections import HealthChecks, Telemetry
from operations.sections import Statsd as Section
from operations.statsd import STATSD_BYTES, DogStatsd, Put, Statsd


def lines_of(make: Callable[[Put], Sink], *, host: str = "my.host", **settings: Any) -> list[bytes]:
    """What a sink sends of one value of each kind."""
    lines: list[bytes] = []
    rules = Telemetry(**settings)
    ruled = Ruled(make(lines.append), rules, service="spire_server", trust_domain="example.org", host=host)
    metrics.use([ruled])
    try:
        metrics.count("server_ca", "sign", "x509_svid", by=2)
        metrics.gauge("manager", "x509_ca", "rotate", "ttl", value=86399.0859375, trust_domain_id="example.org")
        metrics.gauge("uptime_in_ms", value=1795844164)
        metrics.called(("svid", "rotate"), 0.0015)
    finally:
        metrics.use(())
    return lines


def test_lines_are_those_of_go_metrics() -> None:
    """Expectations as a SPIRE 1.16 in Go sent them, with the trust domain as a label."""
    assert lines_of(Statsd, enable_trust_domain_label=True) == [
        b"spire_server.server_ca.sign.x509_svid.example_org.my.host:2.000000|c\n",
        b"spire_server.manager.x509_ca.rotate.ttl.example_org.example_org.my.host:86399.085938|g\n",
        b"spire_server.uptime_in_ms.example_org.my.host:1795844164.000000|g\n",
        b"spire_server.svid.rotate.OK.example_org.my.host:1.000000|c\n",
        b"spire_server.svid.rotate.elapsed_time.OK.example_org.my.host:1.500000|ms\n",
    ]


def test_lines_are_those_of_datadog() -> None:
    made = lines_of(lambda put: DogStatsd(put, {}), enable_trust_domain_label=True)
    assert made == [
        b"spire_server.server_ca.sign.x509_svid:2|c|#trust_domain:example_org,host:my.host\n",
        (
            b"spire_server.manager.x509_ca.rotate.ttl:86399.0859375|g|#"
            b"trust_domain_id:example_org,trust_domain:example_org,host:my.host\n"
        ),
        b"spire_server.uptime_in_ms:1795844164|g|#trust_domain:example_org,host:my.host\n",
        b"spire_server.svid.rotate:1|c|#status:OK,trust_domain:example_org,host:my.host\n",
        b"spire_server.svid.rotate.elapsed_time:1.500000|ms|#status:OK,trust_domain:example_org,host:my.host\n",
    ]


def test_prefix_and_labels_hold_for_these_sinks_too() -> None:
    settings: dict[str, Any] = {"metric_prefix": "x", "enable_hostname_label": False, "blocked_prefixes": ("x.svid",)}
    assert lines_of(Statsd, **settings) == [
        b"x.server_ca.sign.x509_svid:2.000000|c\n",
        b"x.manager.x509_ca.rotate.ttl.example_org:86399.085938|g\n",
        b"x.uptime_in_ms:1795844164.000000|g\n",
    ]
    assert lines_of(lambda put: DogStatsd(put, {}), **settings, blocked_labels=("trust_domain_id",))[1:] == [
        b"x.manager.x509_ca.rotate.ttl:86399.0859375|g\n",
        b"x.uptime_in_ms:1795844164|g\n",
    ]


def test_datadogs_variables_are_tags_of_everything() -> None:
    lines: list[bytes] = []
    DogStatsd(lines.append, {"DD_ENV": "prod", "DD_VERSION": "1", "PATH": "x"}).count(("a:b",), 1, (("one", ""),))
    assert lines == [b"a_b:1|c|#env:prod,version:1,one\n"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, b"0"), (1e21, b"1" + b"0" * 21), (1e-7, b"0.0000001"), (2.5, b"2.5")]
)
def test_gauges_of_datadog_have_no_exponent(value: float, text: bytes) -> None:
    lines: list[bytes] = []
    DogStatsd(lines.append, {}).gauge(("a",), value, ())
    assert lines == [b"a:" + text + b"|g\n"]


@given(st.text(), st.text())
def test_whatever_a_label_holds_a_line_stays_one(name: str, value: str) -> None:
    rules = Telemetry()
    lines: list[bytes] = []
    sinks: list[Sink] = [Statsd(lines.append), DogStatsd(lines.append, {})]
    for sink in sinks:
        lines.clear()
        Ruled(sink, rules, service="s", trust_domain="t", host="").count(("k",), 1, ((name, value),))
        assert lines[0].count(b"\n") == 1
        assert lines[0].endswith(b"\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [("localhost:8125", "localhost:8125"), ("[::1]:1", "[::1]:1"), (":9", "localhost:9"), ("10.0.0.1:65535", None)],
)
def test_addresses(text: str, found: str | None) -> None:
    assert str(Address.parse(text)) == (found or text)


def test_datadogs_addresses_may_lack_a_port_or_be_a_socket() -> None:
    assert str(Address.parse("agent", default_port=8125, unix=True)) == "agent:8125"
    assert str(Address.parse("[::1]", default_port=8125, unix=True)) == "[::1]:8125"
    assert str(Address.parse("unix:///run/dd.sock", unix=True)) == "unix:///run/dd.sock"


@pytest.mark.parametrize(
    "text", ["", "host", "host:0", "host:65536", "host:x", "::1:8125", "h:1:2", "unix:///a", "h:²"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="use "):
        Address.parse(text)


def test_faults_of_addresses_name_their_block() -> None:
    body = parse(
        'telemetry {\n  Statsd = [ { address = "host" } ]\n  DogStatsd = [ { address = "h:0" } ]\n}', "spire.conf"
    )
    checks = Checks(body, "server")
    settings = Telemetry(statsd=(Section(address="host"), Section()), dog_statsd=(Section(address="h:0"),))
    telemetry.check(settings, HealthChecks(), checks)
    with pytest.raises(ConfigurationErrors) as caught:
        checks.done()
    texts = [str(problem) for problem in caught.value.problems]
    assert [text.split(": ")[0] for text in texts] == ["spire.conf:2", "spire.conf:2", "spire.conf:3"]
    assert "Statsd.address" in texts[0]
    assert "must be configured" in texts[1]
    assert "DogStatsd.address" in texts[2]


@asynccontextmanager
async def running(sender: Datagrams) -> AsyncGenerator[None, None]:
    task = asyncio.create_task(sender.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def collector(port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", port))
    made.settimeout(30)
    return made


async def test_lines_travel_together_in_packets_of_a_size() -> None:
    with collector() as sock:
        sender = Datagrams("Statsd", Address("localhost", sock.getsockname()[1]), STATSD_BYTES)
        sent = [b"%d:1.000000|c\n" % number for number in range(200)]
        for line in sent:
            sender.put(line)
        received = b""
        async with running(sender):
            while len(received) < sum(map(len, sent)):
                packet = await asyncio.to_thread(sock.recv, 65536)
                assert len(packet) <= STATSD_BYTES
                assert packet.endswith(b"\n")
                received += packet
    assert received == b"".join(sent)


async def test_what_waits_goes_out_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("s")
        sock.settimeout(30)
        sender = Datagrams("DogStatsd", Address(path="s"), 8192)
        async with running(sender):
            await asyncio.sleep(datagrams.FLUSH * 1.5)
            sender.put(b"last\n")
        assert sock.recv(100) == b"last\n"


async def test_a_collector_that_is_gone_is_told_of_once_and_used_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "RETRY", 0.3)
    caplog.set_level(logging.INFO)
    with collector() as sock:
        port = sock.getsockname()[1]
    sender = Datagrams("Statsd", Address("127.0.0.1", port), STATSD_BYTES)

    async def until(count: int, text: str) -> None:
        async with asyncio.timeout(60):
            while sum(text in record.getMessage() for record in caplog.records) < count:
                sender.put(b"a:1.000000|c\n")
                await asyncio.sleep(0.05)

    async with running(sender):
        await until(1, "do not reach")
        for _ in range(30):
            sender.put(b"a:1.000000|c\n")
            await asyncio.sleep(0.05)
        assert sum("do not reach" in record.getMessage() for record in caplog.records) == 1
        with collector(port) as sock:
            await until(1, "are taken again")
            assert (await asyncio.to_thread(sock.recv, 65536)).startswith(b"a:1.000000|c\n")
        await until(2, "do not reach")


async def test_a_name_without_an_address_costs_nothing_but_what_was_measured() -> None:
    sender = Datagrams("Statsd", Address("nowhere.invalid", 8125), STATSD_BYTES)
    async with running(sender):
        async with asyncio.timeout(60):
            while not sender.gone:  # noqa: ASYNC110 - what is waited for is the sender's own state
                await asyncio.sleep(0.05)
        for number in range(datagrams.MOST_LINES + 5):
            sender.put(b"%d:1|c\n" % number)
        assert sender.waiting == datagrams.MOST_LINES


async def test_several_sinks_of_each_kind_get_everything() -> None:
    with collector() as one, collector() as two, collector() as three:
        at = [Section(address=f"127.0.0.1:{each.getsockname()[1]}") for each in (one, two, three)]
        settings = Telemetry(statsd=(at[0], at[1]), dog_statsd=(at[2],), enable_hostname_label=False)
        sinks = telemetry.open_sinks(settings, service="spire_agent", trust_domain="example.org")
        assert sinks
        task = asyncio.create_task(sinks.run("example.org"))
        try:
            packets = [await asyncio.to_thread(sock.recv, 65536) for sock in (one, two, three)]
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    assert packets[0].startswith(b"spire_agent.started.")
    assert packets[0] == packets[1]
    assert packets[2].startswith(b"spire_agent.started:1|g|#version:")
