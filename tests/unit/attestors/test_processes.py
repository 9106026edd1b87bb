"""A process that somebody names by its pid is held on to while it is looked at."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from attestors import processes
from operations.errors import NotFound, Refused
from transport.peer import Process


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_as_it_is(child: subprocess.Popen[bytes]) -> None:
    with processes.pinned(child.pid) as process:
        assert process == Process(child.pid, os.getuid(), os.getgid(), processes.started(child.pid))
        processes.require_same(process)


@pytest.mark.parametrize("pid", [-1, 0, 2**31 - 1, 2**31, 2**64])
def test_what_is_no_process(pid: int) -> None:
    with pytest.raises(NotFound), processes.pinned(pid):
        pass


def test_a_process_that_ended_while_it_was_looked_at(child: subprocess.Popen[bytes]) -> None:
    held = processes.pinned(child.pid)
    held.__enter__()
    child.kill()
    child.wait()
    with pytest.raises(NotFound, match="has ended"):
        held.__exit__(None, None, None)


def test_a_process_whose_parent_has_not_asked_for_it_yet(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(NotFound, match="has ended"), processes.pinned(child.pid):
        pass


def test_a_thread_is_no_process() -> None:
    found: list[type[BaseException]] = []

    def look() -> None:
        try:
            with processes.pinned(threading.get_native_id()):
                pass
        except (NotFound, Refused) as error:
            found.append(type(error))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert len(found) == 1
