"""The first code of a one-file plugin, `__main__.py` in it (ci/keystore-plugins): everything of ours is in the file.

What runs is the file that was opened here, whatever takes its path later: an upgrade does not mix versions, and the
checksum that the host compared is of what runs. Its workers are given the same file to import from
(keystores.processes).
"""

from __future__ import annotations

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
    """Loads our compiled modules out of the file, from memory: nothing is unpacked that somebody could change."""

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
        memory = os.memfd_create(name, os.MFD_CLOEXEC)
        with open(memory, "wb", closefd=False) as file:
            file.write(content)
        # The descriptor stays open: a second look at the module's path finds what was loaded.
        where = f"/proc/self/fd/{memory}"
        return spec_from_file_location(fullname, where, loader=ExtensionFileLoader(fullname, where))


def main() -> int:
    descriptor = os.open(sys.path[0], os.O_RDONLY | os.O_CLOEXEC)
    # By our number, not /proc/self: to a worker that is another process.
    archive = sys.path[0] = f"/proc/{os.getpid()}/fd/{descriptor}"
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
