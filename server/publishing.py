"""Telling others of the trust domain's own bundle: bundle publishers, and notifiers.

Each has a task of its own, so that a slow one holds nobody up. What they are told is the newest bundle: a burst of
changes is one, and what could not be told is not queued but told as it is when they can be reached again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress

from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations import logs
from operations.errors import PermanentlyUnusable, SpireError, TemporarilyUnavailable
from operations.logs import Logger
from plugins.bundlepublisher import BundlePublisher
from plugins.notifier import Notifier
from server.datastore.records import Changes
from server.datastore.store import DataStore
from server.trust import TrustBundles
from transport.status import RpcError

INTERVAL = 30.0
"""Seconds after which publishers are asked again without a change, as in SPIRE."""

SETTLING = 0.2
"""Seconds in which changes become one."""

DEADLINE = 65.0
"""Seconds that one call may take; built-in and external plugins have shorter ones of their own."""

FIRST_RETRY = 1.0
LAST_RETRY = 60.0
REMINDER = 3600.0
"""Seconds until the same failure is told again."""

Read = Callable[[], Awaitable[Bundle]]
Tell = Callable[[Bundle], Awaitable[None]]


class Publishing:
    """Made once plugins are loaded; `loaded` comes before the server serves, and `tasks` with it."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        store: DataStore,
        bundles: TrustBundles,
        publishers: Sequence[BundlePublisher],
        notifiers: Sequence[Notifier],
    ) -> None:
        self._trust_domain = trust_domain
        self._bundles = bundles
        self._publishers = publishers
        self._notifiers = notifiers
        self._log = logs.get("ca_manager")  # notifiers are its business in SPIRE, too
        log = logs.get("bundle_publishing")
        self._followers: list[_Follower] = [
            _Follower(self._read, each.publish, _Lines(log, _PUBLISHER, {"BundlePublisher": each.name}))
            for each in publishers
        ]
        if publishers or notifiers:
            store.subscribe(self._changed)

    async def loaded(self) -> None:
        """Tell the notifiers which bundle the server begins with. Raises SpireError when one of them says no."""
        if not self._notifiers:
            return
        bundle = await self._read()
        faults = [
            error
            for error in await asyncio.gather(*(self._load(each, bundle) for each in self._notifiers))
            if error is not None
        ]
        if faults:
            texts = "; ".join(map(str, faults))
            raise PermanentlyUnusable(f"one or more notifiers returned an error: {texts}") from faults[0]
        for each in self._notifiers:
            fields = {"notifier": each.name, "event": "bundle updated"}
            lines = _Lines(self._log, _NOTIFIER, fields)
            self._followers.append(_Follower(self._read, each.bundle_updated, lines, told=bundle))

    def tasks(self) -> Sequence[Coroutine[None, None, None]]:
        return [each.run() for each in self._followers]

    async def close(self) -> None:
        plugins: Sequence[BundlePublisher | Notifier] = (*self._publishers, *self._notifiers)
        for each in plugins:
            await each.close()

    async def _load(self, notifier: Notifier, bundle: Bundle) -> SpireError | None:
        fields = {"notifier": notifier.name, "event": "bundle loaded"}
        try:
            await _in_time(notifier.bundle_loaded(bundle))
        except SpireError as error:
            self._log.error("Notifier failed to handle event", error=error, **fields)
            return error
        self._log.debug("Notifier handled event", **fields)
        return None

    async def _read(self) -> Bundle:
        bundle = await self._bundles.get(self._trust_domain)
        if bundle is None:
            raise TemporarilyUnavailable("trust domain bundle is missing")
        return bundle

    def _changed(self, changes: Changes) -> None:
        if self._trust_domain.name in changes.bundles:
            for each in self._followers:
                each.changed()


class _Follower:
    """One who is told of the newest bundle, until it is known there.

    With `told`, the bundle that it knows, it hears of changes only; without, also now and then.
    """

    def __init__(self, read: Read, tell: Tell, lines: _Lines, *, told: Bundle | None = None) -> None:
        self._read = read
        self._tell = tell
        self._lines = lines
        self._told = told
        self._only_changes = told is not None
        self._change = asyncio.Event()

    def changed(self) -> None:
        self._change.set()

    async def run(self) -> None:
        """Until cancelled."""
        wait = 0.0
        while True:
            if wait:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._change.wait()
                await asyncio.sleep(SETTLING)
            self._change.clear()
            wait = await self._once(wait)

    async def _once(self, waited: float) -> float:
        """The seconds until the next time."""
        try:
            bundle = await self._read()
            if self._only_changes and bundle == self._told:
                return INTERVAL
            await _in_time(self._tell(bundle))
        except SpireError as error:
            again = self._lines.failed(error)
            return FIRST_RETRY if again == 1 else min(LAST_RETRY, max(waited, FIRST_RETRY) * 2)
        self._told = bundle
        self._lines.works()
        return INTERVAL


class _Words:
    def __init__(self, failed: str, works: str, again: str, *, serious: bool) -> None:
        self.failed, self.works, self.again, self.serious = failed, works, again, serious


_PUBLISHER = _Words("Failed to publish bundle", "Bundle published", "Bundle is published again", serious=True)
_NOTIFIER = _Words(
    "Notifier failed to handle event", "Notifier handled event", "Notifier handles events again", serious=False
)


class _Lines:
    """What the log says: when failures begin, when another kind of them comes, now and then, and when they end."""

    def __init__(self, log: Logger, words: _Words, fields: Mapping[str, str]) -> None:
        self._log = log
        self._words = words
        self._fields = fields
        self._kind: object = None
        self._told_at = 0.0
        self._failures = 0

    def failed(self, error: SpireError) -> int:
        """How many failures there were by now, one after the other."""
        self._failures += 1
        now = time.monotonic()
        kind = (type(error), error.code if isinstance(error, RpcError) else None)
        if kind != self._kind or now - self._told_at >= REMINDER:
            tell = self._log.error if self._words.serious else self._log.warning
            tell(self._words.failed, error=error, failures=self._failures, **self._fields)
            self._kind, self._told_at = kind, now
        return self._failures

    def works(self) -> None:
        if self._failures:
            self._log.info(self._words.again, failures=self._failures, **self._fields)
        self._log.debug(self._words.works, **self._fields)
        self._kind, self._failures = None, 0


async def _in_time(call: Awaitable[None]) -> None:
    """Raises TemporarilyUnavailable after the deadline, and what the call raises."""
    try:
        async with asyncio.timeout(DEADLINE):
            await call
    except TimeoutError as error:
        raise TemporarilyUnavailable(f"no answer within {DEADLINE:g} s") from error
