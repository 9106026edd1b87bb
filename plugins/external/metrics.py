"""The metrics that plugins of servers and agents emit: taken and dropped, as nothing here passes metrics on."""

from __future__ import annotations

from google.protobuf import empty_pb2
from google.protobuf.message import Message

from generated.spire.hostservice.common.metrics.v1 import metrics_pb2
from plugins.external.loading import HostService
from transport.peer import Peer
from transport.router import Context


def service() -> HostService:
    described = metrics_pb2.DESCRIPTOR.services_by_name["Metrics"]
    return described, dict.fromkeys(described.methods_by_name, _drop)


async def _drop(_request: Message, _peer: Peer, _context: Context) -> empty_pb2.Empty:
    return empty_pb2.Empty()
