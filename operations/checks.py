"""Checks of a configuration's values that gather every fault with its place, and what server and agent check alike."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from operations import duration, logs
from operations.errors import ConfigurationError, ConfigurationErrors, InvalidArgument, raise_problems
from operations.hcl import Body, Position
from operations.quoting import quote

V = TypeVar("V")


class Checks:
    """Faults of one section of a file. A check that fails is noted, and returns a stand-in so that others follow."""

    def __init__(self, body: Body, section: str) -> None:
        self._body = body
        self._section = section
        self._problems: list[ConfigurationError] = []

    def done(self) -> None:
        """Raise what was found: ConfigurationError, or ConfigurationErrors for several faults."""
        raise_problems(self._problems)

    def place(self) -> Position:
        """Where the file starts."""
        return self._body.position

    def note(self, *problems: ConfigurationError) -> None:
        self._problems.extend(problems)

    def fault(self, reason: str, *keys: str) -> None:
        """Note a fault of the key in the section, or of the section itself."""
        self.note(self._body.find(self._section, *keys).error(reason))

    def fault_in(self, section: str, reason: str, *keys: str) -> None:
        """Note a fault of a key in another section."""
        self.note(self._body.find(section, *keys).error(f"{section}: {reason}"))

    def require(self, holds: object, reason: str, *keys: str) -> None:
        if not holds:
            self.fault(reason, *keys)

    def attempt(self, read: Callable[[], V], stand_in: V, key: str, words: str = "") -> V:
        """What `read` returns. Its error is noted, after `words`, at the place of `key`."""
        try:
            return read()
        except ConfigurationErrors as errors:
            self.note(*errors.problems)
        except ConfigurationError as error:
            if error.file is not None:
                self.note(error)
            else:
                self.fault(words + error.reason, *key.split("."))
        except (ValueError, InvalidArgument) as error:
            self.fault(f"{words}{error}", *key.split("."))
        return stand_in

    def period(self, key: str, text: str, default: timedelta, words: str) -> timedelta:
        """A duration longer than 0; the default for an empty text."""
        value = self.attempt(lambda: duration.parse(text) if text else default, default, key, words)
        if text and value <= timedelta():
            self.fault(f"{key} must be longer than 0: it is {quote(text)}", *key.split("."))
        return value

    def port(self, key: str, number: int) -> int:
        self.require(0 < number < 65536, f"{key} {number} is no TCP port: use 1 to 65535", key)
        return number

    def log_level(self, text: str) -> str:
        """The level; INFO for an empty text."""
        level = text or "INFO"
        self.attempt(lambda: logs.level_number(level), 0, "log_level", "cannot log as configured: ")
        return level

    def log_format(self, text: str) -> str:
        return self.attempt(lambda: logs.known_format(text), "text", "log_format", "cannot log as configured: ")
