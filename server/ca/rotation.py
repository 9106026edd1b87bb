"""When an authority is prepared, activated and left: two slots that take turns.

The next authority is prepared, and so published, at half of the current one's life, and activated in its last sixth;
for long-lived ones at most 30 and 7 days before the end. In between, its public half reaches every verifier.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from operations import logs, metrics
from operations.errors import Refused, TemporarilyUnavailable
from server.ca.authority import Authority
from server.ca.ca_certificate import BACKDATE
from server.ca.journal import Status

_DAY = 24 * 3600
_PREPARATION_CAP = 30 * _DAY
_ACTIVATION_CAP = 7 * _DAY

_ACTIVATED = {
    "X509 CA": ("ca", "manager", "x509_ca", "activate"),
    "JWT key": ("manager", "jwt_key", "activate"),
    "WIT key": ("manager", "wit_key", "activate"),
}
"""Metrics, by the kind of authority. That they do not match is SPIRE's doing."""

A = TypeVar("A", bound=Authority)

_log = logs.get("ca_manager")


@dataclass(frozen=True, slots=True)
class Slots(Generic[A]):
    """The authority that signs, the prepared next one, and the one before, each in slot A or B."""

    current: A | None = None
    next: A | None = None
    old: A | None = None

    def can_sign(self, now: float) -> bool:
        return self.current is not None and valid(self.current, now)

    def with_status(self) -> Iterator[tuple[A, Status]]:
        """What there is, as the journal has it."""
        for authority, status in ((self.current, Status.ACTIVE), (self.next, Status.PREPARED), (self.old, Status.OLD)):
            if authority is not None:
                yield authority, status


def restored(found: Sequence[tuple[Status, A | None]]) -> Slots[A]:
    """The slots of a journal's records, None being unusable. A prepared authority stands in for a lost active one."""
    by_status = dict(found)
    current = by_status.get(Status.ACTIVE)
    following = by_status.get(Status.PREPARED)
    if current is None:
        current, following = following, None
    return Slots(current, following, by_status.get(Status.OLD))


class Rotation(Generic[A]):
    """Keeps one kind of authority going. `slots` changes only after what it names was saved.

    `prepare` makes an authority in the named slot: its key, its certificate, its place in the bundle. `save` writes the
    journal. A crash between any two steps leaves, at worst, a published authority that nobody signs with. Whoever
    rotates, the clock or an operator, does so alone.
    """

    def __init__(
        self,
        kind: str,
        prepare: Callable[[str], Awaitable[A]],
        save: Callable[[Slots[A]], Awaitable[None]],
        *,
        journal: asyncio.Lock,
        activated: Callable[[A], None] = lambda _: None,
    ) -> None:
        """`journal` is shared by all that `save` the same one; `activated` hears of each authority that signs now."""
        self.kind = kind
        self._prepare = prepare
        self._save = save
        self._journal = journal
        self._activated = activated
        self._turn = asyncio.Lock()
        self.slots: Slots[A] = Slots()

    async def advance(self, now: float) -> None:
        """Do what is due. Raises SpireError, and leaves the slots as they are."""
        async with self._turn:
            await self._advance(now)

    async def _advance(self, now: float) -> None:
        current = self.slots.current
        following = self.slots.next
        if following is not None and not valid(following, now):
            following = None  # a machine that slept through its whole life
        if current is None or (following is None and not valid(current, now)):
            current = await self._prepared(_other_than(current or self.slots.old))
            await self._switch(Slots(current))
            self._tell_activated(current)
        if following is None and now > preparation_threshold(current):
            following = await self._prepare_next(current)
        if following is not None and now > activation_threshold(current):
            await self._activate_next(current, following)

    async def prepare(self) -> A:
        """Make the next authority now, in the place of one that is prepared already, and of the old one.

        Raises SpireError, TemporarilyUnavailable where there is none that signs yet.
        """
        async with self._turn:
            return await self._prepare_next(self._current())

    async def activate(self, authority_id: str) -> A:
        """Sign with the prepared authority of this id from now on. Raises SpireError, Refused for any other."""
        async with self._turn:
            following = self.slots.next
            if following is None or following.authority_id != authority_id:
                raise Refused("unexpected authority ID")
            await self._activate_next(self._current(), following)
            return following

    @asynccontextmanager
    async def at_rest(self) -> AsyncGenerator[None]:
        """While it is held no authority is prepared or activated, so that no key is about to be used."""
        async with self._turn:
            yield

    async def replace(self, distrusted: Callable[[A], bool]) -> None:
        """Sign with none that is distrusted, now or later.

        Raises SpireError, and TemporarilyUnavailable where a new one is distrusted as well: then the current one stays.
        """
        async with self._turn:
            current = self._current()
            if self.slots.next is not None and distrusted(self.slots.next):
                await self._switch(Slots(current, None, self.slots.old))
            if not distrusted(current):
                return
            following = self.slots.next or await self._prepare_next(current)
            if distrusted(following):
                raise TemporarilyUnavailable(f"the new {self.kind} is distrusted as the one before")
            await self._activate_next(current, following)

    def tell_active(self) -> None:
        """Log the authority that a restart goes on with."""
        if self.slots.current is not None:
            self._tell_activated(self.slots.current)

    def _current(self) -> A:
        if self.slots.current is None:
            raise TemporarilyUnavailable("server is initializing")
        return self.slots.current

    async def _prepare_next(self, current: A) -> A:
        """In the slot that is not the current one's, where the key of the old, or of an earlier next one, gives way."""
        if self.slots.next is not None:
            # The journal forgets it first: what a restart would sign with must have its key.
            await self._switch(Slots(current, None, self.slots.old))
        following = await self._prepared(_other_than(current))
        await self._switch(Slots(current, following))
        return following

    async def _activate_next(self, current: A, following: A) -> None:
        await self._switch(Slots(following, None, current))
        self._tell_activated(following)

    async def _prepared(self, slot: str) -> A:
        _log.debug(f"Preparing {self.kind}", slot=slot)
        authority = await self._prepare(slot)
        _log.info(f"{self.kind} prepared", **authority.log_fields())
        return authority

    async def _switch(self, slots: Slots[A]) -> None:
        async with self._journal:
            await self._save(slots)
            self.slots = slots

    def _tell_activated(self, authority: A) -> None:
        if self.kind in _ACTIVATED:
            metrics.count(*_ACTIVATED[self.kind])
        _log.info(f"{self.kind} activated", **authority.log_fields())
        self._activated(authority)


def valid(authority: Authority, now: float) -> bool:
    """Whether verifiers accept what it signs now. One from the future was made before the clock was put right."""
    return authority.issued_at - BACKDATE <= now < authority.not_after


def preparation_threshold(authority: Authority) -> float:
    """When its successor is prepared, in unix seconds."""
    lifetime = authority.not_after - authority.issued_at
    return authority.not_after - min(lifetime / 2, _PREPARATION_CAP)


def activation_threshold(authority: Authority) -> float:
    """When its successor takes over, in unix seconds."""
    lifetime = authority.not_after - authority.issued_at
    return authority.not_after - min(lifetime / 6, _ACTIVATION_CAP)


def _other_than(authority: Authority | None) -> str:
    return "B" if authority is not None and authority.slot == "A" else "A"
