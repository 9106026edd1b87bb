"""The Logger API's view of the log, which server and agent serve and their commands print."""

from __future__ import annotations

from typing import Final

from generated.spire.api.types import logger_pb2
from operations import logs
from operations.errors import ConfigurationError, InvalidArgument, PermanentlyUnusable
from operations.quoting import quote

_NAMES: Final = {
    logger_pb2.PANIC: "panic",
    logger_pb2.FATAL: "fatal",
    logger_pb2.ERROR: "error",
    logger_pb2.WARN: "warning",
    logger_pb2.INFO: "info",
    logger_pb2.DEBUG: "debug",
    logger_pb2.TRACE: "trace",
}
_LEVELS: Final = {name: level for level, name in _NAMES.items()}


def state() -> logger_pb2.Logger:
    """The level in force, and that of the start."""
    return logger_pb2.Logger(current_level=_LEVELS[logs.level()], launch_level=_LEVELS[logs.launch_level()])


def name_of(level: int) -> str:
    """The level's name in the log. Raises InvalidArgument, in SPIRE's words."""
    if level == logger_pb2.UNSPECIFIED:
        raise InvalidArgument("newLevel value cannot be LogLevel_UNSPECIFIED")
    for known, name in _NAMES.items():
        if known == level:
            return name
    raise InvalidArgument("unsupported log level")


def requested(text: str) -> logger_pb2.LogLevel.ValueType:
    """What -level asks for. Raises InvalidArgument."""
    if not text:
        raise InvalidArgument("a value (-level) must be set")
    try:
        number = logs.level_number(text)
    except ConfigurationError as error:
        raise InvalidArgument(f"the value {quote(text)} is not a valid setting") from error
    return _LEVELS[logs.level_name(number)]


def print_pretty(logger: logger_pb2.Logger) -> None:
    """Raises PermanentlyUnusable for a level that nobody has."""
    for what, level in (("current", logger.current_level), ("launch", logger.launch_level)):
        if level not in _NAMES:
            reason = f"internal error: returned {what} log level is undefined; please report this as a bug"
            raise PermanentlyUnusable(reason)
    print(f"Logger Level : {_NAMES[logger.current_level]}\nLaunch Level : {_NAMES[logger.launch_level]}\n")
