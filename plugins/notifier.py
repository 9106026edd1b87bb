"""Notifiers (spire.plugin.server.notifier.v1): who hears of the trust domain's bundle."""

from __future__ import annotations

from typing import Protocol

from identity.bundles import Bundle


class Notifier(Protocol):
    @property
    def name(self) -> str: ...

    async def bundle_loaded(self, bundle: Bundle) -> None:
        """Told once, before the server serves. Raises SpireError, which keeps the server from starting."""
        ...

    async def bundle_updated(self, bundle: Bundle) -> None:
        """Told of each change. Raises SpireError, which is logged."""
        ...

    async def close(self) -> None: ...
