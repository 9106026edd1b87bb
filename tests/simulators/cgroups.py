"""Real cgroups with the names that container engines and the kubelet give theirs. Root only."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from attestors import processes
from attestors.containers import proc_files
from transport.peer import Process

PATIENCE = 60.0
_OWN_MOUNT = "spire-test-cgroup2-"
OWN = f"spire-test-{os.getpid()}"
"""What tests put theirs below: others may be running beside them."""


@dataclass(frozen=True)
class Cgroup:
    """`path` is as /proc/PID/cgroup has it."""

    path: str
    folder: Path

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    @contextmanager
    def running(self, command: Sequence[str] = ("sleep", "600")) -> Generator[Process, None, None]:
        """A process in the cgroup, ended with the block."""
        with subprocess.Popen(command) as child:
            try:
                self.add(child.pid)
                yield Process(child.pid, os.getuid(), os.getgid(), processes.started(child.pid))
            finally:
                child.kill()


@contextmanager
def cgroup(path: str) -> Generator[Cgroup, None, None]:
    """A cgroup of version 2, removed with the block, and so are those above it that were made for it."""
    with _hierarchy() as (seen, root):
        folder = root / path.strip("/")
        made = [each for each in (folder, *folder.parents) if each.is_relative_to(root) and not each.exists()]
        while not folder.exists():
            with suppress(FileNotFoundError):  # of another test's end, which took one above along
                folder.mkdir(parents=True)
        try:
            yield Cgroup(f"{seen}/{path.strip('/')}", folder)
        finally:
            for each in made:
                remove(each)


@contextmanager
def _hierarchy() -> Generator[tuple[str, Path], None, None]:
    """The cgroups of version 2: the path of the one that is mounted, and where. For the block only, if need be."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        mount = proc_files.mounts(line)[0]
        place = os.fsdecode(line.split(b" ")[4])
        if mount.type == b"cgroup2" and _OWN_MOUNT not in place:
            yield os.fsdecode(mount.root).rstrip("/"), Path(place)
            return
    with tempfile.TemporaryDirectory(prefix=_OWN_MOUNT) as folder:
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", folder], check=True)
        try:
            yield "", Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def remove(folder: Path) -> None:
    """Ended processes leave their cgroup a moment later."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
