"""Log lines as a host of plugins reads them from a plugin's standard error: hclog's JSON, one object a line.

The host has the last word on what is shown: it writes each line at its level, with its fields, into its own log.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

_LEVELS: Final = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"), (logging.DEBUG, "debug"))
_HOSTS_OWN: Final = "subsystem_name"


class HclogHandler(logging.Handler):
    """Writes to standard error. When the host does not read any more, there is nobody to tell."""

    def emit(self, record: logging.LogRecord) -> None:
        data = (line(record) + "\n").encode(errors="backslashreplace")
        with suppress(OSError):
            os.write(2, data)


def setup() -> None:
    """Send the program's log lines, and the warnings of libraries, to the host."""
    root = logging.getLogger()
    root.addHandler(HclogHandler())
    root.setLevel(logging.WARNING)
    logging.getLogger("spire").setLevel(logging.DEBUG)
    logging.captureWarnings(capture=True)


def line(record: logging.LogRecord) -> str:
    fields: dict[str, object] = dict(getattr(record, "fields", {}))
    fields.pop(_HOSTS_OWN, None)
    if record.exc_info and record.exc_info[0] is not None:
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    level = next((name for least, name in _LEVELS if record.levelno >= least), "trace")
    head = {
        "@level": level,
        "@message": record.getMessage(),
        "@timestamp": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    return json.dumps({**fields, **head}, separators=(",", ":"), default=_text)


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
