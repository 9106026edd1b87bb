"""What is made once for all processes of a test run, because it is dear: programs that are compiled."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder with what `make` puts there, in whichever process needs it first; the others wait for it.

    When `make` fails, the next one tries again.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, ready = base / name, base / f"{name}.ready"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            ready.touch()
    return folder


def go_program(factory: pytest.TempPathFactory, source: Path, package: str = ".") -> str:
    """A Go program, built from the module in `source`. A Go toolchain that is missing is a failure."""
    name = f"go-{source.name}"

    def build(folder: Path) -> None:
        subprocess.run(["go", "build", "-o", str(folder / "program"), package], cwd=source, check=True)

    return str(made_once(factory, name, build) / "program")
