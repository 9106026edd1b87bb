"""A TPM's clock and counters (TPM 2.0 Library, part 1, 36): what cannot go back, unless somebody rolled it back."""

from __future__ import annotations

import msgspec

from operations.errors import Refused


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """TPMS_CLOCK_INFO: `clock` in ms while the TPM had power, `reset_count` of TPM Resets, `restart_count` of
    TPM Restarts and Resumes since. `safe` says that no later time was ever reported."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


def same_boot(a: Clock, b: Clock) -> bool:
    """Whether neither reset nor restart lies between.

    A restart is also what follows hibernation, and begins with fresh registers.
    """
    return (a.reset_count, a.restart_count) == (b.reset_count, b.restart_count)


def require_later(now: Clock, before: Clock) -> None:
    """Raise Refused unless `now` can come after `before` on one TPM.

    After a loss of power the clock goes on from a time that was saved: up to 70 minutes earlier by the specification,
    days earlier with the software TPM of a virtual machine, which soon calls that `safe` all the same. So after a reset
    the reset count alone says which came first. TPM2_Clear begins all three anew, and so does a copy of an old state.
    """
    if now.reset_count < before.reset_count:
        raise _went_back("reset count", now.reset_count, before.reset_count)
    if now.reset_count == before.reset_count:
        if now.restart_count < before.restart_count:
            raise _went_back("restart count", now.restart_count, before.restart_count)
        if now.clock < before.clock:
            raise _went_back("clock", now.clock, before.clock)


def _went_back(what: str, now: int, before: int) -> Refused:
    return Refused(
        f"the TPM's {what} went back from {before} to {now}: it was cleared, or an old state of it was restored; "
        "if that was meant, evict the agent to accept it anew"
    )
