"""The real Podman, with storage, settings and a cgroup of its own. Root only.

Its service runs in a mount namespace where /sys/fs/cgroup is of version 2, whatever it is on the machine: crun takes no
mixture. Containers have this machine's /usr and programs, and its network; nothing is pulled from anywhere.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.simulators import cgroups, spire

IMAGE = "localhost/spire-test/web:1"
IMAGES_LABEL = "org.example.image"

# What machines that run tests in containers of their own withhold: raising limits, sessions' keyrings, cgroups' v1.
_SETTINGS = """
[containers]
cgroups = "enabled"
default_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]
keyring = false
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
"""
_SERVICE = """
[ -z "$1" ] || echo $$ > "$1/cgroup.procs"
[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
shift
cd /
exec "$@"
"""
# A user without a range of users of their own can give files to nobody else.
_STORAGE = """
[storage]
driver = "vfs"
graphroot = "{0}/storage"
runroot = "{0}/run"
[storage.options]
ignore_chown_errors = "true"
"""
_LINKS = ("bin", "lib", "lib64", "sbin")
_FOLDERS = ("dev", "etc", "proc", "run", "sys", "tmp", "usr")


@dataclass(frozen=True)
class Engine:
    """A running `podman system service`. `parent` is the cgroup above its containers'."""

    path: str
    parent: str

    @property
    def socket(self) -> str:
        return f"unix://{self.path}"

    def ask(self, *arguments: str, timeout: float = spire.PATIENCE, check: bool = True) -> str:
        """What a command of Podman's prints, its errors too."""
        done = spire.command("podman", "--remote", "--url", self.socket, *arguments, timeout=timeout)
        assert not check or done.returncode == 0, f"podman {arguments}: {done.stdout}{done.stderr}"
        return (done.stdout + done.stderr).strip()

    def run(
        self, *command: str, labels: Mapping[str, str], environment: Mapping[str, str], volumes: Mapping[str, str]
    ) -> str:
        """What the command prints in a container of its own. `volumes` has this machine's paths by the container's.

        Commands of the programs under test are there.
        """
        programs = {each: each for each in (sys.prefix, sys.base_prefix, str(spire.ROOT)) if each != "/usr"}
        words = self._words(labels, environment, {**programs, **volumes})
        return self.ask("run", "--rm", *words, IMAGE, *command, timeout=2 * spire.PATIENCE, check=False)

    def start(self, *command: str, labels: Mapping[str, str]) -> str:
        """The id of a container that runs until `remove`."""
        return self.ask("run", "--detach", *self._words(labels, {}, {}), IMAGE, *command).splitlines()[-1]

    def remove(self, container_id: str) -> None:
        self.ask("rm", "--force", "--time", "0", container_id)

    def _words(
        self, labels: Mapping[str, str], environment: Mapping[str, str], volumes: Mapping[str, str]
    ) -> list[str]:
        # Without `privileged`, crun raises a limit for the sake of the program that guards devices; in a network of the
        # container's own, it would have to bring up the loopback.
        words = ["--privileged", "--network", "host", "--cgroup-parent", self.parent]
        words += [f"--label={name}={value}" for name, value in labels.items()]
        words += [f"--env={name}={value}" for name, value in environment.items()]
        words += [f"--volume={theirs}:{ours}" for ours, theirs in volumes.items()]
        return [*words, "--volume=/usr:/usr:ro"]


@contextmanager
def podman(user: int | None = None) -> Generator[Engine, None, None]:
    """Root's, or that of a user who has a part of the cgroups, as systemd gives users theirs.

    Fails, with what Podman says, where there is none or it cannot run.
    """
    # A short path: sockets of containers lie below it.
    with tempfile.TemporaryDirectory(prefix="pod-", ignore_cleanup_errors=True) as name, _parent(user) as parent:
        home = Path(name) / str(user or 0)
        home.mkdir()
        (home / "containers.conf").write_text(_SETTINGS)
        (home / "storage.conf").write_text(_STORAGE.format(home))
        if user is not None:
            Path(name).chmod(0o755)
            os.chown(home, user, user)
        engine = Engine(f"{home}/podman.sock", parent.path)
        service = spire.Program(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-ec", _SERVICE, "sh"),
                *_as(user, parent),
                *("podman", "--tmpdir", f"{home}/tmp", "system", "service", "--time", "0", engine.socket),
            ],
            Path(name) / "log",
            {
                "CONTAINERS_CONF": f"{home}/containers.conf",
                "CONTAINERS_STORAGE_CONF": f"{home}/storage.conf",
                "HOME": str(home),
                "XDG_RUNTIME_DIR": str(home),
            },
        )
        service.start()
        try:
            spire.eventually(lambda: _serves(service, engine), "Podman's service")
            _import_image(engine, Path(name))
            yield engine
            engine.ask("rm", "--all", "--force", "--time", "0")
        finally:
            service.end()


def _as(user: int | None, parent: cgroups.Cgroup) -> list[str]:
    """The cgroup that the service enters, if any, and what makes it the user's."""
    if user is None:
        return [""]
    # Who moves processes needs the right to do so where they come from.
    below = parent.folder / "podman.service"
    below.mkdir()
    for each in (parent.folder, below):
        for owned in (each, *each.glob("cgroup.*")):
            os.chown(owned, user, user)
    return [str(below), "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


@contextmanager
def _parent(user: int | None) -> Generator[cgroups.Cgroup, None, None]:
    name = f"spire-test-{uuid.uuid4().hex[:8]}"
    users = "" if user is None else f"/user.slice/user-{user}.slice/user@{user}.service"
    with cgroups.cgroup(name + users) as group:
        try:
            yield group
        finally:
            # Podman and conmon stay, with cgroups of their own.
            (group.folder / "cgroup.kill").write_text("1")
            for each in sorted(group.folder.glob("**/"), reverse=True):
                if each != group.folder:
                    cgroups.remove(each)


def _serves(service: spire.Program, engine: Engine) -> bool:
    assert service.running, f"podman ended: {service.output()}"
    return os.path.exists(engine.path)  # noqa: PTH110


def _import_image(engine: Engine, folder: Path) -> None:
    archive = folder / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for name in _FOLDERS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name in _LINKS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(entry)
    engine.ask("import", "--change", f"LABEL {IMAGES_LABEL}=base", str(archive), IMAGE)
