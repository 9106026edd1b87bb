"""When an authority is prepared, activated and left: two slots that take turns.

The next authority is prepared, and so published, at half of the current one's life, and activated in its last sixth;
for long-lived ones at most 30 and 7 days before the end. In between, its public half reaches every verifier.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from operations import logs, metrics
from server.ca import signing
from server.ca.authority import BACKDATE, Authority
from server.ca.journal import Status

_DAY = 24 * 3600
_PREPARATION_CAP = 30 * _DAY
_ACTIVATION_CAP = 7 * _DAY

_ACTIVATED = {
    "X509 CA": ("ca", "manager", "x509_ca", "activate"),
    "JWT key": ("manager", "jwt_key", "activate"),
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
    journal. A crash between any two steps leaves, at worst, a published authority that nobody signs with.
    """

    def __init__(
        self,
        kind: str,
        prepare: Callable[[str], Awaitable[A]],
        save: Callable[[Slots[A]], Awaitable[None]],
    ) -> None:
        self.kind = kind
        self._prepare = prepare
        self._save = save
        self.slots: Slots[A] = Slots()

    async def advance(self, now: float) -> None:
        """Do what is due. Raises SpireError, and leaves the slots as they are."""
        current = self.slots.current
        following = self.slots.next
        if following is not None and not valid(following, now):
            following = None  # a machine that slept through its whole life
        if current is None or (following is None and not valid(current, now)):
            current = await self._prepared(_other_than(current or self.slots.old))
            await self._switch(Slots(current))
            self._tell("activated", current)
        if following is None and now > preparation_threshold(current):
            # The slot's old authority ends here: its key gives way.
            following = await self._prepared(_other_than(current))
            await self._switch(Slots(current, following))
        if following is not None and now > activation_threshold(current):
            await self._switch(Slots(following, None, current))
            self._tell("activated", following)

    def tell_active(self) -> None:
        """Log the authority that a restart goes on with."""
        if self.slots.current is not None:
            self._tell("activated", self.slots.current)

    async def _prepared(self, slot: str) -> A:
        _log.debug(f"Preparing {self.kind}", slot=slot)
        authority = await self._prepare(slot)
        self._tell("prepared", authority)
        return authority

    async def _switch(self, slots: Slots[A]) -> None:
        await self._save(slots)
        self.slots = slots

    def _tell(self, event: str, authority: A) -> None:
        if event == "activated" and self.kind in _ACTIVATED:
            metrics.count(*_ACTIVATED[self.kind])
        _log.info(
            f"{self.kind} {event}",
            slot=authority.slot,
            issued_at=signing.utc(authority.issued_at),
            expiration=signing.utc(authority.not_after),
            local_authority_id=authority.authority_id,
        )


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
