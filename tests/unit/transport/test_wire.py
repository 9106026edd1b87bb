"""gRPC's own encodings."""

from __future__ import annotations

import pytest
from google.protobuf import wrappers_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from transport.status import Code, RpcError
from transport.wire import (
    Deframer,
    decode_binary,
    decode_message,
    encode_binary,
    encode_message,
    format_timeout,
    frame,
    parse_timeout,
    status_fields,
    status_from,
)


@given(st.lists(st.binary(max_size=50)), st.lists(st.integers(1, 20)))
def test_messages_are_found_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(frame, messages))
    deframer = Deframer(1000)
    found: list[bytes] = []
    for cut in cuts:
        found += deframer.feed(stream[:cut])
        stream = stream[cut:]
    found += deframer.feed(stream)
    assert found == messages
    assert not deframer.incomplete


def test_a_message_cut_off_is_noticed() -> None:
    deframer = Deframer(1000)
    assert list(deframer.feed(frame(b"abc")[:-1])) == []
    assert deframer.incomplete


@pytest.mark.parametrize(
    ("encoding", "data", "code", "text"),
    [
        ("identity", b"\1\0\0\0\0", Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding"),
        ("zip", b"\1\0\0\0\0", Code.UNIMPLEMENTED, 'grpc: Decompressor is not installed for grpc-encoding "zip"'),
        ("identity", b"\2\0\0\0\0", Code.INTERNAL, "grpc: received unexpected payload format 2"),
        ("identity", b"\0\0\0\0\x0b", Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (11 vs. 10)"),
    ],
)
def test_what_is_refused(encoding: str, data: bytes, code: Code, text: str) -> None:
    deframer = Deframer(10)
    deframer.encoding = encoding
    with pytest.raises(RpcError) as caught:
        list(deframer.feed(data))
    assert (caught.value.code, caught.value.message) == (code, text)


@given(st.floats(0, 1e7))
def test_timeouts_survive_rounded_up(seconds: float) -> None:
    encoded = format_timeout(seconds).decode()
    assert len(encoded) <= 9
    assert seconds <= parse_timeout(encoded) * (1 + 1e-9) + 1e-9
    assert parse_timeout(encoded) <= seconds * 1.01 + 1e-5


def test_timeouts_at_the_edges() -> None:
    assert format_timeout(-1) == b"0u"
    assert format_timeout(float("inf")) == b"99999999H"
    assert parse_timeout("99999999H") == 99999999 * 3600.0
    for bad in ("", "S", "10", "123456789S", "1x", "-1S", "1.5S", "٣S"):
        with pytest.raises(ValueError):
            parse_timeout(bad)


@given(st.text())
@example(" a b ")
@example("  ")
def test_messages_survive_percent_encoding(text: str) -> None:
    encoded = encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert encoded == encoded.strip(), "the engine refuses a field that begins or ends with a space"
    assert decode_message(encoded.decode()) == text.encode("utf-8", "replace").decode()


@given(st.binary())
def test_binary_headers_survive(value: bytes) -> None:
    assert decode_binary(encode_binary(value).decode()) == value


def test_statuses() -> None:
    sent = RpcError(Code.NOT_FOUND, "none: 100 %\n", [wrappers_pb2.StringValue(value="why")])
    fields = {name.decode(): value.decode() for name, value in status_fields(sent)}
    received = status_from(fields)
    assert received is not None
    assert (received.code, received.message, len(received.details)) == (Code.NOT_FOUND, "none: 100 %\n", 1)
    assert status_from({"grpc-status": "0", "grpc-message": "ignored"}) is None
    for fields, code in (
        ({"grpc-status": "99"}, Code.UNKNOWN),
        ({"grpc-status": "x"}, Code.UNKNOWN),
        ({}, Code.UNKNOWN),
        ({"grpc-status": "5", "grpc-status-details-bin": "!"}, Code.NOT_FOUND),
        ({"grpc-status": "5", "grpc-status-details-bin": "AAAA"}, Code.NOT_FOUND),
    ):
        error = status_from(fields)
        assert error is not None
        assert error.code is code


def test_labels_are_gos() -> None:
    assert [code.label for code in (Code.OK, Code.CANCELLED, Code.DEADLINE_EXCEEDED)] == [
        "OK",
        "Canceled",
        "DeadlineExceeded",
    ]
