"""A TPM's clock and counters never go back, save for what the specification lets them."""

from __future__ import annotations

from typing import Final

import msgspec
import pytest

from attestors.tpm.verification.clock import Clock, require_later, same_boot
from operations.errors import Refused

NOW: Final = Clock(clock=5000, reset_count=3, restart_count=2, safe=True)


@pytest.mark.parametrize(
    "later",
    [
        NOW,
        msgspec.structs.replace(NOW, clock=5001),
        msgspec.structs.replace(NOW, clock=5001, restart_count=3),
        Clock(clock=6000, reset_count=4, restart_count=0, safe=True),
        Clock(clock=10, reset_count=4, restart_count=0, safe=False),
        Clock(clock=10, reset_count=4, restart_count=0, safe=True),
    ],
    ids=["same", "on", "restart", "reset", "power loss", "virtual machine killed"],
)
def test_a_clock_that_goes_on(later: Clock) -> None:
    require_later(later, NOW)


@pytest.mark.parametrize(
    ("earlier", "reason"),
    [
        (msgspec.structs.replace(NOW, clock=4999), "clock went back from 5000 to 4999"),
        (msgspec.structs.replace(NOW, clock=4999, safe=False), "clock went back"),
        (msgspec.structs.replace(NOW, clock=9000, restart_count=1), "restart count went back from 2 to 1"),
        (Clock(clock=9000, reset_count=2, restart_count=9, safe=True), "reset count went back from 3 to 2"),
        (Clock(clock=0, reset_count=0, restart_count=0, safe=False), r"was cleared.*evict the agent"),
    ],
)
def test_a_clock_that_went_back(earlier: Clock, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        require_later(earlier, NOW)


def test_one_boot() -> None:
    assert same_boot(NOW, msgspec.structs.replace(NOW, clock=9999, safe=False))
    assert not same_boot(NOW, msgspec.structs.replace(NOW, reset_count=4))
    assert not same_boot(NOW, msgspec.structs.replace(NOW, restart_count=3))
