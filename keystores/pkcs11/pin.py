"""The PIN: read from where the configuration says, and never tried again once a token refused it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from keystores import credentials
from keystores.errors import Refused, TemporarilyUnavailable
from operations.errors import ConfigurationError
from operations.files import read_secret, write_atomically

LOGIN_PATIENCE = 10.0
"""Seconds to wait for another worker's login, which may hang in the module."""


class _Marker(msgspec.Struct, kw_only=True):
    """What is kept beside the mapping after a refusal. `modified` is the PIN file's mtime in nanoseconds."""

    pin: str
    modified: int | None
    refused_at: int


class Pin:
    """Where one PIN comes from.

    A refused one is remembered for the process, and in `marker` for the next ones, until its file changes. systemd
    writes a credential anew at each start, so its time of change says nothing: there the marker holds until an
    operator removes it.
    """

    refused_here: ClassVar[dict[str, int | None]] = {}
    """What tokens refused in this process: the file, and its mtime then."""
    _login = threading.Lock()

    def __init__(self, path: Path, marker: Path, *, credential: bool = False) -> None:
        self._path = path
        self._marker = marker
        self._credential = credential

    @classmethod
    def configured(cls, pin_file: str | None, pin_credential: str | None, marker: Path) -> Pin:
        """Raises ConfigurationError unless exactly one of the two is set and can be found."""
        if (pin_file is None) == (pin_credential is None):
            raise ConfigurationError("pkcs11: set one of pin_file and pin_credential")
        if pin_file is not None:
            return cls(Path(pin_file), marker)
        return cls(credentials.path("pin_credential", str(pin_credential)), marker, credential=True)

    @contextmanager
    def attempt(self) -> Generator[Attempt]:
        """One login at a time over all workers of the process, none with a PIN that was refused before.

        Raises Refused for such a PIN, ConfigurationError for a PIN file that is missing, empty or open to others,
        TemporarilyUnavailable when another login hangs.
        """
        if not Pin._login.acquire(timeout=LOGIN_PATIENCE):
            raise TemporarilyUnavailable("another login to a token hangs")
        try:
            modified = self._modified()
            self._check(modified)
            yield Attempt(self, self._read(), modified)
        finally:
            Pin._login.release()

    def _modified(self) -> int | None:
        if self._credential:
            return None
        try:
            return self._path.stat().st_mtime_ns
        except OSError as error:
            raise ConfigurationError(
                f"pin_file: the PIN cannot be read: {error.strerror}", file=str(self._path)
            ) from error

    def _read(self) -> str:
        if not self._credential:
            return read_secret(self._path, "PIN")
        # Who may read a credential is systemd's business: it may grant access to a group.
        try:
            pin = self._path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"pin_credential: the PIN cannot be read: {error}", file=str(self._path)
            ) from error
        if not pin:
            raise ConfigurationError("pin_credential: the PIN is empty", file=str(self._path))
        return pin

    def _check(self, modified: int | None) -> None:
        path = str(self._path)
        if path in Pin.refused_here and Pin.refused_here[path] == modified:
            raise self._refusal("it was tried once")
        marker = self._read_marker()
        if marker is not None and marker.pin == self._source and marker.modified == modified:
            raise self._refusal("it was tried once by an earlier process")

    @property
    def _source(self) -> str:
        """The credentials folder differs from boot to boot; the credential's name does not."""
        return f"credential {self._path.name}" if self._credential else str(self._path)

    def _refusal(self, reason: str) -> Refused:
        cure = f"correct it, then remove {self._marker}" if self._credential else "correct the PIN file"
        return Refused(
            f"the token refused the PIN in {self._path}; {reason} and is not tried again, lest the token lock: {cure}"
        )

    def _read_marker(self) -> _Marker | None:
        try:
            return msgspec.json.decode(self._marker.read_bytes(), type=_Marker)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise Refused(
                f"{self._marker}, the note of a refused PIN, cannot be read; check the PIN, then remove the note"
            ) from error

    def refused(self, modified: int | None) -> Refused:
        """Remember, then say so. The process remembers even if the file cannot be written."""
        Pin.refused_here[str(self._path)] = modified
        marker = _Marker(pin=self._source, modified=modified, refused_at=int(time.time()))
        try:
            write_atomically(self._marker, msgspec.json.encode(marker), mode=0o600)
        except OSError as error:
            return Refused(f"{self._refusal('it was tried once')}; {self._marker} cannot be written: {error.strerror}")
        return self._refusal("it was tried once")

    def accepted(self) -> None:
        """A PIN that works ends the memory of one that did not."""
        Pin.refused_here.pop(str(self._path), None)
        self._marker.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A PIN that may be tried once. Call `accepted` or `refused` with the token's answer."""

    source: Pin
    pin: str
    modified: int | None

    def accepted(self) -> None:
        self.source.accepted()

    def refused(self) -> Refused:
        """The error to raise."""
        return self.source.refused(self.modified)
