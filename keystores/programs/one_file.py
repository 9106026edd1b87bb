"""The first code of a one-file plugin, `__main__.py` in it (ci/keystore-plugins): everything of ours is in the file.

What runs is a sealed copy in memory, whatever happens to the file later: an upgrade does not mix versions, and nothing
is unpacked that somebody could change. Workers are given the same copy to import from (keystores.processes).
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.abc
import os
import sys
import zipfile
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

ENTRY = "@ENTRY@"
"""The program's module, with a function `main`; filled in when the file is made."""


class Compiled(importlib.abc.MetaPathFinder):
    """Loads our compiled modules out of the archive."""

    def __init__(self, archive: str) -> None:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if name.endswith(".so")]
            self._modules = {name.partition(".")[0].replace("/", "."): (name, opened.read(name)) for name in names}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._modules:
            return None
        name, content = self._modules[fullname]
        if f".{name.partition('.')[2]}" not in EXTENSION_SUFFIXES:
            sys.exit(f"{sys.argv[0]} has {name}, which {sys.executable} cannot load: make it anew for that Python")
        # The copy stays: a second look at the module's path finds what was loaded.
        where = in_memory(name, content)
        return spec_from_file_location(fullname, where, loader=ExtensionFileLoader(fullname, where))


def in_memory(name: str, content: bytes) -> str:
    """The path of a file that has no place in the file system and is never changed, while this process lives.

    By our number, not /proc/self: to a worker that is another process.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def main() -> int:
    with open(sys.path[0], "rb") as file:  # noqa: PTH123 - pathlib is imported later, from where it belongs
        archive = sys.path[0] = in_memory("spire-keystore", file.read())
    sys.meta_path.insert(0, Compiled(archive))
    try:
        status: int = importlib.import_module(ENTRY).main()
    except ModuleNotFoundError as error:
        # Its first line names an interpreter; another one may have been named, or been upgraded.
        print(f"{sys.argv[0]}: {sys.executable} lacks {error.name}, which this file needs beside it", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
