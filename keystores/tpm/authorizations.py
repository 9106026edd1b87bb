"""Authorization values of TPM objects: where they come from, and that a wrong one is tried once.

Guesses at the authorization of an object without noDA count towards the lockout of the whole TPM, so that a service
that restarts again and again would lock everybody out (TPM 2.0 Library, part 1, 19.8).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from keystores import credentials
from keystores.errors import Refused
from operations.errors import ConfigurationError
from operations.files import read_secret, write_atomically


class _Marker(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept after a refusal. `modified` is the file's time of change, None for a credential."""

    source: str
    modified: int | None
    refused_at: int


class Authorization:
    """One value, from a file or a systemd credential; empty when neither is set.

    A refused one is remembered in `marker` until its file changes. systemd writes a credential anew at each start, so
    its time of change says nothing: there the marker holds until an operator removes it.
    """

    def __init__(self, setting: str, path: Path | None, marker: Path | None, *, credential: bool = False) -> None:
        self._setting: Final = setting
        self._path: Final = path
        self._marker: Final = marker
        self._credential: Final = credential

    @classmethod
    def configured(
        cls, setting: str, file: str | None, credential: str | None, marker: Path | None = None
    ) -> Authorization:
        """`setting` is the settings' common beginning. Raises ConfigurationError."""
        if file is not None and credential is not None:
            raise ConfigurationError(f"tpm: set one of {setting}_file and {setting}_credential")
        if file is not None:
            return cls(setting, Path(file), marker)
        if credential is None:
            return cls(setting, None, marker)
        return cls(setting, credentials.path(f"{setting}_credential", credential), marker, credential=True)

    def read(self) -> bytes:
        """Raises ConfigurationError for a file that is missing, empty or open to others, Refused for a value that was
        refused before, TemporarilyUnavailable."""
        if self._path is None:
            return b""
        if (marker := self._read_marker()) is not None and self._is_about_this(marker):
            raise Refused(self._line)
        if not self._credential:
            return read_secret(self._path, "authorization").encode()
        # Who may read a credential is systemd's business: it may grant access to a group.
        try:
            value = self._path.read_bytes().removesuffix(b"\n").removesuffix(b"\r")
        except OSError as error:
            reason = f"{self._setting}_credential: the authorization cannot be read: {error.strerror}"
            raise ConfigurationError(reason, file=str(self._path)) from error
        if not value:
            raise ConfigurationError(f"{self._setting}_credential: the authorization is empty", file=str(self._path))
        return value

    def refused(self) -> None:
        """Remember it, as far as the disk allows."""
        if self._path is None or self._marker is None:
            return
        marker = _Marker(source=self._source, modified=self._modified, refused_at=int(time.time()))
        try:
            write_atomically(self._marker, msgspec.json.encode(marker), mode=0o600)
        except OSError:
            # The process itself tries no second time either way.
            return

    @property
    def _line(self) -> str:
        cure = f"correct it, then remove {self._marker}" if self._credential else "correct it"
        return (
            f"the TPM refused the authorization in {self._path}; it was tried once and is not tried again, lest the "
            f"whole TPM lock: {cure}"
        )

    @property
    def _source(self) -> str:
        """The credentials folder differs from boot to boot; the credential's name does not."""
        return f"credential {Path(str(self._path)).name}" if self._credential else str(self._path)

    @property
    def _modified(self) -> int | None:
        if self._credential or self._path is None:
            return None
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None

    def _is_about_this(self, marker: _Marker) -> bool:
        return (marker.source, marker.modified) == (self._source, self._modified)

    def _read_marker(self) -> _Marker | None:
        if self._marker is None:
            return None
        try:
            return msgspec.json.decode(self._marker.read_bytes(), type=_Marker)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise Refused(
                f"{self._marker}, the note of a refused authorization, cannot be read; check the authorization, then "
                "remove the note"
            ) from error
