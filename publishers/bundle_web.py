"""The bundle over HTTPS: BundlePublisher "https" sends the document, Notifier "https" an event that has it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING

from identity.bundles import Bundle
from operations.errors import ConfigurationError, InvalidArgument
from operations.logs import Logger
from operations.quoting import quote
from plugins.context import PublishingContext
from publishers import documents
from publishers.web_target import Identity, WebTarget

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

AGAIN = 600.0
"""Seconds after which the same document is sent again, so that one which was deleted there comes back."""

_EVENT_TYPE = "application/json"


class PublisherConfiguration(WebTarget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of BundlePublisher "https"."""

    method: str = "PUT"
    format: str = ""
    refresh_hint: str = ""

    def __post_init__(self) -> None:
        WebTarget.__post_init__(self)
        documents.check(self.format, self.refresh_hint)
        if self.method not in ("PUT", "POST"):
            raise InvalidArgument(f"method {quote(self.method)} is not available: use PUT or POST")


class NotifierConfiguration(WebTarget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of Notifier "https"."""


class WebPublisher:
    def __init__(self, configuration: PublisherConfiguration, identity: Identity, log: Logger) -> None:
        self._configuration = configuration
        self._identity = identity
        self._log = log
        self._sent = b""
        self._sent_at = 0.0

    @property
    def name(self) -> str:
        return "https"

    async def publish(self, bundle: Bundle) -> None:
        """Raises SpireError."""
        configuration = self._configuration
        document = documents.render(bundle, configuration.format, configuration.refresh_hint)
        digest = hashlib.sha256(document).digest()
        if digest == self._sent and time.monotonic() - self._sent_at < AGAIN:
            return
        content_type = documents.content_type(configuration.format)
        await configuration.send(configuration.method, content_type, document, self._identity)
        if digest != self._sent:
            place = configuration.target.origin
            self._log.info("Bundle sent", to=place, sequence_number=bundle.sequence_number)
        self._sent, self._sent_at = digest, time.monotonic()

    async def close(self) -> None:
        """Nothing is held."""


class WebNotifier:
    def __init__(self, configuration: NotifierConfiguration, identity: Identity) -> None:
        self._configuration = configuration
        self._identity = identity

    @property
    def name(self) -> str:
        return "https"

    async def bundle_loaded(self, bundle: Bundle) -> None:
        """Raises SpireError."""
        await self._tell("bundle_loaded", bundle)

    async def bundle_updated(self, bundle: Bundle) -> None:
        """Raises SpireError."""
        await self._tell("bundle_updated", bundle)

    async def close(self) -> None:
        """Nothing is held."""

    async def _tell(self, kind: str, bundle: Bundle) -> None:
        await self._configuration.send("POST", _EVENT_TYPE, documents.event(kind, bundle), self._identity)


async def load_publisher(configuration: PublisherConfiguration, context: PluginContext) -> WebPublisher:
    """Raises ConfigurationError."""
    await asyncio.to_thread(configuration.check_files)
    return WebPublisher(configuration, _identity(context), context.log)


async def load_notifier(configuration: NotifierConfiguration, context: PluginContext) -> WebNotifier:
    """Raises ConfigurationError."""
    await asyncio.to_thread(configuration.check_files)
    return WebNotifier(configuration, _identity(context))


def _identity(context: PluginContext) -> Identity:
    if not isinstance(context, PublishingContext):
        raise ConfigurationError("this plugin is for servers")
    return context.identity
