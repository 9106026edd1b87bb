"""The process that talks to the TPM: `python -m keystores.tpm.service`, its standard input the socket of frames.

A TCTI may hang or crash, and only a process of its own can be ended then. It ends with its socket, leaves nothing in
the TPM, and takes no notice of signals meant for the service that it belongs to.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from typing import Final

from keystores.tpm import messages
from keystores.tpm.device import Device
from keystores.tpm.failures import Fault
from keystores.tpm.jobs import answer

REST_AFTER: Final = 2.0
"""Seconds without a request after which the TPM is left empty."""
BEAT_EVERY: Final = 0.5
HANG_LIMIT: Final = 120
"""Seconds without an answer from the TPM after which the kernel ends the process, when nobody else has."""


class _Service:
    """One thread: with a second one the library's allocations, of which there are many, cost a sixth more."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._device: Device | None = None
        self._last_beat = 0.0

    def run(self) -> None:
        while (body := self._next()) is not None:
            message = messages.request(body)
            if isinstance(message, messages.Place):
                self._replace(Device(message))
            elif self._device is not None:
                self._send(self._answer(self._device, message))
        self._replace(None)

    def _next(self) -> bytes | None:
        """The next request; None at the end. The TPM rests while there is none."""
        if not select.select([self._channel], [], [], REST_AFTER)[0] and self._device is not None:
            signal.alarm(HANG_LIMIT)
            self._device.rest()
            signal.alarm(0)
        head = self._exactly(messages.LENGTH.size)
        return None if head is None else self._exactly(messages.LENGTH.unpack(head)[0])

    def _exactly(self, size: int) -> bytes | None:
        try:
            data = self._channel.recv(size, socket.MSG_WAITALL)
        except OSError:
            return None
        return data if len(data) == size else None

    def _replace(self, device: Device | None) -> None:
        signal.alarm(HANG_LIMIT)
        if self._device is not None:
            self._device.close()
        self._device = device
        signal.alarm(0)

    def _answer(self, device: Device, request: messages.Request) -> messages.Reply:
        self._last_beat = time.monotonic()
        signal.alarm(HANG_LIMIT)
        try:
            return answer(device, request, self._beat)
        except Fault as fault:
            return fault.failed
        finally:
            signal.alarm(0)

    def _beat(self) -> None:
        if time.monotonic() - self._last_beat > BEAT_EVERY:
            self._last_beat = time.monotonic()
            signal.alarm(HANG_LIMIT)
            self._send(messages.Beat())

    def _send(self, reply: messages.Reply) -> None:
        try:
            self._channel.sendall(messages.frame(reply))
        except OSError:
            # The program has gone; the next look for a request says so.
            return


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with socket.socket(fileno=0) as channel:
        _Service(channel).run()


if __name__ == "__main__":
    main()
