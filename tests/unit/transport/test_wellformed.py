"""Which requests the engine takes and which end their stream (RFC 9113, section 8)."""

from __future__ import annotations

import pytest

from tests.simulators import http2_attacks as raw
from transport import engine
from transport.engine import Engine, unpack
from transport.limits import Limits

Fields = list[tuple[bytes, bytes]]

PSEUDO: Fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b":authority", b"x")]
RST_STREAM_OF_PROTOCOL_ERROR = raw.frame(raw.RST_STREAM, 0, 1, b"\0\0\0\1")


def without(name: bytes) -> Fields:
    return [each for each in PSEUDO if each[0] != name]


def headers(fields: Fields, *, end: bool = False) -> bytes:
    block = b"".join(raw.field(name, value) for name, value in fields)
    return raw.frame(raw.HEADERS, raw.END_HEADERS | (raw.END_STREAM if end else 0), 1, block)


def body(data: bytes, *, end: bool = True) -> bytes:
    return raw.frame(raw.DATA, raw.END_STREAM if end else 0, 1, data)


def play(sent: bytes) -> tuple[list[int], bytes, Fields]:
    """The kinds of events of stream 1, what the engine sends, and the request's fields."""
    server = Engine(server=True, limits=Limits())
    events = [event for batch in server.receive(raw.PREFACE + sent) for event in batch]
    answer, more = server.send()
    fields = [field for kind, _, _, payload in events if kind == engine.HEADERS for field in unpack(payload)]
    return [kind for kind, stream, *_ in events + more if stream == 1], answer, fields


@pytest.mark.parametrize(
    "authority", [b"/run/spire/agent/public/api.sock", b"", b"%2Frun%2Fapi.sock", b"unix:/run/api.sock", b"a b", b"@"]
)
def test_any_authority_will_do(authority: bytes) -> None:
    """grpc-java names the socket's path there."""
    fields = [*without(b":authority"), (b":authority", authority), (b"te", b"trailers")]
    kinds, answer, seen = play(headers(fields, end=True))
    assert (kinds, seen) == ([engine.HEADERS], fields)
    assert RST_STREAM_OF_PROTOCOL_ERROR not in answer


def test_none_will_do_too() -> None:
    assert play(headers(without(b":authority"), end=True))[0] == [engine.HEADERS]


@pytest.mark.parametrize(
    "fields",
    [
        without(b":method"),
        without(b":scheme"),
        without(b":path"),
        [*without(b":path"), (b":path", b"")],
        [*without(b":path"), (b":path", b"/a b")],
        [*without(b":method"), (b":method", b"PO ST")],
        [*PSEUDO, (b":path", b"/again")],
        [*PSEUDO, (b":protocol", b"websocket")],
        [*PSEUDO, (b":status", b"200")],
        [*without(b":authority"), (b":authority", b"a\nb")],
        [*PSEUDO[:3], (b"a", b"1"), PSEUDO[3]],
        [*PSEUDO, (b"Upper", b"1")],
        [*PSEUDO, (b"connection", b"close")],
        [*PSEUDO, (b"transfer-encoding", b"chunked")],
        [*PSEUDO, (b"te", b"gzip")],
        [*PSEUDO, (b"content-length", b"1")],
        [*PSEUDO, (b"content-length", b"-0")],
        [*PSEUDO, (b"content-length", b"0"), (b"content-length", b"0")],
        [*PSEUDO, (b"content-length", b"9" * 30)],
    ],
)
def test_a_malformed_request_ends_its_stream_and_nobody_hears_of_it(fields: Fields) -> None:
    kinds, answer, _ = play(headers(fields, end=True))
    assert kinds == [engine.CLOSED]
    assert RST_STREAM_OF_PROTOCOL_ERROR in answer


@pytest.mark.parametrize("field", [(b"a b", b"1"), (b"", b"1"), (b"a", b"1\r\nb: 2")])
def test_a_field_that_no_server_understands_is_passed_over(field: tuple[bytes, bytes]) -> None:
    kinds, _, seen = play(headers([*PSEUDO, field, (b"x", b"y")], end=True))
    assert (kinds, seen) == ([engine.HEADERS], [*PSEUDO, (b"x", b"y")])


def test_another_stream_goes_on() -> None:
    server = Engine(server=True, limits=Limits())
    good = raw.frame(raw.HEADERS, raw.END_HEADERS | raw.END_STREAM, 3, b"".join(raw.field(*each) for each in PSEUDO))
    events = [event for batch in server.receive(raw.PREFACE + headers(without(b":path")) + good) for event in batch]
    assert (engine.HEADERS, 3) in [(kind, stream) for kind, stream, *_ in events]


@pytest.mark.parametrize(
    ("announced", "sent"),
    [
        (b"3", body(b"ab")),
        (b"3", body(b"abcd")),
        (b"3", body(b"abcd", end=False)),
        (b"0", body(b"a")),
        (b"3", body(b"ab", end=False) + headers([(b"x", b"y")], end=True)),
    ],
)
def test_a_body_of_another_length_than_announced(announced: bytes, sent: bytes) -> None:
    kinds, answer, _ = play(headers([*PSEUDO, (b"content-length", announced)]) + sent)
    assert kinds[-1] == engine.CLOSED
    assert engine.END not in kinds
    assert RST_STREAM_OF_PROTOCOL_ERROR in answer


@pytest.mark.parametrize(("announced", "sent"), [(b"3", body(b"ab", end=False) + body(b"c")), (b"0", body(b""))])
def test_a_body_of_the_length_announced(announced: bytes, sent: bytes) -> None:
    kinds, answer, _ = play(headers([*PSEUDO, (b"content-length", announced)]) + sent)
    assert kinds[-1] == engine.END
    assert RST_STREAM_OF_PROTOCOL_ERROR not in answer


@pytest.mark.parametrize(
    ("trailers", "end"), [([(b"x", b"y")], False), ([(b":path", b"/a")], True), ([(b"X", b"y")], True)]
)
def test_malformed_trailers(trailers: Fields, end: bool) -> None:
    kinds, answer, _ = play(headers(PSEUDO) + headers(trailers, end=end))
    assert kinds == [engine.HEADERS, engine.CLOSED]
    assert RST_STREAM_OF_PROTOCOL_ERROR in answer
