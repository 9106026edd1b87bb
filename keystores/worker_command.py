"""How a module of ours is run as a process of its own, by whatever runs now: an installed program or a one-file plugin."""

from __future__ import annotations

import os
import sys
import zipimport


def worker_command(module: str) -> list[str]:
    """The words that run `module` as `python -m` would; the worker's own follow.

    A one-file plugin's workers run from the very file that was opened at its start, which only it holds: start them
    while this process lives.
    """
    loader = globals()["__spec__"].loader
    if isinstance(loader, zipimport.zipimporter):
        archive = loader.archive.replace("/proc/self/", f"/proc/{os.getpid()}/")
        return [sys.executable, "-I", archive, "--worker", module]
    return [sys.executable, "-P", "-m", module]
