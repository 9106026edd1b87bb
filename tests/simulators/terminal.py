"""A program on a terminal of its own, with somebody who types there."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

PATIENCE = 60.0


class Terminal:
    """`shown` is all that stood on the screen so far."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._screen, theirs = pty.openpty()
        self._theirs = theirs
        self.shown = ""
        # setsid(1) makes it the controlling terminal, as a login does. Whoever runs the tests in the background has
        # SIGINT ignored, and a program would inherit that.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", "env", "--default-signal=INT", *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=None if environment is None else dict(environment),
        )

    @property
    def echoes(self) -> bool:
        flags: int = termios.tcgetattr(self._theirs)[3]
        return bool(flags & termios.ECHO)

    def see(self, text: str) -> None:
        """Wait until it stands there."""
        end = time.monotonic() + PATIENCE
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} is not among {self.shown!r}"
            if select.select([self._screen], [], [], min(left, 0.2))[0]:
                self.shown += os.read(self._screen, 4096).decode()
            else:
                assert self.process.poll() is None or text in self.shown, f"it ended with {self.shown!r}"

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def end(self) -> int:
        """Wait for the end, and give the status."""
        status = self.process.wait(PATIENCE)
        while select.select([self._screen], [], [], 0)[0]:
            self.shown += os.read(self._screen, 4096).decode()
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._screen)
        os.close(self._theirs)


@contextmanager
def terminal(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Generator[Terminal]:
    made = Terminal(command, environment)
    try:
        yield made
    finally:
        made.close()
