"""SoftHSM with a token folder of its own.

SoftHSM reads SOFTHSM2_CONF when it is initialised, so one process can have one token folder at a time: `installed`
holds the variable for as long as a test runs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULE = next(
    (
        str(path)
        for path in (Path("/usr/lib/softhsm/libsofthsm2.so"), *Path("/usr/lib").glob("*/softhsm/libsofthsm2.so"))
        if path.exists()
    ),
    "/usr/lib/softhsm/libsofthsm2.so",
)
USER_PIN = "8246"
SO_PIN = "975310"


@dataclass(frozen=True, slots=True)
class SoftHsm:
    """One folder with softhsm2.conf, the tokens and a PIN file of mode 0600."""

    folder: Path
    label: str = "spire"

    @classmethod
    def create(cls, folder: Path, label: str = "spire") -> SoftHsm:
        tokens = folder / "tokens"
        tokens.mkdir(parents=True)
        made = cls(folder, label)
        made.configuration.write_text(
            f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
        )
        made.write_pin(f"{USER_PIN}\n")
        made.add_token(label)
        return made

    @property
    def configuration(self) -> Path:
        return self.folder / "softhsm2.conf"

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SOFTHSM2_CONF": str(self.configuration)}

    def write_pin(self, content: str, mode: int = 0o600) -> None:
        self.pin_file.write_text(content)
        self.pin_file.chmod(mode)

    def add_token(self, label: str) -> None:
        _run(
            "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", USER_PIN, "--so-pin", SO_PIN, env=self
        )

    def tool(self, *arguments: str, pin: str | None = USER_PIN) -> str:
        """pkcs11-tool's output, an independent look at the token. Raises CalledProcessError."""
        login = () if pin is None else ("--login", "--pin", pin)
        return _run("pkcs11-tool", "--module", MODULE, "--token-label", self.label, *login, *arguments, env=self)

    @contextmanager
    def installed(self) -> Generator[SoftHsm]:
        """Make it the token folder of this process."""
        before = os.environ.get("SOFTHSM2_CONF")
        os.environ["SOFTHSM2_CONF"] = str(self.configuration)
        try:
            yield self
        finally:
            if before is None:
                os.environ.pop("SOFTHSM2_CONF", None)
            else:
                os.environ["SOFTHSM2_CONF"] = before


def slow_module(folder: Path) -> Path:
    """A PKCS#11 module in `folder` that is SoftHSM with a slow C_Sign; SLOW_PKCS11_US says how slow."""
    module = folder / "slow.so"
    source = Path(__file__).with_name("slow_pkcs11.c")
    options = ["-shared", "-fPIC", "-I/usr/include/p11-kit-1", f'-DSOFTHSM="{MODULE}"']
    subprocess.run(["gcc", *options, "-o", str(module), str(source)], check=True, timeout=60)
    return module


def _run(*command: str, env: SoftHsm) -> str:
    return subprocess.run(command, env=env.environment, check=True, capture_output=True, text=True, timeout=60).stdout
