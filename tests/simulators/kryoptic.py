"""Kryoptic, another PKCS#11 token in software, with a token of its own in an SQLite file.

It is built by cargo, once for all tests that run beside each other: a minute, and only where it is asked for. That
needs cargo 1.85 or later, and what `ci/packages interop` installs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.simulators.softhsm import SO_PIN, USER_PIN

SOURCES = Path(__file__).parents[1] / "interop" / "kryoptic"


@cache
def module() -> str:
    """The built module. A tool or header that is missing is a failure."""
    parts = sorted(path for path in (SOURCES / "Cargo.toml", SOURCES / "src" / "lib.rs"))
    name = hashlib.sha256(b"\0".join(path.read_bytes() for path in parts)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"kryoptic-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to somebody else"
    made = folder / f"kryoptic-{name}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=folder) as beside:
                source = Path(beside) / "source"
                shutil.copytree(SOURCES, source, ignore=shutil.ignore_patterns("target", "Cargo.lock"))
                subprocess.run(["cargo", "build", "--quiet", "--release"], cwd=source, check=True, timeout=900)
                (source / "target" / "release" / "libtoken.so").replace(made)
    return str(made)


@dataclass(frozen=True, slots=True)
class Kryoptic:
    """One folder with the configuration, the token and a PIN file of mode 0600."""

    folder: Path
    label: str = "spire"

    @classmethod
    def create(cls, folder: Path, label: str = "spire") -> Kryoptic:
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder, label)
        made.configuration.write_text(
            f'[[slots]]\nslot = 0\ndbtype = "sqlite"\ndbargs = "{folder / "token.sqlite3"}"\n'
        )
        made.pin_file.write_text(f"{USER_PIN}\n")
        made.pin_file.chmod(0o600)
        made.tool("--init-token", "--slot", "0", "--label", label, "--so-pin", SO_PIN)
        made.tool(
            *("--slot", "0", "--login", "--login-type", "so", "--so-pin", SO_PIN),
            *("--init-pin", "--new-pin", USER_PIN, "--pin", USER_PIN),
        )
        return made

    @property
    def configuration(self) -> Path:
        return self.folder / "kryoptic.conf"

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    def tool(self, *arguments: str) -> str:
        """pkcs11-tool's output. Raises CalledProcessError."""
        environment = {**os.environ, "KRYOPTIC_CONF": str(self.configuration)}
        command = ["pkcs11-tool", "--module", module(), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout

    @contextmanager
    def installed(self) -> Generator[Kryoptic]:
        """Make it the token of this process, and of those that it starts."""
        before = os.environ.get("KRYOPTIC_CONF")
        os.environ["KRYOPTIC_CONF"] = str(self.configuration)
        try:
            yield self
        finally:
            if before is None:
                del os.environ["KRYOPTIC_CONF"]
            else:
                os.environ["KRYOPTIC_CONF"] = before
