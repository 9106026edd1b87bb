from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keystores.pkcs11.pin import Pin
from tests.simulators.faulty_hsm import FaultyHsm
from tests.simulators.softhsm import SoftHsm


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftHsm]:
    """A SoftHSM with one token, whose PIN no test before this one had refused. Nobody is asked for it."""
    monkeypatch.setattr("keystores.pkcs11.prompt.TERMINAL", str(tmp_path / "no terminal"))
    Pin.refused_here.clear()
    with SoftHsm.create(tmp_path / "hsm").installed() as installed:
        yield installed


@pytest.fixture
def faults(hsm: SoftHsm) -> Iterator[FaultyHsm]:
    """The script of faults for a module that is this SoftHSM."""
    with FaultyHsm.create(hsm.folder / "faults").installed() as installed:
        yield installed
