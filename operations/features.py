"""Feature flags: what SPIRE has under development, and turns on by name in `experimental.feature_flags`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from operations.checks import Checks

WIT_SVID = "wit-svid"
"""WIT-SVIDs: their authorities, APIs and commands."""

_KNOWN = frozenset({WIT_SVID, "i_am_a_test_flag"})
"""SPIRE's second one does nothing, there as here."""


def read(flags: Sequence[str], checks: Checks) -> frozenset[str]:
    """The flags that are set, by their names. Unknown ones become a fault of the key, in SPIRE's words."""
    unknown = sorted(set(flags) - _KNOWN)
    reason = f"error loading feature flags: unknown feature flag(s): [{' '.join(unknown)}]"
    checks.require(not unknown, reason, "experimental", "feature_flags")
    return frozenset(flags) & _KNOWN


def warnings(flags: Collection[str]) -> Sequence[str]:
    """A line for the log for each flag that is set, in SPIRE's words."""
    return [f'Developer feature flag "{flag}" has been enabled' for flag in sorted(set(flags))]
