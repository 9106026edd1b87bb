"""What a plugin gets from the program that loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from operations.logs import Logger

if TYPE_CHECKING:
    from plugins.external.loading import ExternalPlugins
    from transport.tls import InProcessIdentity


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What a plugin gets besides its own configuration. `data_dir` is the program's, where it has one.

    `external` loads the external ones; without it there are none.
    """

    trust_domain: str
    data_dir: str | None
    log: Logger
    external: ExternalPlugins | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class PublishingContext(PluginContext):
    """What a bundle publisher or notifier gets besides: the server's own X509-SVID, as it is at each time."""

    identity: Callable[[], InProcessIdentity]
