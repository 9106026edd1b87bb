"""The metrics that plugins of servers and agents emit (spire.hostservice.common.metrics.v1), for a sink of the program.

Without a sink they are taken and dropped, as SPIRE does where no telemetry is configured.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf import empty_pb2

from generated.spire.hostservice.common.metrics.v1 import metrics_pb2 as api
from operations.metrics import Emitter, Key, Labels
from plugins.external.loading import HostService
from transport.peer import Peer
from transport.router import Context
from transport.status import Code, RpcError

MOST_PARTS: Final = 16
LONGEST_TEXT: Final = 256
"""What a key or the labels of one value may have: collectors keep every combination that they ever saw."""


def service(sinks: Sequence[Emitter]) -> HostService:
    """For `sinks`, where the program's own metrics go too; samples of time are in milliseconds.

    Values without a kind (EmitKey) are dropped in any case: most collectors have no place for them.
    """
    handlers = _Handlers(sinks)
    return api.DESCRIPTOR.services_by_name["Metrics"], {
        "SetGauge": handlers.set_gauge,
        "EmitKey": handlers.emit_key,
        "IncrCounter": handlers.incr_counter,
        "AddSample": handlers.add_sample,
        "MeasureSince": handlers.measure_since,
    }


class _Handlers:
    def __init__(self, sinks: Sequence[Emitter]) -> None:
        self._sinks = sinks

    async def set_gauge(self, request: api.SetGaugeRequest, _peer: Peer, _context: Context) -> empty_pb2.Empty:
        key, labels = _key(request.key), _labels(request.labels)
        for sink in self._sinks:
            sink.gauge(key, request.val, labels)
        return empty_pb2.Empty()

    async def emit_key(self, _request: api.EmitKeyRequest, _peer: Peer, _context: Context) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    async def incr_counter(self, request: api.IncrCounterRequest, _peer: Peer, _context: Context) -> empty_pb2.Empty:
        key, labels = _key(request.key), _labels(request.labels)
        if not request.val >= 0:
            raise RpcError(Code.INVALID_ARGUMENT, f"a counter only grows: {request.val} cannot be added")
        for sink in self._sinks:
            sink.count(key, request.val, labels)
        return empty_pb2.Empty()

    async def add_sample(self, request: api.AddSampleRequest, _peer: Peer, _context: Context) -> empty_pb2.Empty:
        self._sample(request.key, request.val, request.labels)
        return empty_pb2.Empty()

    async def measure_since(self, request: api.MeasureSinceRequest, _peer: Peer, _context: Context) -> empty_pb2.Empty:
        self._sample(request.key, (time.time_ns() - request.time) / 1e6, request.labels)
        return empty_pb2.Empty()

    def _sample(self, parts: Sequence[str], value: float, pairs: Sequence[api.Label]) -> None:
        key, labels = _key(parts), _labels(pairs)
        for sink in self._sinks:
            sink.sample(key, value, labels)


def _key(parts: Sequence[str]) -> Key:
    """Raises RpcError."""
    _check("key", len(parts), parts)
    if not parts:
        raise RpcError(Code.INVALID_ARGUMENT, "a metric needs a key")
    return tuple(parts)


def _labels(labels: Sequence[api.Label]) -> Labels:
    """Raises RpcError."""
    _check("labels", len(labels), (text for label in labels for text in (label.name, label.value)))
    return tuple((label.name, label.value) for label in labels)


def _check(what: str, count: int, texts: Iterable[str]) -> None:
    if count > MOST_PARTS or any(len(text) > LONGEST_TEXT for text in texts):
        raise RpcError(
            Code.INVALID_ARGUMENT,
            f"the {what} of a metric may have {MOST_PARTS} parts of {LONGEST_TEXT} characters",
        )
