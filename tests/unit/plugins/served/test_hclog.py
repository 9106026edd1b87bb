"""What the serving half writes to standard error is what the hosting half reads, which does as go-plugin's."""

from __future__ import annotations

import logging

import pytest

from plugins.external.output import Reader
from plugins.served import hclog


def record(level: int, message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("spire", level, "x.py", 1, message, None, None)
    made.fields = fields
    return made


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR])
def test_the_host_reads_level_message_and_fields(level: int) -> None:
    line = hclog.line(record(level, 'Two\nlines "quoted"', key_id="x509-CA-A", cka_id=b"\x01\xff", count=3))
    assert "\n" not in line
    entry = Reader().entry(line.encode())
    assert (entry.level, entry.message) == (level, 'Two\nlines "quoted"')
    assert {name: entry.fields[name] for name in ("key_id", "cka_id", "count")} == {
        "key_id": "x509-CA-A",
        "cka_id": "01ff",
        "count": 3,
    }


def test_a_field_hides_nothing_of_the_line() -> None:
    entry = Reader().entry(hclog.line(record(logging.INFO, "message", **{"@level": "error", "@message": "x"})).encode())
    assert (entry.level, entry.message) == (logging.INFO, "message")


def test_the_hosts_name_for_the_plugin_stays_the_hosts() -> None:
    assert "subsystem_name" not in hclog.line(record(logging.INFO, "message", subsystem_name="pkcs11"))


def test_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("wrong")
    except ValueError as error:
        made = logging.LogRecord("spire", logging.ERROR, "x.py", 1, "m", None, (ValueError, error, error.__traceback__))
    assert "ValueError: wrong" in str(Reader().entry(hclog.line(made).encode()).fields["traceback"])
