"""The collector rests while a process starts, and works when it serves."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

from operations import startup


@pytest.fixture(autouse=True)
def _collector_as_it_was() -> Generator[None, None, None]:
    startup.finished()  # whatever a command in a test before has begun
    gc.unfreeze()
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_the_collector_rests_but_has_a_bound() -> None:
    startup.begun()
    assert gc.isenabled()
    assert 100_000 <= gc.get_threshold()[0] <= 1_000_000


def test_the_collector_works_again_and_leaves_what_the_start_made() -> None:
    usual = gc.get_threshold()
    frozen = gc.get_freeze_count()
    startup.begun()
    startup.finished()
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() > frozen
