"""The host's end is ours: no signal tells of it, since a plugin's standard input is whatever the host's is.

Two things do, watched by a thread of its own, so that an event loop that hangs does not keep the process: a descriptor
of the parent (pidfd_open(2)), and our end of the pipe that the host reads, which breaks with its last reader; behind a
wrapper that stays, the parent is not the host. PR_SET_PDEATHSIG is not used: it is about the thread that forked, and
threads of a Go program come and go.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_LOOK: Final = 1000
"""Milliseconds between looks at the parent's pid, where the kernel or a sandbox gives no descriptor of it."""


def watch(parent: int, output: int, ended: Callable[[], None]) -> None:
    """Call `ended`, on another thread, once: when process `parent` has ended or nobody reads `output` any more."""
    threading.Thread(target=_watch, args=(parent, output, ended), name="host", daemon=True).start()


def _watch(parent: int, output: int, ended: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(output, 0)  # errors and hang-ups are told without asking
    descriptor = -1
    wait: int | None = _LOOK
    with suppress(OSError):  # it has ended, or a sandbox forbids; its pid tells as well, a little later
        descriptor = os.pidfd_open(parent)
        poll.register(descriptor, select.POLLIN)
        wait = None
    while os.getppid() == parent and not poll.poll(wait):
        pass
    if wait is None:
        os.close(descriptor)
    ended()


def end_after(seconds: float) -> None:
    """End this process and its children then, whatever it hangs in."""

    def end() -> None:
        time.sleep(seconds)
        end_children()
        os._exit(1)

    threading.Thread(target=end, name="last-resort", daemon=True).start()


def end_children() -> None:
    """Kill what this process started and did not end itself: the host waits for whoever holds its pipes."""
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            for pid in path.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
