"""systemd itself, as the first process of namespaces of a test's own, over this machine's files, read-only.

It needs root, and a kernel with cgroups of version 2. The network is the machine's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from tests.simulators.cgroups import OWN
from tests.simulators.spire import PATIENCE, eventually

INIT: Final = "/lib/systemd/systemd"

# Runs as the first process. $1 is the folder of units, $2 one that may be written to.
_BOOT: Final = f"""
set -e
mount --make-rprivate /
mount --bind "$2" "$2"
mount -o remount,bind,ro /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs -o mode=755 tmpfs /run
umount --recursive /sys/fs/cgroup || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd/system
mount --bind "$1" /run/systemd/system
exec env -i container=spire-test PATH=/usr/sbin:/usr/bin:/sbin:/bin {INIT} --system --unit=test.target \\
  --log-target=console --log-level=info --show-status=no
"""

_UNITS: Final = {
    "test.target": "[Unit]\nRequires=dbus.socket dbus.service\n",
    "dbus.socket": "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    "dbus.service": """[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --syslog-only
""",
}


def cgroup_mount() -> Path:
    """Where version 2 of cgroups is mounted, alone or beside version 1."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise AssertionError("no cgroup2 is mounted: systemd cannot run")


@dataclass
class Machine:
    """`folder` is the one that programs in it may write to."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    groups: list[Path] = field(default_factory=list[Path])

    @property
    def units(self) -> Path:
        return self.folder / "units"

    @property
    def log(self) -> Path:
        return self.folder / "systemd.log"

    def boot(self) -> None:
        self.units.mkdir()
        for name, text in _UNITS.items():
            (self.units / name).write_text(text)
        group = cgroup_mount() / f"{OWN}-systemd"
        group.mkdir()
        self.groups.append(group)
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        namespaces = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--cgroup", "--ipc", "--uts"]
        script = ["sh", "-c", _BOOT, "sh", str(self.units), str(self.folder)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                ["sh", "-c", enter, "sh", *namespaces, *script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        eventually(self._up, "systemd and its bus")

    def _up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"systemd ended: {self.log.read_text()}"
        state = self.run("systemctl", "is-active", "dbus.service", check=False).stdout
        assert state != "failed\n", self.run("systemctl", "status", "dbus.service", check=False).stdout
        return state == "active\n"

    @property
    def first(self) -> int:
        """systemd's pid, as this side sees it."""
        assert self.process is not None
        pid = self.process.pid
        children = eventually(Path(f"/proc/{pid}/task/{pid}/children").read_text, "the first process")
        return int(children.split()[0])

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command beside systemd."""
        done = subprocess.run(
            ["nsenter", f"--target={self.first}", "--mount", "--pid", "--cgroup", "--ipc", "--uts", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def start(self, name: str, command: Sequence[str], *lines: str) -> None:
        """A service; its output goes to a file of its name in the folder."""
        output = self.folder / f"{name}.log"
        text = ["[Unit]", "DefaultDependencies=no", "[Service]", *lines]
        text += [f"StandardOutput=append:{output}", f"StandardError=append:{output}"]
        quoted = " ".join(f'"{word}"' for word in command)
        (self.units / f"{name}.service").write_text("\n".join([*text, f"ExecStart={quoted}", ""]))
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "start", f"{name}.service")

    def pid(self, name: str) -> int:
        """A service's main process, as systemd sees it."""
        return int(self.run("systemctl", "show", "--property=MainPID", "--value", f"{name}.service").stdout)

    def halt(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
        for group in self.groups:
            eventually(partial(_empty, group), "the end of all processes")
            for each in sorted(group.rglob("*/"), reverse=True):
                if each.is_dir():
                    each.rmdir()
            group.rmdir()


def _empty(group: Path) -> bool:
    return "populated 0" in (group / "cgroup.events").read_text()
