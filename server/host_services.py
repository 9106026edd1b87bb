"""What the server offers its external plugins (spire.hostservice.*): its identity, its agents, a place for metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from identity.spiffeid import TrustDomain
from plugins.external.loading import HostService
from server.nodes import AttestedNodes
from server.own_svid import ServerSvid
from server.trust import TrustBundles
from transport.status import Code, RpcError


@dataclass(frozen=True, slots=True)
class Parts:
    """What the services rest on."""

    trust_domain: TrustDomain
    nodes: AttestedNodes
    bundles: TrustBundles
    svid: ServerSvid


class HostServices:
    """Plugins are loaded before the parts are there: calls are refused until `begin`."""

    def __init__(self) -> None:
        self._parts: Parts | None = None

    def begin(self, parts: Parts) -> None:
        self._parts = parts

    def parts(self, service: str) -> Parts:
        """Raises RpcError before there are any."""
        if self._parts is None:
            raise RpcError(Code.FAILED_PRECONDITION, f"{service} host service has not been initialized")
        return self._parts

    def services(self) -> Sequence[HostService]:
        from server.rpc import host  # for those who have external plugins

        return host.services(self)
