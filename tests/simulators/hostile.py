"""A workload that means harm, as a process of its own: `python -m tests.simulators.hostile UID SOCKET ATTACK`.

It becomes the user, attacks the Unix socket, writes what became of its connections, and holds on to all of it until its
standard input ends.
"""

from __future__ import annotations

import os
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.simulators.http2_attacks import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    field,
    frame,
    request,
)

_API: Final = b"/SpiffeWorkloadAPI/"
_SECURITY: Final = field(b"workload.spiffe.io", b"true")
FETCH: Final = request(_API + b"FetchX509SVID", _SECURITY)
VALIDATE: Final = request(_API + b"ValidateJWTSVID", _SECURITY)
BARE: Final = request(_API + b"FetchX509SVID")
HEALTH: Final = request(b"/grpc.health.v1.Health/Check")
_EMPTY: Final = b"\0" + struct.pack(">I", 0)
OPENING: Final = (
    PREFACE
    + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0x7FFFFFFF))
    + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFF0000 - 65_535))
)
"""With the windows wide open."""

_BUSY: Final = 5.0  # seconds that what goes round and round takes


def calls(block: bytes, count: int, start: int = 1, body: bytes = _EMPTY) -> bytes:
    """So many whole requests."""
    return b"".join(
        frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)
        for stream in range(start, start + 2 * count, 2)
    )


class Connections:
    """Non-blocking ones to a socket, in the folder that the process is in."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.open: list[socket.socket] = []

    def connect(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            return None
        sock.setblocking(False)
        self.open.append(sock)
        return sock

    def say(self, words: bytes) -> socket.socket | None:
        """On a new connection, as far as the agent takes it at once."""
        sock = self.connect()
        if sock is not None:
            send(sock, words)
        return sock

    def close(self) -> None:
        for sock in self.open:
            sock.close()
        self.open.clear()

    def alive(self) -> int:
        """How many the agent has not closed."""
        return sum(not is_closed(sock) for sock in self.open)


def send(sock: socket.socket, words: bytes) -> bool:
    """Whether all went out; waits a little for an agent that is slow to read."""
    view = memoryview(words)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            if not select.select((), (sock,), (), 0.2)[1]:
                return False
        except OSError:
            return False
    return True


def is_closed(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def drain(sock: socket.socket) -> int:
    """Reads what there is; how many bytes that was."""
    total = 0
    with suppress(OSError):
        while data := sock.recv(1 << 20):
            total += len(data)
    return total


def hoard(made: Connections) -> None:
    """Ten thousand streams on a few connections, of which nothing is read."""
    for _ in range(4):
        made.say(OPENING + calls(FETCH, 2500))


def crowd(made: Connections) -> None:
    """Ten thousand connections with a stream on each, of which nothing is read."""
    for _ in range(10_000):
        made.say(OPENING + calls(FETCH, 1))


def churn(made: Connections) -> None:
    """Streams that are opened and given up at once, and the answers left lying."""
    for _ in range(20):
        made.say(OPENING)
    end = time.monotonic() + _BUSY
    stream = 1
    while time.monotonic() < end:
        reset = b"".join(
            frame(HEADERS, END_HEADERS, each, FETCH)
            + frame(DATA, END_STREAM, each, _EMPTY)
            + frame(RST_STREAM, 0, each, struct.pack(">I", 8))
            for each in range(stream, stream + 200, 2)
        )
        stream += 200
        for sock in made.open:
            send(sock, reset)


def torn(made: Connections) -> None:
    """Messages and frames that break off, on connections that then end."""
    whole = PREFACE + calls(FETCH, 1) + calls(VALIDATE, 1, 3, b"\0" + struct.pack(">I", 1000) + bytes(100))
    chance = random.Random(1)
    end = time.monotonic() + _BUSY
    while time.monotonic() < end:
        for _ in range(50):
            made.say(whole[: chance.randrange(len(whole))])
        made.close()


def garbage(made: Connections) -> None:
    """Anything but HTTP/2, and HTTP/2 with anything in its frames."""
    chance = random.Random(2)
    end = time.monotonic() + _BUSY
    while time.monotonic() < end:
        for _ in range(25):
            made.say(chance.randbytes(5000))
            made.say(PREFACE + chance.randbytes(5000))
            made.say(PREFACE + calls(FETCH, 1) + frame(DATA, END_STREAM, 1, chance.randbytes(5000)))
            made.say(PREFACE + calls(FETCH, 20, 1, b"\0" + struct.pack(">I", 900) + chance.randbytes(900)))
        made.close()


def half_requests(made: Connections) -> None:
    """Large messages that never come to their end."""
    part = b"\0" + struct.pack(">I", 4 << 20) + bytes(16_000)
    for _ in range(30):
        started = b"".join(
            frame(HEADERS, END_HEADERS, each, VALIDATE) + frame(DATA, 0, each, part) for each in range(1, 400, 2)
        )
        sock = made.say(PREFACE + started)
        for _ in range(20):
            if sock is None or not send(sock, b"".join(frame(DATA, 0, each, part[5:]) for each in range(1, 400, 2))):
                break


def flood(made: Connections) -> None:
    """Calls as fast as they are answered, on many connections."""
    for _ in range(50):
        made.say(OPENING)
    token = b"\0" + struct.pack(">I", 8) + b"\x0a\x01x\x12\x03a.b"
    stream = 1
    end = time.monotonic() + _BUSY
    while time.monotonic() < end:
        for sock in made.open:
            send(sock, calls(HEALTH, 20, stream) + calls(VALIDATE, 20, stream + 40, token))
            send(sock, calls(BARE, 20, stream + 80))
            drain(sock)
        stream += 120


def crowded_flood(made: Connections) -> None:
    """The same on as many connections as are to be had, and without waiting for answers."""
    for _ in range(4000):
        made.say(OPENING)
    stream = 1
    end = time.monotonic() + _BUSY
    while time.monotonic() < end:
        for sock in made.open:
            with suppress(OSError):
                sock.send(calls(BARE, 100, stream))
            drain(sock)
        stream += 200


ATTACKS: Final[dict[str, Callable[[Connections], None]]] = {
    each.__name__: each for each in (hoard, crowd, churn, torn, garbage, half_requests, flood, crowded_flood)
}


class Attack:
    """A hostile process that is under way."""

    def __init__(self, uid: int, path: str, attack: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.simulators.hostile", str(uid), path, attack],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def done(self) -> bool:
        """Whether it has done what it can, or has ended."""
        assert self._process.stdout is not None
        return bool(select.select((self._process.stdout,), (), (), 0)[0])

    def alive(self) -> int:
        """How many connections it then had."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def attacking(path: str, attack: str, uids: list[int]) -> Generator[list[Attack]]:
    """One hostile process for each user; all end with the block."""
    running = [Attack(uid, path, attack) for uid in uids]
    try:
        yield running
    finally:
        for each in running:
            each.end()


def main(uid: int, path: str, attack: str) -> None:
    # What lies above the folder may be closed to the user.
    os.chdir(Path(path).parent)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if uid != os.getuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    made = Connections(Path(path).name)
    ATTACKS[attack](made)
    print(made.alive(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
