"""Whether the server can do its work: for gRPC's health service, and in its parts for those who ask over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.types import bundle_pb2 as types_pb2
from operations.errors import PermanentlyUnusable, SpireError, TemporarilyUnavailable
from operations.health import INTERVAL, Check, failing
from operations.logs import Logger
from server.ca.certificate_authority import CertificateAuthority
from server.datastore.store import DataStore
from transport.client import Channel

WATCH_INTERVAL = 5.0
"""Seconds between two looks of a watcher."""

MOST_FAILED_ROTATIONS = 10
"""In a row, until the authorities count as broken, if one should have been replaced by then.

SPIRE does not wait for that. But whoever restarts a server for it takes away an authority that signs for hours yet,
when its key is in memory and the upstream authority that would sign another is away.
"""

GET_BUNDLE = "/spire.api.server.bundle.v1.Bundle/GetBundle"


class Health:
    """`probe` says why the server is not healthy, or None; it may raise SpireError."""

    def __init__(self, probe: Callable[[], Awaitable[str | None]], log: Logger) -> None:
        self._probe = probe
        self._log = log

    async def serving(self) -> bool:
        try:
            reason = await self._probe()
        except SpireError as error:
            self._log.warning("Health check failed", reason="unable to fetch bundle", error=error)
            return False
        if reason is not None:
            self._log.warning("Health check failed", reason=reason)
        return reason is None

    async def changes(self) -> AsyncGenerator[bool, None]:
        """The state now, then each change of it."""
        last: bool | None = None
        while True:
            serving = await self.serving()
            if serving is not last:
                last = serving
                yield serving
            await asyncio.sleep(WATCH_INTERVAL)


def parts(store: DataStore, authority: CertificateAuthority, socket_path: str) -> Mapping[str, Check]:
    """The checks of the server's parts, by SPIRE's names."""

    async def rotates() -> None:
        if authority.failed_rotations > MOST_FAILED_ROTATIONS and authority.overdue:
            raise PermanentlyUnusable("rotations exceed the threshold number of failures")

    async def answers() -> None:
        channel = Channel.unix(socket_path)
        try:
            await channel.unary(GET_BUNDLE, bundle_pb2.GetBundleRequest(), types_pb2.Bundle, timeout=INTERVAL)
        except SpireError as error:
            raise TemporarilyUnavailable(f"unable to fetch bundle: {error}") from error
        finally:
            await channel.close()

    return {
        "catalog.datastore": failing("list_bundle_err")(lambda: store.list_bundles(page_size=1)),
        "server": failing("get_bundle_err")(answers),
        "server.ca": failing("sign_x509_svid_err")(authority.probe),
        "server.ca.rotator": failing("rotation_err")(rotates),
    }
