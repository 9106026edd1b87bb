from __future__ import annotations

from agent.backoff import Backoff, BatchSize
from agent.rotation import RotationStrategy, proven_by

HOUR = 3600.0


def test_renews_around_half_the_life() -> None:
    for _ in range(200):
        moment = RotationStrategy().rotate_at(0, HOUR)
        assert 0.45 * HOUR <= moment <= 0.55 * HOUR


def test_availability_target_renews_earlier() -> None:
    for _ in range(200):
        moment = RotationStrategy(availability_target=24 * HOUR).rotate_at(0, 48 * HOUR)
        assert 0.45 * 48 * HOUR - 600 <= moment <= 24 * HOUR


def test_availability_target_beyond_the_life_is_ignored() -> None:
    moment = RotationStrategy(availability_target=24 * HOUR).rotate_at(0, 30 * HOUR)
    assert 0.45 * 30 * HOUR <= moment <= 0.55 * 30 * HOUR


def test_an_expired_certificate_is_due_at_once() -> None:
    assert RotationStrategy().rotate_at(100, 90) == 90


def test_what_comes_expired_is_not_asked_for_again_at_once() -> None:
    assert RotationStrategy().of_new(100, 90) == 101
    assert RotationStrategy().of_new(100, 103) >= 101


def test_an_interval_comes_before_the_renewal_and_never_puts_it_off() -> None:
    moments = [proven_by(5000, 1000, 600) for _ in range(100)]
    assert all(1540 <= moment <= 1660 for moment in moments)
    assert len(set(moments)) > 1
    assert proven_by(1100, 1000, 600) == 1100


def test_waits_grow_to_the_ceiling_and_start_anew() -> None:
    backoff = Backoff(1, ceiling=4)
    waits = [backoff.next() or 0.0 for _ in range(8)]
    assert 0.5 <= waits[0] <= 1.5
    assert 2 <= waits[-1] <= 6
    backoff.reset()
    assert (backoff.next() or 0.0) <= 1.5


def test_the_budget_ends_the_tries() -> None:
    now = 0.0
    backoff = Backoff(5, budget=60, clock=lambda: now)
    tries = 0
    while (wait := backoff.next()) is not None:
        now += wait
        tries += 1
    assert 3 <= tries <= 9
    assert now <= 60


def test_batches_shrink_with_failures_and_recover() -> None:
    size = BatchSize(500)
    for _ in range(20):
        size.failed()
    assert size.value == 1
    for _ in range(20):
        size.succeeded()
    assert size.value == 500
