"""What of an agent is counted and timed from outside, by SPIRE's names. Nothing is where nobody collects metrics."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

from agent.cache import X509Cache
from operations import metrics
from plugins.keymanager import KeyManager
from transport.peer import Peer
from transport.router import After, Before, Context, Method
from transport.status import Code, RpcError

_KEY_MANAGER: Final = {
    "generate": ("agent_key_manager", "generate_key"),
    "get": ("agent_key_manager", "get_key"),
    "list": ("agent_key_manager", "get_keys"),
}

_APIS: Final = {
    "SpiffeWorkloadAPI": "workload_api",
    "envoy.service.secret.v3.SecretDiscoveryService": "sds_api",
    "spire.api.agent.delegatedidentity.v1.DelegatedIdentity": "delegated_identity_api",
    "spire.agent.debug.v1.Debug": "debug_api",
    "spire.api.agent.logger.v1.Logger": "logger_api",
    "spire.keys.v1.Keys": "keys_api",
}
"""By service; health is none that workloads are connected to."""


def time_key_manager(keys: KeyManager) -> None:
    metrics.time_methods(keys, _KEY_MANAGER)


class Calls:
    """Hooks of a router: how many calls each API has under way, and how they end. The agent's own do not count."""

    def __init__(self, before: Before | None = None) -> None:
        """`before` is asked first about each call."""
        self._before = before
        self._under_way: dict[str, int] = {}

    async def before(self, method: Method, peer: Peer, context: Context) -> None:
        api = _APIS.get(method.service)
        if api is not None and metrics.on():
            context.attributes[_COUNTED] = api
            metrics.count(api, "connection")
            self._change(api, 1)
        if self._before is not None:
            await self._before(method, peer, context)

    def after(self, method: Method, peer: Peer, context: Context, error: RpcError | None, seconds: float) -> None:
        api = context.attributes.get(_COUNTED)
        if api is not None:
            self._change(api, -1)
        if error is not None and error.code is Code.CANCELLED and api == "sds_api":
            error = None  # Envoys end their streams so; to SPIRE too that is no failure
        if metrics.on() and (peer.process is None or peer.process.pid != os.getpid()):
            metrics.called(("rpc", *metrics.rpc_key(method.service, method.name)), seconds, error)

    def _change(self, api: str, by: int) -> None:
        self._under_way[api] = self._under_way.get(api, 0) + by
        metrics.gauge(api, "connections", value=self._under_way[api])


_COUNTED: Final = "counted"


def hooks(before: Before | None = None) -> tuple[Before, After]:
    """The hooks for one router."""
    calls = Calls(before)
    return calls.before, calls.after


def tell_first_update(seconds: float) -> None:
    """How long a delegate or a broker waited for a workload's first X509-SVIDs."""
    key = ("delegated_identity_api", "subscribe_x509_svids", "first_update", "elapsed_time")
    metrics.sample(*key, value=seconds * 1000)


def tell_sync(cache: X509Cache, *, bundles: int, missing: int, stale: int, dropped: Collection[str]) -> None:
    """One synchronisation: entries that were new, had changed, and are gone."""
    if not metrics.on():
        return
    metrics.gauge("sync_bundles_total", value=bundles)
    metrics.gauge("sync_entries_total", value=cache.entry_count)
    metrics.gauge("sync_entries_missing", value=missing)
    metrics.gauge("sync_entries_stale", value=stale)
    metrics.gauge("sync_entries_dropped", value=len(dropped))
    metrics.count("lru_cache_entry_add", by=missing)
    metrics.count("lru_cache_entry_update", by=stale)
    metrics.count("lru_cache_entry_remove", by=len(dropped))
    metrics.gauge("lru_cache_record_map_size", value=cache.entry_count, svid_type="X509")
    metrics.gauge("lru_cache_svid_map_size", value=cache.svid_count, svid_type="X509")
