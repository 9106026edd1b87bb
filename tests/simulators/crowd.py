"""A crowd of workloads that each hold a FetchX509SVID stream: `python -m tests.simulators.crowd SOCKET PROCESSES EACH`.

Every process is forked from one, which costs little, and has `EACH` connections with a stream on each. What arrives is
told on standard output, a record for each response. All end when standard input does.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

from tests.simulators.hostile import FETCH, OPENING, calls
from tests.simulators.http2_attacks import DATA, SETTINGS, frame

_RECORD: Final = struct.Struct("=IIId")
_SVIDS: Final = 1  # the field's number in X509SVIDResponse
_ENDED: Final = 0xFFFFFFFF


class Arrival(NamedTuple):
    """A response: to which workload, with how many SVIDs and bytes, and when, by time.monotonic of this machine."""

    workload: int
    svids: int
    size: int
    at: float


class Crowd:
    def __init__(self, path: str, processes: int, each: int = 1) -> None:
        self.size = processes * each
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.simulators.crowd", path, str(processes), str(each)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def until(self, svids: int, seconds: float = 120) -> dict[int, Arrival]:
        """The first response with so many SVIDs to each workload; waits until all have theirs."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        found: dict[int, Arrival] = {}
        end = time.monotonic() + seconds
        while len(found) < self.size:
            left = end - time.monotonic()
            ready = select.select((descriptor,), (), (), max(left, 0))[0]
            assert ready, f"{len(found)} of {self.size} workloads have {svids} SVIDs after {seconds:g} s"
            records = os.read(descriptor, _RECORD.size)
            assert records, "the crowd has ended"
            arrival = Arrival(*_RECORD.unpack(records))
            assert arrival.svids != _ENDED, f"the stream of workload {arrival.workload} has ended"
            if arrival.svids == svids:
                found.setdefault(arrival.workload, arrival)
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def gathered(path: str, processes: int, each: int = 1) -> Generator[Crowd]:
    crowd = Crowd(path, processes, each)
    try:
        yield crowd
    finally:
        crowd.end()


class _Workload:
    """One connection with one stream; reads frames, and messages out of them."""

    def __init__(self, number: int, path: str) -> None:
        self.number = number
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.sendall(OPENING + calls(FETCH, 1))
        self._frames = bytearray()
        self._body = bytearray()

    def read(self) -> list[bytes] | None:
        """Messages that have come; None at the end."""
        data = self.socket.recv(1 << 18)
        if not data:
            return None
        self._frames += data
        messages: list[bytes] = []
        while len(self._frames) >= 9 and len(self._frames) >= (size := 9 + int.from_bytes(self._frames[:3], "big")):
            kind, flags = self._frames[3], self._frames[4]
            if kind == DATA:
                self._body += self._frames[9:size]
            elif kind == SETTINGS and not flags:
                self.socket.sendall(frame(SETTINGS, 1, 0))
            del self._frames[:size]
        while len(self._body) >= 5 and len(self._body) >= (size := 5 + int.from_bytes(self._body[1:5], "big")):
            messages.append(bytes(self._body[5:size]))
            del self._body[:size]
        return messages


def _svids(message: bytes) -> int:
    """How many there are in an X509SVIDResponse, without the messages' classes: all fields are length-delimited."""
    at = count = 0
    while at < len(message):
        count += message[at] >> 3 == _SVIDS
        size = shift = 0
        while True:
            at += 1
            size |= (message[at] & 0x7F) << shift
            shift += 7
            if message[at] < 0x80:
                break
        at += 1 + size
    return count


def _work(first: int, path: str, each: int) -> None:
    workloads = {made.socket.fileno(): made for made in (_Workload(first + number, path) for number in range(each))}
    poll = select.poll()
    for descriptor in (0, *workloads):
        poll.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if not descriptor:
                return
            now = time.monotonic()
            workload = workloads[descriptor]
            messages = workload.read()
            if messages is None:
                poll.unregister(descriptor)
                os.write(1, _RECORD.pack(workload.number, _ENDED, 0, now))
            for message in messages or ():
                os.write(1, _RECORD.pack(workload.number, _svids(message), len(message), now))


def main(path: str, processes: int, each: int) -> None:
    for number in range(processes):
        if not os.fork():
            _work(number * each, path, each)
            os._exit(0)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
