"""How the agent stands with its server: by which bundle it knows it, and when that is fetched anew.

A bundle that is stored counts until the server proves to have keys that it does not know. A server met for the first
time may be given a better bundle by the source at once. One that has been known is waited for, since somebody may stand
between; with `rebootstrap_mode` auto or always the bundle is dropped when the delay is over, and the source is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum

from agent.bootstrap import TrustBundleSource, bootstrap_bundle
from agent.denial import REBOOTSTRAP, MustRebootstrap
from agent.storage import Bootstrapping, Storage, Use
from operations import duration, logs, metrics
from operations.errors import ConfigurationError

_BUDGET = 60.0
_LONG_BUDGET = 24 * 3600.0

NOT_SUPPORTED = (
    "rebootstrapping was asked for, but this node cannot attest again with its proof: use rebootstrap_mode never or "
    "auto, or a node attestor and a server configuration that let it attest again"
)

_log = logs.get("TrustBundleSources")


class Mode(Enum):
    """`rebootstrap_mode`: `auto` is `always` where the node can attest again, and `never` elsewhere."""

    NEVER = "never"
    AUTO = "auto"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Rebootstrap:
    """`delay` is in seconds."""

    mode: Mode = Mode.NEVER
    delay: float = 600.0


class Trust:
    def __init__(
        self,
        source: TrustBundleSource,
        storage: Storage,
        settings: Rebootstrap | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.source = source
        self._storage = storage
        self._settings = settings or Rebootstrap()
        self._clock = clock
        self._now = storage.state.bootstrapping
        if self._now.use is Use.UNSPECIFIED:
            self._now = replace(self._now, use=Use.REBOOTSTRAP if storage.state.bundle else Use.BOOTSTRAP)
        self._tell()

    @property
    def is_first_contact(self) -> bool:
        return self._now.use is not Use.REBOOTSTRAP

    @property
    def budget(self) -> float:
        """Seconds that a start may take, retries and all."""
        return _BUDGET if self._settings.mode is Mode.NEVER else _LONG_BUDGET

    def require_reattestable(self, reattestable: bool) -> None:
        """Raises ConfigurationError where rebootstrapping is a must and cannot be; turns it off where it is not."""
        if reattestable or self._settings.mode is Mode.NEVER:
            return
        if self._settings.mode is Mode.ALWAYS:
            raise ConfigurationError(NOT_SUPPORTED)
        _log.warning("Rebootstrapping is off: this node cannot attest again with its proof")
        self._settings = replace(self._settings, mode=Mode.NEVER)

    async def bundle(self) -> tuple[bytes, ...] | None:
        """The authorities (DER) that the source gives now, None to trust whichever server answers.

        Raises InvalidArgument and TemporarilyUnavailable.
        """
        started = self._now.started or self._clock()
        await self._become(replace(self._now, started=started, attempts=self._now.attempts + 1))
        what = "attestation" if self.is_first_contact else "reattestation"
        _log.info(f"Server {what} attempt", attempt=self._now.attempts, source=self.source.origin)
        return await bootstrap_bundle(self.source, self._now)

    async def established(self) -> None:
        """The server is the one it should be."""
        if self._now.started:
            took = duration.text(timedelta(seconds=round(max(0.0, self._clock() - self._now.started))))
            _log.info("The server is trusted", after=took, attempts=self._now.attempts)
        await self._become(Bootstrapping(Use.REBOOTSTRAP))

    async def confirmed(self) -> None:
        """The server is known still; whatever stood in its place meanwhile does not count any more."""
        if self._now.started:
            await self.established()

    async def meets_stranger_at_start(self) -> None:
        """A server that no known authority vouches for: have the source asked, at once or when it is time."""
        if self.is_first_contact:
            _log.info("Trust Bundle and Server don't agree, bootstrapping again")
        elif self._settings.mode is not Mode.NEVER and await self._is_due():
            _log.warning("Trust Bundle and Server don't agree, rebootstrapping")
            await self._keep(lambda: self._storage.store_bundle(()))

    async def tolerates_stranger(self) -> bool:
        """Whether an agent that runs goes on although its server is another one.

        Raises MustRebootstrap when it is to end, so that its next start asks the source.
        """
        if self._settings.mode is Mode.NEVER:
            return False
        if not await self._is_due():
            return True
        _log.warning("Trust Bundle and Server don't agree, rebootstrapping")
        afresh = Bootstrapping(Use.REBOOTSTRAP, started=self._clock())
        await self._keep(lambda: self._storage.distrust(afresh))
        self._now = afresh
        self._tell()
        raise MustRebootstrap(REBOOTSTRAP)

    async def _is_due(self) -> bool:
        if not self._now.started:
            await self._become(replace(self._now, started=self._clock()))
        left = self._settings.delay - (self._clock() - self._now.started)
        if left <= 0:
            return True
        time_left = duration.text(timedelta(seconds=round(left)))
        _log.info("Trust Bundle and Server don't agree, ignoring for now", time_left=time_left)
        return False

    async def _become(self, bootstrapping: Bootstrapping) -> None:
        self._now = bootstrapping
        self._tell()
        await self._keep(lambda: self._storage.store_bootstrapping(bootstrapping))

    async def _keep(self, write: Callable[[], None]) -> None:
        """On a full disk the agent goes on with what it knows in memory."""
        try:
            await asyncio.to_thread(write)
        except OSError as error:
            _log.error("Could not store how far the bootstrap has come", error=error)

    def _tell(self) -> None:
        mode = "bootstrap" if self.is_first_contact else "rebootstrap"
        metrics.gauge("bootstrapped", value=int(not self._now.started))
        metrics.gauge("bootstrap_seconds", value=self._now.started, mode=mode)
        metrics.gauge("bootstrap_attempts", value=self._now.attempts, mode=mode)
