"""Logs in the form of SPIRE's: a message and fields, as text or as JSON, over the standard library's logging.

    log = logs.get("ca_manager")
    log.info("X509 CA activated", slot="A", expiration=when)

gives `time="2026-01-02T15:04:05Z" level=info msg="X509 CA activated" expiration=… slot=A subsystem_name=ca_manager`.
Nothing secret goes into a field; texts from peers are quoted, so that a line stays a line.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any, cast

from operations import duration
from operations.errors import ConfigurationError
from operations.quoting import quote

TRACE = 5
PANIC = 60
_LEVELS = {
    "panic": PANIC,
    "fatal": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
_NAMES = {number: name for name, number in _LEVELS.items()}
_FORMATS = ("", "text", "json")
_PLAIN = re.compile(r"[A-Za-z0-9\-._/@^+]*")
_ROOT = "spire"
_FILE_MODE = 0o640


class Logger:
    """Writes messages with fields; `bind` returns a logger that adds fields to each message."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, logger: logging.Logger, fields: Mapping[str, object]) -> None:
        self._logger = logger
        self._fields = fields

    def bind(self, **fields: object) -> Logger:
        return Logger(self._logger, {**self._fields, **fields})

    def debug(self, message: str, **fields: object) -> None:
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: object) -> None:
        self._write(logging.INFO, message, fields)

    def warning(self, message: str, **fields: object) -> None:
        self._write(logging.WARNING, message, fields)

    def error(self, message: str, **fields: object) -> None:
        self._write(logging.ERROR, message, fields)

    def exception(self, message: str, **fields: object) -> None:
        """An error nobody expected, with its traceback as a field."""
        fields.setdefault("traceback", traceback.format_exc())
        self._write(logging.ERROR, message, fields)

    def enabled(self, level: str) -> bool:
        """Whether messages of that level are written; saves the making of costly fields."""
        return self._logger.isEnabledFor(_LEVELS[level])

    def _write(self, level: int, message: str, fields: Mapping[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, message, extra={"fields": {**self._fields, **fields}}, stacklevel=3)


def get(subsystem: str = "") -> Logger:
    """The logger of a subsystem; its name is the field `subsystem_name`."""
    return Logger(logging.getLogger(_ROOT), {"subsystem_name": subsystem} if subsystem else {})


def setup(level: str, format: str, file: str | None = None, *, source_location: bool = False) -> None:
    """Send every log line to standard output, or append it to `file`, which SIGUSR2 opens anew after a rotation.

    `level` is panic, fatal, error, warn, warning, info, debug or trace; `format` is text or json; both in any case.
    Raises ConfigurationError. The libraries' own warnings take the same way.
    """
    number = level_number(level)
    handler = _Handler(file, json_form=known_format(format) == "json", source_location=source_location)
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(number)
    global _launch_level
    _launch_level = number
    if file is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR2, handler.on_signal)


_launch_level = logging.INFO


def known_format(name: str) -> str:
    """The format in small letters; empty means text. Raises ConfigurationError for one that does not exist."""
    if name.lower() not in _FORMATS:
        raise ConfigurationError(f"unknown logger format: {quote(name)}: use text or json")
    return name.lower() or "text"


def level_number(name: str) -> int:
    """Raises ConfigurationError for a level that does not exist."""
    try:
        return _LEVELS[name.lower()]
    except KeyError:
        known = "panic, fatal, error, warn, info, debug or trace"
        raise ConfigurationError(f"not a valid logrus Level: {quote(name)}: use {known}") from None


def level() -> str:
    """The level in force, by its long name (`warning`)."""
    return level_name(logging.getLogger(_ROOT).getEffectiveLevel())


def level_name(number: int) -> str:
    """The long name of what `level_number` gives."""
    return _NAMES.get(number, "info")


def launch_level() -> str:
    """The level that `setup` was given."""
    return _NAMES[_launch_level]


def set_level(name: str) -> None:
    """Change the level of the running program. Raises ConfigurationError."""
    logging.getLogger(_ROOT).setLevel(level_number(name))


def reset_level() -> None:
    """Back to the level of the start."""
    logging.getLogger(_ROOT).setLevel(_launch_level)


class _Handler(logging.Handler):
    """One line, one write: lines of several processes on one file do not mix."""

    def __init__(self, file: str | None, *, json_form: bool, source_location: bool) -> None:
        super().__init__()
        self._file = file
        self._descriptor: int | None = _open(file) if file is not None else None
        self._form = _json_line if json_form else _text_line
        self._source_location = source_location

    def emit(self, record: logging.LogRecord) -> None:
        line = (self._form(record, _fields(record, source_location=self._source_location)) + "\n").encode(
            errors="backslashreplace"
        )
        try:
            if self._descriptor is not None:
                os.write(self._descriptor, line)
            else:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        except OSError as error:
            print(f"Failed to write to log, {error}", file=sys.stderr)

    def on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self.reopen()

    def reopen(self) -> None:
        """Go on in a new file of the same name; in the old one when that cannot be opened."""
        if self._file is None:
            return
        try:
            fresh = _open(self._file)
        except ConfigurationError as error:
            get().error("Failed to rotate log after signal", error=error)
            return
        with self.lock or threading.RLock():
            old, self._descriptor = self._descriptor, fresh
        if old is not None:
            os.close(old)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._file = None
        super().close()


def _open(file: str) -> int:
    try:
        return os.open(file, os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE)
    except OSError as error:
        raise ConfigurationError(f"cannot open the log file: {error.strerror}", file=file) from error


def _fields(record: logging.LogRecord, *, source_location: bool) -> dict[str, object]:
    fields: dict[str, object] = dict(getattr(record, "fields", {}))
    if record.name != _ROOT:
        fields.setdefault("subsystem_name", record.name)
    if record.exc_info and record.exc_info[0] is not None:
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    if source_location:
        fields["file"] = f"{record.filename}:{record.lineno}"
        fields["func"] = record.funcName
    for reserved in ("time", "level", "msg"):
        if reserved in fields:
            fields[f"fields.{reserved}"] = fields.pop(reserved)
    return fields


def _text_line(record: logging.LogRecord, fields: Mapping[str, object]) -> str:
    head: dict[str, object] = {"time": _time(record), "level": _level_name(record)}
    if message := record.getMessage():
        head["msg"] = message
    pairs = [*head.items(), *sorted(fields.items())]
    return " ".join(f"{key}={_quoted_if_needed(_text(value))}" for key, value in pairs)


def _json_line(record: logging.LogRecord, fields: Mapping[str, object]) -> str:
    line = {**fields, "time": _time(record), "level": _level_name(record), "msg": record.getMessage()}
    return json.dumps(line, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _level_name(record: logging.LogRecord) -> str:
    return _NAMES.get(record.levelno, "info")


def _quoted_if_needed(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else quote(text)


def _text(value: object) -> str:
    match value:
        case str():
            return value
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case bytes():
            return value.hex()
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case timedelta():
            return duration.text(value)
        case list() | tuple() | set() | frozenset():
            return "[" + " ".join(_text(item) for item in cast("Iterable[Any]", value)) + "]"
        case _:
            return str(value)
