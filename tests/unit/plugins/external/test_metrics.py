"""The metrics service as a plugin reaches it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from generated.spire.hostservice.common.metrics.v1 import metrics_pb2 as api
from plugins.external import metrics
from transport.client import Channel
from transport.router import Router
from transport.server import Server
from transport.status import Code, RpcError

LABELS = [api.Label(name="a", value="b")]
FOUND = (("a", "b"),)


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[str, ...], float, tuple[tuple[str, str], ...]]] = []

    def count(self, key: tuple[str, ...], by: float, labels: tuple[tuple[str, str], ...]) -> None:
        self.seen.append(("count", key, by, labels))

    def gauge(self, key: tuple[str, ...], value: float, labels: tuple[tuple[str, str], ...]) -> None:
        self.seen.append(("gauge", key, value, labels))

    def sample(self, key: tuple[str, ...], value: float, labels: tuple[tuple[str, str], ...]) -> None:
        self.seen.append(("sample", key, value, labels))


class Plugin:
    def __init__(self, channel: Channel, recorder: Recorder) -> None:
        self._channel = channel
        self.seen = recorder.seen

    async def call(self, request: Message) -> None:
        method = request.DESCRIPTOR.name.removesuffix("Request")
        await self._channel.unary(f"/spire.hostservice.common.metrics.v1.Metrics/{method}", request, Empty, timeout=30)


@pytest.fixture
async def plugin(tmp_path: Path) -> AsyncIterator[Plugin]:
    recorder = Recorder()
    router = Router()
    router.add(*metrics.service([recorder]))
    server = Server(router)
    await server.listen_unix(str(tmp_path / "host.sock"), mode=0o600)
    async with Channel.unix(str(tmp_path / "host.sock")) as channel:
        yield Plugin(channel, recorder)
    await server.drain(1)


async def test_what_a_plugin_emits_reaches_the_sink(plugin: Plugin) -> None:
    await plugin.call(api.SetGaugeRequest(key=["x", "y"], val=0.5, labels=LABELS))
    await plugin.call(api.IncrCounterRequest(key=["x"], val=2, labels=LABELS))
    await plugin.call(api.AddSampleRequest(key=["x"], val=1.5))
    await plugin.call(api.EmitKeyRequest(key=["x"], val=1))
    assert plugin.seen == [
        ("gauge", ("x", "y"), 0.5, FOUND),
        ("count", ("x",), 2.0, FOUND),
        ("sample", ("x",), 1.5, ()),
    ]


async def test_time_is_in_milliseconds(plugin: Plugin) -> None:
    await plugin.call(api.MeasureSinceRequest(key=["x"], time=time.time_ns() - 5_000_000_000, labels=LABELS))
    ((kind, key, value, labels),) = plugin.seen
    assert (kind, key, labels) == ("sample", ("x",), FOUND)
    assert 5_000 <= value < 60_000


@pytest.mark.parametrize(
    "request_",
    [
        api.SetGaugeRequest(val=1),
        api.IncrCounterRequest(key=["x"], val=-1),
        api.IncrCounterRequest(key=["x"], val=float("nan")),
        api.AddSampleRequest(key=["x"] * 17),
        api.AddSampleRequest(key=["x" * 257]),
        api.SetGaugeRequest(key=["x"], labels=LABELS * 17),
        api.MeasureSinceRequest(key=["x"], labels=[api.Label(name="x", value="y" * 257)]),
    ],
    ids=str,
)
async def test_what_no_collector_could_keep(plugin: Plugin, request_: Message) -> None:
    with pytest.raises(RpcError) as error:
        await plugin.call(request_)
    assert error.value.code is Code.INVALID_ARGUMENT
    assert plugin.seen == []
