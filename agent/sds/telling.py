"""What the log says of one client, so that it cannot fill it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from generated.envoy.service.discovery.v3 import discovery_pb2
from operations import logs
from transport.peer import Peer

SERVICE: Final = "SDS.v3"
_MOST_NAMES: Final = 10
_LONGEST: Final = 256

_log = logs.get("endpoints")


class Telling:
    """One call's lines. What its client says of a response is written once: it may go on saying it without end."""

    def __init__(self, method: str, peer: Peer, **fields: object) -> None:
        pid = peer.process.pid if peer.process else 0
        self._log = _log.bind(service=SERVICE, method=method, pid=pid, **fields)
        self._method = method
        self._complaints: set[str] = set()

    def received(self, names: Collection[str], *, nonce: str, **fields: str) -> None:
        if self._log.enabled("debug"):
            shown = {name: value[:_LONGEST] for name, value in {**fields, "nonce": nonce}.items()}
            self._log.debug(f"Received {self._method} request", resource_names=listed(names), **shown)

    def sending(self, count: int, **fields: str) -> None:
        self._complaints.clear()
        self._log.debug(f"Sending {self._method} response", count=count, **fields)

    def failed(self, message: str, error: Exception) -> None:
        self._log.error(message, error=str(error)[:_LONGEST])

    def rejected(
        self, request: discovery_pb2.DiscoveryRequest | discovery_pb2.DeltaDiscoveryRequest, names: Collection[str]
    ) -> None:
        """Only where the request says that something was."""
        message = "Envoy reported errors applying secrets"
        if request.HasField("error_detail") and self._first(message):
            self._log.error(message, resource_names=listed(names), error=request.error_detail.message[:_LONGEST])

    def rolled_back(self, version: str, expected: str) -> None:
        message = "Client rejected expected version and rolled back"
        if self._first(message):
            self._log.error(message, version_info=version[:_LONGEST], expect=expected)

    def stale(self, nonce: str, expected: str) -> None:
        message = "Received unexpected nonce; ignoring request"
        if self._first(message):
            self._log.warning(message, nonce=nonce[:_LONGEST], expect=expected)

    def _first(self, complaint: str) -> bool:
        first = complaint not in self._complaints
        self._complaints.add(complaint)
        return first


def listed(names: Collection[str]) -> list[str]:
    """Some of the names, each cut short."""
    shown = [name[:_LONGEST] for name in sorted(names)[:_MOST_NAMES]]
    return [*shown, "…"] if len(names) > _MOST_NAMES else shown
