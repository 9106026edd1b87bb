"""The end of the host is noticed, whichever way it shows."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from plugins.served import host
from tests.simulators.spire import PATIENCE, eventually


def watched(parent: int, output: int) -> threading.Event:
    ended = threading.Event()
    host.watch(parent, output, ended.set)
    return ended


def test_a_pipe_without_reader() -> None:
    reading, writing = os.pipe()
    ended = watched(os.getppid(), writing)
    assert not ended.wait(0.2)
    os.close(reading)
    assert ended.wait(PATIENCE)
    os.close(writing)


def test_a_parent_that_has_ended_before() -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert watched(gone.pid, writing).wait(PATIENCE)
    os.close(reading)
    os.close(writing)


def test_children_are_ended() -> None:
    code = (
        "import subprocess, sys\nfrom plugins.served import host\n"
        "child = subprocess.Popen(['sleep', '3600'])\nprint(child.pid, flush=True)\nhost.end_children()\n"
        "sys.exit(-child.wait())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    eventually(lambda: not Path(f"/proc/{done.stdout.strip()}").exists(), "the child's end")
