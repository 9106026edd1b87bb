"""The engine alone: two of them talk, and one is fed with anything."""

from __future__ import annotations

import os
import struct
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulators import http2_attacks as raw
from transport import engine
from transport.engine import Engine, Event, ProtocolError, pack, unpack
from transport.limits import Limits

REQUEST: Final = pack([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b":authority", b"x")])
RESPONSE: Final = pack([(b":status", b"200")])
TRAILERS: Final = pack([(b"grpc-status", b"0")])
EXAMPLES: Final = int(os.environ.get("SPIRE_FUZZ_EXAMPLES", "300"))


def exchange(one: Engine, other: Engine) -> tuple[list[Event], list[Event]]:
    """Carries bytes to and fro until both are silent; what each of them has seen."""
    seen: tuple[list[Event], list[Event]] = ([], [])
    moved = True
    while moved:
        moved = False
        for sender, receiver, own, others in ((one, other, seen[0], seen[1]), (other, one, seen[1], seen[0])):
            data, events = sender.send()
            own += events
            if data:
                moved = True
                for batch in receiver.receive(data):
                    others += batch
    return seen


def pair() -> tuple[Engine, Engine]:
    client, server = Engine(server=False, limits=Limits()), Engine(server=True, limits=Limits())
    exchange(client, server)
    return client, server


def test_a_call() -> None:
    client, server = pair()
    stream = client.start(0, REQUEST, b"question", end=True)
    _, seen = exchange(client, server)
    assert [(kind, payload) for kind, _, _, payload in seen] == [
        (engine.HEADERS, REQUEST),
        (engine.DATA, b"question"),
        (engine.END, b""),
    ]
    assert server.start(stream, RESPONSE, b"answer", end=True, trailers=TRAILERS) == stream
    seen, closed = exchange(client, server)
    assert [(kind, value, payload) for kind, _, value, payload in seen] == [
        (engine.HEADERS, 0, RESPONSE),
        (engine.DATA, 0, b"answer"),
        (engine.HEADERS, 1, TRAILERS),
        (engine.CLOSED, 0, b""),
    ]
    assert [kind for kind, *_ in closed] == [engine.CLOSED]


def test_pieces_are_sent_in_order_before_and_after_the_request_goes_out() -> None:
    client, server = pair()
    stream = client.start(0, REQUEST)
    client.more(stream, b"one ")
    client.more(stream, b"two ")
    sent, seen = exchange(client, server)
    assert (engine.SENT, stream, 0, b"") in sent
    client.more(stream, b"three", end=True)
    _, more = exchange(client, server)
    assert b"".join(payload for kind, *_, payload in seen + more if kind == engine.DATA) == b"one two three"
    assert more[-1][0] == engine.END


def test_an_early_answer_stops_the_request() -> None:
    client, server = pair()
    stream = client.start(0, REQUEST, b"more to come")
    exchange(client, server)
    server.start(stream, RESPONSE, b"", end=True, trailers=TRAILERS)
    seen, _ = exchange(client, server)
    assert seen[-1] == (engine.CLOSED, stream, engine.NO_ERROR, b"")
    client.more(stream, b"nobody listens")
    assert exchange(client, server) == ([], [])


def test_a_stream_that_is_gone_takes_nothing() -> None:
    client, server = pair()
    stream = client.start(0, REQUEST)
    client.reset(stream, engine.CANCEL)
    exchange(client, server)
    assert server.start(stream, RESPONSE, b"late", end=True) == 0
    server.more(stream, b"later")
    server.consumed(stream, 10)
    server.reset(stream, engine.CANCEL)
    server.start(999, RESPONSE)
    assert exchange(client, server) == ([], [])


def test_windows_hold_back_what_is_not_read() -> None:
    client, server = pair()
    stream = client.start(0, REQUEST, bytes(1_000_000), end=True)
    _, seen = exchange(client, server)
    received = sum(len(payload) for *_, payload in seen if _[0] == engine.DATA)
    assert received == Limits().stream_window
    server.consumed(stream, received)
    _, seen = exchange(client, server)
    assert sum(len(payload) for kind, *_, payload in seen if kind == engine.DATA) == Limits().stream_window


def test_a_large_header_list_resets_its_stream_only() -> None:
    client, server = pair()
    stream = client.start(0, REQUEST + pack([(b"x", b"y" * 20_000)]), b"", end=True)
    seen, _ = exchange(client, server)
    assert (engine.CLOSED, stream, engine.INTERNAL_ERROR, b"") in seen
    client.start(0, REQUEST, b"", end=True)
    _, seen = exchange(client, server)
    assert seen[0][3] == REQUEST


def test_a_graceful_end() -> None:
    client, server = pair()
    first = client.start(0, REQUEST)
    exchange(client, server)
    server.announce_shutdown()
    seen, _ = exchange(client, server)
    assert [kind for kind, *_ in seen] == [engine.GOAWAY]
    server.go_away()
    exchange(client, server)
    assert server.alive
    server.start(first, RESPONSE, b"", end=True, trailers=TRAILERS)
    exchange(client, server)
    assert not server.alive


def test_a_broken_preface_is_an_error_with_a_goaway() -> None:
    server = Engine(server=True, limits=Limits())
    with pytest.raises(ProtocolError):
        list(server.receive(b"GET / HTTP/1.1\r\n\r\n" * 4))


def test_header_blocks_read_back() -> None:
    fields = [(b"a", b"1"), (b"", b""), (b"b", bytes(300))]
    assert list(unpack(pack(fields))) == fields


@pytest.mark.parametrize("block", [b"\1", b"\1\0\0\0\0\0\0", struct.pack("=II", 5, 2**32 - 1) + b"short"])
def test_a_malformed_block_is_refused(block: bytes) -> None:
    client, _ = pair()
    with pytest.raises(ProtocolError):
        client.start(0, block)


FRAMES = st.builds(
    raw.frame,
    st.sampled_from([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255]),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0x20]), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 1, 3, 5]), st.integers(0, 2**31 - 1)),
    st.one_of(
        st.sampled_from([raw.UNARY, raw.CHAT, b"", b"\0\0\0\0\3abc", b"\0\0\0\1", b"\0\3\0\0\0\1"]),
        st.binary(max_size=64),
    ),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.one_of(FRAMES, FRAMES, st.binary(max_size=40)), max_size=40), st.data())
def test_anything_fed_to_a_server_ends_in_events_or_one_error(frames: list[bytes], data: st.DataObject) -> None:
    server = Engine(server=True, limits=Limits())
    play(server, raw.PREFACE + b"".join(frames), data)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.one_of(FRAMES, FRAMES, st.binary(max_size=40)), max_size=40), st.data())
def test_anything_fed_to_a_client_ends_in_events_or_one_error(frames: list[bytes], data: st.DataObject) -> None:
    client = Engine(server=False, limits=Limits())
    client.start(0, REQUEST, b"x" * 100, end=True)
    client.start(0, REQUEST, b"y" * 100)
    client.send()
    play(client, raw.frame(raw.SETTINGS, 0, 0) + b"".join(frames), data)


def play(fed: Engine, sent: bytes, data: st.DataObject) -> None:
    """Feeds an engine in pieces and answers, resets or extends whatever stream it tells of."""
    at = 0
    try:
        while at < len(sent):
            size = data.draw(st.integers(1, len(sent)), label="piece")
            for events in fed.receive(sent[at : at + size]):
                for kind, stream, _, payload in events:
                    if kind == engine.HEADERS:
                        list(unpack(payload))
                    act(fed, stream, data.draw(st.integers(0, 6), label="act"))
            at += size
            fed.send()
    except ProtocolError:
        fed.queued_frames  # noqa: B018 - still to be asked after an error
        return


def act(fed: Engine, stream: int, choice: int) -> None:
    match choice:
        case 0 if stream % 2:
            fed.start(stream, RESPONSE, b"answer", end=True, trailers=TRAILERS)
        case 1 if stream % 2:
            fed.start(stream, RESPONSE, bytes(70_000))
        case 2:
            fed.more(stream, b"more", end=True, trailers=TRAILERS)
        case 3:
            fed.reset(stream, engine.CANCEL)
        case 4:
            fed.consumed(stream, 100)
        case 5:
            fed.send()
        case _:
            pass
