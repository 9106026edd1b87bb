"""Debian's PostgreSQL with a cluster of its own, on a Unix socket.

The server refuses to run as root, so tests that do run it as another user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from tests.simulators.spire import eventually

USER = "spire"
PASSWORD = "open sesame's"
_RUN_AS = "nobody"


def programs() -> Path:
    """The folder of the newest server programs. A missing PostgreSQL is a failure."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    assert found, "PostgreSQL is missing: install Debian's package postgresql (ci/packages does)"
    return found[-1].parent


@dataclass
class Cluster:
    """A cluster in `folder`, which also holds its socket and its log."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict[str, str])
    process: subprocess.Popen[bytes] | None = None

    def own_folder(self) -> None:
        """Give the folder to the user that the server runs as."""
        self.folder.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(self.folder, _RUN_AS, _RUN_AS_GROUP)

    def create(self) -> None:
        self.own_folder()
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        # Peers are trusted on the socket, and must give a password over TCP.
        options = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}", f"--username={USER}"]
        done = subprocess.run(
            [*_unprivileged(), str(programs() / "initdb"), "-D", str(self.data), *options, *_INITDB],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd="/",
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def port(self) -> int:
        return int(self.settings.get("port", "5432"))

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            # No test takes the power away.
            "fsync": "off",
            "max_connections": "50",
            "shared_buffers": "16MB",
            "shared_memory_type": "mmap",
            "dynamic_shared_memory_type": "mmap",
            **self.settings,
        }
        arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*_unprivileged(), str(programs() / "postgres"), "-D", str(self.data), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        eventually(self._answers, "PostgreSQL")

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.wait(60)

    def database(self, name: str = "", options: str = "") -> str:
        """Make a database and return its connection string."""
        name = name or f"d{uuid.uuid4().hex[:12]}"
        with self.connect() as connection:
            connection.execute(f"""CREATE DATABASE "{name}" {options}""".encode())
        return f"host={self.folder} user={USER} dbname={name}"

    @contextmanager
    def connect(self, database: str = "postgres") -> Generator[psycopg.Connection[tuple[object, ...]]]:
        """A session that looks on from outside."""
        connection = psycopg.connect(host=str(self.folder), port=self.port, user=USER, dbname=database, autocommit=True)
        try:
            yield connection
        finally:
            connection.close()

    def sessions(self, database: str) -> int:
        """How many there are."""
        with self.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
            row = connection.execute(query, (database,)).fetchone()
        assert row is not None
        assert isinstance(row[0], int)
        return row[0]

    def put(self, name: str, content: bytes, mode: int) -> None:
        """A file of the data folder, which the server's user owns."""
        path = self.data / name
        path.write_bytes(content)
        path.chmod(mode)
        if os.geteuid() == 0:
            shutil.chown(path, _RUN_AS, _RUN_AS_GROUP)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            with self.connect():
                return True
        except psycopg.OperationalError:
            return False


@contextmanager
def started(**settings: str) -> Generator[Cluster]:
    """A new cluster, until the block ends. Its folder's name is short, because a socket's path must be."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        cluster = Cluster(Path(folder), settings)
        cluster.create()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop(signal.SIGQUIT)


@contextmanager
def following(primary: Cluster) -> Generator[Cluster]:
    """A standby of the cluster, which streams from it, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        standby = Cluster(Path(folder), primary.settings)
        standby.own_folder()
        command = ["pg_basebackup", "-D", str(standby.data), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"]
        command += ["-h", str(primary.folder), "-U", USER]
        done = subprocess.run(
            [*_unprivileged(), str(programs() / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd="/",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        standby.start()
        try:
            yield standby
        finally:
            standby.stop(signal.SIGQUIT)


@pytest.fixture(scope="session")
def postgres() -> Generator[Cluster]:
    """One cluster for the databases of all tests that stop or break nothing. A conftest.py takes this over by name."""
    with started() as cluster:
        yield cluster


_INITDB = ("--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions")
_RUN_AS_GROUP = pwd.getpwnam(_RUN_AS).pw_gid


def _unprivileged() -> Sequence[str]:
    if os.geteuid() != 0:
        return ()
    return ("setpriv", f"--reuid={_RUN_AS}", f"--regid={_RUN_AS_GROUP}", "--clear-groups", "--")
