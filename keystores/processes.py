"""How a key store starts a process of its own: the command line, and the environment that makes it run this very code.

Everything that starts one asks here, so that there is one place for programs that are packed into one file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def command(module: str, *arguments: str) -> list[str]:
    """Runs a module by its name, from the same places as this process and never from its working directory."""
    return [sys.executable, "-P", "-S", "-m", module, *arguments]


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with the changes, and with its places to import from."""
    return {**os.environ, **changes, "PYTHONPATH": os.pathsep.join(_places(sys.path))}


def _places(path: Sequence[str]) -> list[str]:
    # An empty entry is the working directory, of now: it may be another one later.
    return list(dict.fromkeys(str(Path(entry or ".").absolute()) for entry in path))
