"""Bundle publishers (spire.plugin.server.bundlepublisher.v1): who puts the trust domain's bundle where others look."""

from __future__ import annotations

from typing import Protocol

from identity.bundles import Bundle


class BundlePublisher(Protocol):
    """Asked at each change of the bundle, and now and then: publishing what is there already is no work."""

    @property
    def name(self) -> str: ...

    async def publish(self, bundle: Bundle) -> None:
        """Raises SpireError; the server logs it and asks again."""
        ...

    async def close(self) -> None: ...
