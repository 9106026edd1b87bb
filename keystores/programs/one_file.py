"""The first code of a one-file plugin, `__main__.py` in it (ci/keystore-plugins): everything of ours is in the file.

What runs is the file that was opened here, whatever takes its path later: an upgrade does not mix versions, and the
checksum that the host compared is of what runs. Workers run from the same file (keystores.worker_command).
"""

from __future__ import annotations

import importlib
import importlib.abc
import os
import runpy
import sys
import zipfile
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

ENTRY = "@ENTRY@"
"""The program's module, with a function `main`; filled in when the file is made."""

WORKER = "--worker"
"""`FILE --worker MODULE ARGUMENT…` runs a module of the file, as `python -m MODULE ARGUMENT…` would."""


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
        if not name.endswith(tuple(EXTENSION_SUFFIXES)):
            sys.exit(f"{sys.argv[0]} has {name}, which {sys.executable} cannot load: make it anew for that Python")
        memory = os.memfd_create(name, os.MFD_CLOEXEC)
        with open(memory, "wb", closefd=False) as file:
            file.write(content)
        # The descriptor stays open: a second look at the module's path finds what was loaded.
        where = f"/proc/self/fd/{memory}"
        return spec_from_file_location(fullname, where, loader=ExtensionFileLoader(fullname, where))


def main() -> int:
    descriptor = os.open(sys.path[0], os.O_RDONLY | os.O_CLOEXEC)
    archive = sys.path[0] = f"/proc/self/fd/{descriptor}"
    sys.meta_path.insert(0, Compiled(archive))
    if sys.argv[1:2] == [WORKER] and len(sys.argv) > 2:
        del sys.argv[1]
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
        return 0
    status: int = importlib.import_module(ENTRY).main()
    return status


if __name__ == "__main__":
    sys.exit(main())
