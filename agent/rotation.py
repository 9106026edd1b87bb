"""When a certificate is due for renewal: at half its life, or while `availability_target` of it is left."""

from __future__ import annotations

import random
from dataclasses import dataclass

from agent.backoff import jittered

_HALF_LIFE_JITTER = 0.1
_TARGET_JITTER = 600.0
_SHORTEST_GRACE = 12 * 3600.0
_SHORTEST_LIFE = 1.0


@dataclass(frozen=True, slots=True)
class RotationStrategy:
    """`availability_target` is in seconds; 0 leaves only the rule of half the life.

    A target that leaves less than twelve hours of a certificate's life is ignored for it, as SPIRE does, since
    renewals would come too often.
    """

    availability_target: float = 0.0

    def of_new(self, now: float, expires: float) -> float:
        """The moment to renew what was issued just now; never at once, though clocks may differ by its whole life."""
        return max(self.rotate_at(now, expires), now + _SHORTEST_LIFE)

    def rotate_at(self, begins: float, expires: float) -> float:
        """The moment to renew what lives from `begins` to `expires`; all are Unix seconds.

        The moment has jitter, so that what was issued together is not renewed together.
        """
        lifetime = max(0.0, expires - begins)
        half = lifetime / 2
        moment = expires - half * random.uniform(1 - _HALF_LIFE_JITTER, 1 + _HALF_LIFE_JITTER)  # noqa: S311 - jitter
        if self.availability_target and lifetime - self.availability_target > _SHORTEST_GRACE:
            spread = random.uniform(0, _TARGET_JITTER)  # noqa: S311 - jitter
            moment = min(moment, expires - self.availability_target - spread)
        return moment


def proven_by(renewal: float, attested: float, interval: float) -> float:
    """The moment to attest anew: `interval` seconds after the last time, with jitter, or at the renewal before that."""
    return min(renewal, attested + jittered(interval))
