"""The process that talks to the TPM: `python -m keystores.tpm.service`, its standard input the socket of frames.

A TCTI may hang or crash, and only a process of its own can be ended then. It ends with its socket, leaves nothing in
the TPM, and takes no notice of signals meant for the service that it belongs to.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from queue import Empty, SimpleQueue
from typing import Final

from keystores.tpm import messages
from keystores.tpm.device import Device
from keystores.tpm.failures import Fault
from keystores.tpm.jobs import answer

REST_AFTER: Final = 2.0
"""Seconds without a request after which the TPM is left empty."""
BEAT_EVERY: Final = 0.5
LAST_WORK: Final = 10.0
"""Seconds that the work at hand may still take when nobody waits for it any more."""


class _Inbox:
    """Frames as they come, read by a thread: a request that hangs must not hide that the program has ended."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.frames: SimpleQueue[bytes | None] = SimpleQueue()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def _read(self) -> None:
        while (body := self._frame()) is not None:
            self.frames.put(body)
        self.frames.put(None)
        time.sleep(LAST_WORK)
        os._exit(1)

    def _frame(self) -> bytes | None:
        head = self._exactly(messages.LENGTH.size)
        return None if head is None else self._exactly(messages.LENGTH.unpack(head)[0])

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            try:
                part = self._channel.recv(size - len(data))
            except OSError:
                return None
            if not part:
                return None
            data += part
        return bytes(data)


class _Service:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._device: Device | None = None
        self._last_beat = 0.0

    def run(self) -> None:
        inbox = _Inbox(self._channel).frames
        while (body := self._next(inbox)) is not None:
            message = messages.request(body)
            if isinstance(message, messages.Place):
                self._replace(Device(message))
            elif self._device is not None:
                self._send(self._answer(self._device, message))
        self._replace(None)

    def _next(self, inbox: SimpleQueue[bytes | None]) -> bytes | None:
        try:
            return inbox.get(timeout=REST_AFTER)
        except Empty:
            if self._device is not None:
                self._device.rest()
            return inbox.get()

    def _replace(self, device: Device | None) -> None:
        if self._device is not None:
            self._device.close()
        self._device = device

    def _answer(self, device: Device, request: messages.Request) -> messages.Reply:
        self._last_beat = time.monotonic()
        try:
            return answer(device, request, self._beat)
        except Fault as fault:
            return fault.failed

    def _beat(self) -> None:
        if time.monotonic() - self._last_beat > BEAT_EVERY:
            self._last_beat = time.monotonic()
            self._send(messages.Beat())

    def _send(self, reply: messages.Reply) -> None:
        try:
            self._channel.sendall(messages.frame(reply))
        except OSError:
            # The program has gone; the inbox says so next.
            return


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=0) as channel:
        _Service(channel).run()


if __name__ == "__main__":
    main()
