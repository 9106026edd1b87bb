from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations import logs
from plugins.external import output
from plugins.external.output import LONGEST_LINE, Allowance, Entry, Reader
from tests.unit.plugins.external.conftest import Log


def test_hclogs_lines() -> None:
    line = {
        "@level": "warn",
        "@message": "Something",
        "@timestamp": "2026-11-26T16:20:21.123456Z",
        "@module": "x",
        "count": 3,
    }
    fields = {"@module": "x", "count": 3, "timestamp": "2026-11-26T16:20:21.123Z"}
    assert Reader().entry(json.dumps(line).encode()) == Entry(logging.WARNING, "Something", fields)
    line["@timestamp"] = "2026-11-26T16:20:21.123456+01:00"
    assert Reader().entry(json.dumps(line).encode()).fields["timestamp"] == "2026-11-26T16:20:21.123+0100"
    del line["@timestamp"]
    assert Reader().entry(json.dumps(line).encode()).fields["timestamp"] == "0001-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (b"[TRACE] a", None),
        (b"[DEBUG] a", logging.DEBUG),
        (b"[INFO] a", logging.INFO),
        (b"[WARN] a", logging.WARNING),
        (b"[ERROR] a", logging.ERROR),
        (b"a", logging.DEBUG),
        (b"\xff\xfe", logging.DEBUG),
        (b'{"@level": "loud", "@message": "a"}', logging.DEBUG),
        (b'{"@level": "info", "@message": 5}', logging.DEBUG),
        (b'{"@level": "info", "@message": "a", "@timestamp": "yesterday"}', logging.DEBUG),
        (b'{"level": "info"}', logging.DEBUG),
        (b'{"@level": "info"', logging.DEBUG),
        (b'{"a":' * 20_000, logging.DEBUG),
        (b'{"@level": "trace", "@message": "a"}', None),
        (b'{"@level": "error", "@message": "a"}', logging.ERROR),
    ],
)
def test_levels(line: bytes, level: int | None) -> None:
    assert Reader().entry(line).level == level


def test_a_panic_is_an_error_to_its_end() -> None:
    reader = Reader()
    assert [reader.entry(line).level for line in (b"a", b"panic: b", b"", b"goroutine 1")] == [
        logging.DEBUG,
        logging.ERROR,
        logging.ERROR,
        logging.ERROR,
    ]


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _lines(*chunks: bytes) -> Sequence[tuple[bytes, bool]]:
    return [line async for line in output.lines(_chunks(*chunks))]


async def test_lines_whatever_the_chunks() -> None:
    assert await _lines(b"a\nb", b"c\r\n", b"\n", b"d") == [(b"a", True), (b"bc", True), (b"", True), (b"d", True)]


async def test_a_line_that_is_too_long_comes_in_pieces() -> None:
    long = b"x" * (2 * LONGEST_LINE + 5)
    pieces = [(b"x" * LONGEST_LINE, False), (b"x" * LONGEST_LINE, False), (b"x" * 5, False), (b"y", True)]
    assert await _lines(long + b"\ny\n") == pieces
    assert await _lines(*[long[at : at + 1000] for at in range(0, len(long), 1000)], b"\ny\n") == pieces


async def test_a_flood_is_cut_and_told(log: Log) -> None:
    line = b"z" * 1023 + b"\n"
    async for _ in output.follow(_chunks(*[line * 64] * 64), logs.get("test")):
        pass
    written = [text for _, text, _ in log.lines if text.startswith("z")]
    assert output.BURST // 1024 <= len(written) < output.BURST // 1024 + 300
    (dropped,) = log.named("The plugin wrote more than its share to the log; lines were dropped")
    assert dropped["lines"] == 64 * 64 - len(written)


def test_the_allowance_comes_back_with_time() -> None:
    now = 0.0
    allowance = Allowance(lambda: now)
    assert allowance.take(output.BURST)
    assert not allowance.take(1)
    now = 1.0
    assert not allowance.take(1)
    now = output.BURST / output.RATE / 4
    assert allowance.take(output.BURST // 4)
    assert not allowance.take(1)
    assert allowance.dropped == 3


@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["@level", "@message", "@timestamp", "self", "message", "msg", "time", "level"]),
        st.sampled_from(["info", "error", "2026-11-26T16:20:21Z"]) | st.integers() | st.none() | st.lists(st.none()),
    ).map(lambda line: json.dumps(line).encode())
)
def test_any_line_can_be_written(line: bytes) -> None:
    output.write(logs.get("test"), Reader().entry(line))


async def test_names_of_fields_forge_nothing(log: Log) -> None:
    forged = 'a\nlevel=error msg="forged"'
    line = {"@level": "info", "@message": "m", "plugin_name": "another", forged: 1}
    output.write(logs.get("test").bind(plugin_name="py"), Reader().entry(json.dumps(line).encode()))
    (fields,) = log.named("m")
    assert (fields["plugin_name"], fields["fields.plugin_name"]) == ("py", "another")
    assert [name for name in fields if "forged" in name] == [r'"a\nlevel=error msg=\"forged\""']
