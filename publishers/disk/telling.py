"""Telling a program that its files have changed: a command is run, or a signal sent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from operations.errors import PermanentlyUnusable, Refused, TemporarilyUnavailable
from operations.quoting import quote

TIMEOUT = 60.0
"""Seconds that a command may take."""

_MOST_OUTPUT = 4096
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def run(command: Sequence[str], folder: Path, spiffe_id: str, seconds: float = TIMEOUT) -> None:
    """Run a command to its end, without a shell, with the folder and the SPIFFE ID in its environment.

    Raises PermanentlyUnusable when it cannot be run, Refused when it fails, TemporarilyUnavailable when it takes
    longer than `seconds`; it is ended then.
    """
    environment = {"PATH": os.environ.get("PATH", _PATH), "SVID_DIRECTORY": str(folder), "SPIFFE_ID": spiffe_id}
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise PermanentlyUnusable(f"on_change: {command[0]} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(seconds):
            output = await _output(process)
            status = await process.wait()
    except TimeoutError as error:
        raise TemporarilyUnavailable(f"on_change: {command[0]} took longer than {seconds:g} s and was ended") from error
    finally:
        await _end(process)
    if status != 0:
        said = f": {quote(output)}" if output else ""
        raise Refused(f"on_change: {command[0]} ended with status {status}{said}")


async def _output(process: asyncio.subprocess.Process) -> str:
    """The beginning of what it writes; the rest is read, so that it can go on, and dropped."""
    kept = b""
    if process.stdout is not None:
        while chunk := await process.stdout.read(_MOST_OUTPUT):
            kept += chunk[: _MOST_OUTPUT - len(kept)]
    return kept.decode(errors="replace").strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def send(number: signal.Signals, pid_file: Path) -> bool:
    """Send a signal to the process whose pid is in the file. False when there is none: it reads its files at its start.

    Raises Refused for a file that has no pid, or a process that may not be sent signals. Blocks on the disk.
    """
    try:
        text = pid_file.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Refused(f"pid_file_name {pid_file} cannot be read: {error.strerror}") from error
    if not text.isdecimal() or not 1 < int(text[:10]) < 1 << 22:
        raise Refused(f"pid_file_name {pid_file} has no pid in it: {quote(text[:20])}")
    try:
        os.kill(int(text), number)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise Refused(f"cannot send {number.name} to process {text}: {error.strerror}") from error
    return True
