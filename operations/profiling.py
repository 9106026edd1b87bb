"""The profiling settings of server and agent: profiles over HTTP on the loopback, and files now and then.

Paths, names of profiles and of files are those of Go's, so that `go tool pprof` and habits go on working.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import parse_qs

from operations import files, logs, profiles
from operations.errors import InvalidArgument, TemporarilyUnavailable
from operations.http import Handler, Request, Response, routes
from operations.profiling_settings import Profiling

ROOT: Final = "/debug/pprof/"
FOLDER: Final = ".profiles"
"""Below the folder that the program was started in."""

LONGEST: Final = 300
"""Seconds that a profile may take."""

KEPT: Final = 100
"""Files of each profile that stay; older ones go."""

_CPU_SECONDS: Final = 30
_HEAP_SECONDS: Final = 10
_BINARY: Final = "application/octet-stream"

_log = logs.get("profiling")

_PAGE: Final = """<html><head><title>/debug/pprof/</title></head><body>
<p>Profiles of this process. Read them with: go tool pprof http://localhost:PORT/debug/pprof/NAME</p>
<ul>
<li><a href="profile?seconds=5">profile</a>: CPU, by thread and line; seconds=N, 30 by default</li>
<li><a href="heap?seconds=5">heap</a>: memory that was asked for during seconds=N, 10 by default, and is in use still;
since the start where profiling_names has heap</li>
<li><a href="goroutine?debug=1">goroutine</a>: where tasks and threads stand; as text with debug=1</li>
<li><a href="threadcreate?debug=1">threadcreate</a>: where threads stand; as text with debug=1</li>
<li><a href="cmdline">cmdline</a>: the command line</li>
</ul></body></html>
"""


class _Measure(Protocol):
    def __call__(self, seconds: float, stop: threading.Event) -> bytes: ...


class Profiler:
    """One at a time of those that take a while: two would measure each other."""

    def __init__(self, settings: Profiling, program: str) -> None:
        """`program` stands in the names of files."""
        self._settings = settings
        self._program = program
        self._busy: set[str] = set()
        if "heap" in settings.names:
            profiles.trace_memory()

    def handler(self) -> Handler:
        return routes(
            {
                ROOT: self._index,
                f"{ROOT}profile": partial(self._measured, "cpu", profiles.cpu, _CPU_SECONDS),
                f"{ROOT}heap": partial(self._measured, "heap", profiles.heap, _HEAP_SECONDS),
                f"{ROOT}goroutine": partial(self._stacks, "goroutine", _everything),
                f"{ROOT}threadcreate": partial(self._stacks, "threadcreate", profiles.threads),
                f"{ROOT}cmdline": self._command_line,
            }
        )

    async def _index(self, _request: Request) -> Response:
        return Response(200, _PAGE.encode(), "text/html; charset=utf-8")

    async def _command_line(self, _request: Request) -> Response:
        return Response(200, await asyncio.to_thread(_command_line))

    async def _measured(self, name: str, measure: _Measure, default: int, request: Request) -> Response:
        try:
            seconds = _seconds(request.query, default)
            return Response(200, await self._take(name, measure, seconds), _BINARY)
        except InvalidArgument as error:
            return Response(400, f"{error}\n".encode())
        except TemporarilyUnavailable as error:
            return Response(503, f"{error}\n".encode())

    async def _stacks(
        self, name: str, look: Callable[[], Sequence[tuple[str, profiles.Stack]]], request: Request
    ) -> Response:
        if parse_qs(request.query).get("debug", ["0"])[-1] not in ("", "0"):
            return Response(200, profiles.text(look()))
        return Response(200, profiles.counted(look(), name), _BINARY)

    async def _take(self, name: str, measure: _Measure, seconds: float) -> bytes:
        if name in self._busy:
            raise TemporarilyUnavailable(f"a profile {name} is being made already: ask again when it is done")
        self._busy.add(name)
        stop = threading.Event()
        try:
            return await asyncio.to_thread(measure, seconds, stop)
        finally:
            stop.set()
            self._busy.discard(name)

    async def write_files(self) -> None:
        """One of each of the names, every so many seconds, until cancelled; none any more once the disk refuses."""
        settings = self._settings
        folder = _folder()
        _log.info("Profiles are written", folder=folder, names=list(settings.names), seconds=settings.frequency)
        try:
            await asyncio.to_thread(folder.mkdir, 0o750, exist_ok=True)
            while True:
                ready = asyncio.create_task(asyncio.sleep(settings.frequency))
                try:
                    used = await self._cpu_meanwhile() if "cpu" in settings.names else None
                    await ready
                finally:
                    ready.cancel()
                moment = datetime.now().astimezone().strftime("%Y-%m-%d_%H%M%S")
                for name in settings.names:
                    data = used if name == "cpu" else await self._now(name)
                    if data is not None:
                        await asyncio.to_thread(_write, folder, f"{moment}_{self._program}_{name}.pb.gz", data)
        except OSError as error:
            _log.warning("Profiles cannot be written", folder=folder, error=error.strerror)
        await asyncio.Event().wait()  # the program goes on

    async def _cpu_meanwhile(self) -> bytes | None:
        try:
            return await self._take("cpu", profiles.cpu, self._settings.frequency)
        except TemporarilyUnavailable:
            return None  # somebody has asked for one over HTTP

    async def _now(self, name: str) -> bytes:
        if name == "heap":
            return await asyncio.to_thread(profiles.heap, 0, threading.Event())
        return profiles.counted(profiles.threads() if name == "threadcreate" else _everything(), name)


def _folder() -> Path:
    return Path(FOLDER).absolute()


def _command_line() -> bytes:
    return Path("/proc/self/cmdline").read_bytes().rstrip(b"\0")


def _everything() -> list[tuple[str, profiles.Stack]]:
    return [*profiles.tasks(), *profiles.threads()]


def _seconds(query: str, default: int) -> int:
    text = parse_qs(query).get("seconds", [str(default)])[-1]
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= LONGEST):
        raise InvalidArgument(f"seconds must be 1 to {LONGEST}")
    return int(text)


def _write(folder: Path, name: str, data: bytes) -> None:
    """Raises OSError."""
    files.write_atomically(folder / name, data, 0o640)
    kind = name.split("_", 2)[2]
    for old in sorted(folder.glob(f"*_{kind}"))[:-KEPT]:
        old.unlink(missing_ok=True)
