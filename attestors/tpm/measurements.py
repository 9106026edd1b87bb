"""The machine's logs of measurements, as the kernel shows them in securityfs: files whose size nobody tells before.

Reading blocks, and is bounded. A log that the machine does not have, or does not show to this user, is none: what a
policy needs of it, the server says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from operations.errors import ConfigurationError, Refused, TemporarilyUnavailable
from operations.logs import Logger

EVENT_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"
IMA: Final = "/sys/kernel/security/integrity/ima/binary_runtime_measurements"
OLDER_IMA: Final = "/sys/kernel/security/ima/binary_runtime_measurements"
EVENT_LOG_LIMIT: Final = 64 << 20
"""Bytes, as those below."""
IMA_LIMIT: Final = 256 << 20
WINDOW: Final = 4 << 20
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Places:
    """Where the logs are; empty for where kernels have them. A path that is given has to be there."""

    event_log: str = ""
    ima: str = ""

    def check(self) -> None:
        """Raises ConfigurationError."""
        for setting, path in (("event_log_path", self.event_log), ("ima_path", self.ima)):
            if path and not Path(path).exists():
                raise ConfigurationError(
                    f"{setting}: there is no {path}; leave the setting out where the machine keeps no such log"
                )


@dataclass(slots=True)
class Measurements:
    """Both logs at one moment: the event log as a whole, and how long the IMA list was then.

    The list is append-only, so its beginning stays what it was while it is read in parts.
    """

    event_log: bytes
    ima_size: int
    _ima: str
    _start: int = 0
    _window: bytes = field(default=b"", repr=False)

    def ima(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on. Parts in sequence are read once, some at a time.

        Raises TemporarilyUnavailable.
        """
        size = min(size, max(0, self.ima_size - offset))
        if size == 0:
            return b""
        at = offset - self._start
        if at < 0 or at + size > len(self._window):
            self._start, self._window, at = offset, self._read_ima(offset, max(size, WINDOW)), 0
        return self._window[at : at + size]

    def _read_ima(self, offset: int, size: int) -> bytes:
        try:
            with Path(self._ima).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise _unreadable(self._ima, error) from error


def take(places: Places, log: Logger) -> Measurements:
    """Raises Refused for a log that is too long, TemporarilyUnavailable for one that cannot be read just now."""
    event_log = _whole(places.event_log or EVENT_LOG, log)
    ima = places.ima or (IMA if Path(IMA).exists() else OLDER_IMA)
    return Measurements(event_log, _size(ima, log), ima)


def _whole(path: str, log: Logger) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(EVENT_LOG_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except PermissionError:
        _tell(path, log)
        return b""
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) > EVENT_LOG_LIMIT:
        raise Refused(f"{path} has more than {EVENT_LOG_LIMIT >> 20} MiB, more than firmware writes")
    return data


def _size(path: str, log: Logger) -> int:
    """securityfs tells none: it is what can be read, up to the limit."""
    size = 0
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > IMA_LIMIT:
                    break  # more than any server asks for
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except PermissionError:
        _tell(path, log)
        return 0
    except OSError as error:
        raise _unreadable(path, error) from error
    return size


def _tell(path: str, log: Logger) -> None:
    log.warning(
        "No permission to read a log of measurements; attesting without it. Run the agent as root, or with "
        "AmbientCapabilities=CAP_DAC_READ_SEARCH",
        path=path,
    )


def _unreadable(path: str, error: OSError) -> TemporarilyUnavailable:
    return TemporarilyUnavailable(f"{path} cannot be read: {error.strerror}")
