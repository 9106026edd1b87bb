"""Profiles of this process, as `go tool pprof` reads them: CPU by thread, memory, and where threads and tasks stand."""

from __future__ import annotations

import asyncio
import gzip
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final

from generated.perftools.profiles import profile_pb2 as pb

PERIOD: Final = 0.01
"""Seconds between two looks at the threads."""

_DEPTH: Final = 128
_TRACED: Final = 24
"""Frames of a stack that are kept: of one that runs, and of one that asked for memory."""

_current_frames: Final[Callable[[], dict[int, FrameType]]] = vars(sys)["_current_frames"]
"""Documented in spite of its name, and the one way to see other threads (the library reference, sys)."""

Frame = tuple[str, str, int]
"""Function, file, line."""

Stack = tuple[Frame, ...]
"""The innermost first."""


def cpu(seconds: float, stop: threading.Event) -> bytes:
    """Looks for so long, or until `stop`, which threads use CPU, and where. Blocks; for a thread of its own.

    Each look gives a thread's stack what that thread used since the look before, by the kernel's count.
    """
    begin = time.monotonic()
    used: dict[int, int] = {}
    found: dict[Stack, list[int]] = {}
    while not stop.wait(PERIOD) and time.monotonic() - begin < seconds:
        threads = {each.ident: each.native_id for each in threading.enumerate()}
        for ident, frame in _current_frames().items():
            native = threads.get(ident)
            if native is None or native == threading.get_native_id():
                continue
            try:
                now = time.clock_gettime_ns(_clock_of(native))
            except OSError:
                continue  # it has ended
            spent = now - used.setdefault(native, now)
            used[native] = now
            if spent > 0:
                values = found.setdefault(_stack(frame), [0, 0])
                values[0] += 1
                values[1] += spent
    kinds = (("samples", "count"), ("cpu", "nanoseconds"))
    return encoded(kinds, found, period=int(PERIOD * 1e9), seconds=time.monotonic() - begin)


def _clock_of(native_id: int) -> int:
    """A thread's CPU clock, as pthread_getcpuclockid(3) makes it, but safe for a thread that has ended meanwhile."""
    return (~native_id << 3) | 6


def _stack(frame: FrameType | None) -> Stack:
    frames: list[Frame] = []
    while frame is not None and len(frames) < _DEPTH:
        frames.append((frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(frames)


def trace_memory() -> None:
    """Know from now on who asked for the memory that is in use. Costs time and memory at every object."""
    tracemalloc.start(_TRACED)


def heap(seconds: float, stop: threading.Event) -> bytes:
    """Memory in use that was asked for since `trace_memory`, or, without that, during so many seconds. Blocks."""
    begin = time.monotonic()
    traced = tracemalloc.is_tracing()
    if not traced:
        trace_memory()
    try:
        if not traced:
            stop.wait(seconds)
        snapshot = tracemalloc.take_snapshot()
    finally:
        if not traced:
            tracemalloc.stop()
    found: dict[Stack, list[int]] = {}
    for trace in snapshot.traces:
        frames = tuple((f"{each.filename}:{each.lineno}", each.filename, each.lineno) for each in trace.traceback)
        values = found.setdefault(frames[::-1], [0, 0])
        values[0] += 1
        values[1] += trace.size
    kinds = (("inuse_objects", "count"), ("inuse_space", "bytes"))
    return encoded(kinds, found, seconds=time.monotonic() - begin)


def threads() -> list[tuple[str, Stack]]:
    """Each thread's name and stack."""
    names = {each.ident: each.name for each in threading.enumerate()}
    return [(f"thread {names.get(ident, '?')}", _stack(frame)) for ident, frame in _current_frames().items()]


def tasks() -> list[tuple[str, Stack]]:
    """Each task's name, and what it waits for. On the loop's thread."""
    return [(f"task {each.get_name()}", tuple(_awaited(each.get_coro()))[::-1]) for each in asyncio.all_tasks()]


def _awaited(coroutine: Any) -> Iterator[Frame]:
    """From the outermost. Coroutines and generators name alike where they stand and what they wait for."""
    for _ in range(_DEPTH):
        kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(coroutine, f"{kind}_frame")), None)
        if kind is None:
            return
        frame: FrameType | None = getattr(coroutine, f"{kind}_frame")
        if frame is not None:
            yield frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno
        coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")


def counted(stacks: Sequence[tuple[str, Stack]], kind: str) -> bytes:
    found: dict[Stack, list[int]] = {}
    for _, stack in stacks:
        found.setdefault(stack, [0])[0] += 1
    return encoded(((kind, "count"),), found)


def text(stacks: Sequence[tuple[str, Stack]]) -> bytes:
    """To be read by people."""
    lines: list[str] = []
    for name, stack in stacks:
        lines += [name, *(f"    {function}  {file}:{line}" for function, file, line in stack), ""]
    return "\n".join(lines).encode()


def encoded(
    kinds: Sequence[tuple[str, str]], found: Mapping[Stack, Sequence[int]], *, period: int = 0, seconds: float = 0.0
) -> bytes:
    """A gzipped Profile: of each stack one value of each kind, which is named with its unit."""
    strings: dict[str, int] = {"": 0}

    def index(value: str) -> int:
        return strings.setdefault(value, len(strings))

    profile = pb.Profile(
        sample_type=[pb.ValueType(type=index(kind), unit=index(unit)) for kind, unit in kinds],
        mapping=[pb.Mapping(id=1, has_functions=True, has_filenames=True, has_line_numbers=True)],
        time_nanos=time.time_ns() - int(seconds * 1e9),
        duration_nanos=int(seconds * 1e9),
        period=period,
    )
    if period:
        profile.period_type.CopyFrom(profile.sample_type[-1])
    functions: dict[tuple[str, str], int] = {}
    locations: dict[Frame, int] = {}
    for stack, values in found.items():
        sample = profile.sample.add(value=values)
        for frame in stack:
            if frame not in locations:
                name, file, line = frame
                if (name, file) not in functions:
                    number = functions[name, file] = len(functions) + 1
                    profile.function.add(id=number, name=index(name), system_name=index(name), filename=index(file))
                locations[frame] = len(locations) + 1
                lines = [pb.Line(function_id=functions[name, file], line=line)]
                profile.location.add(id=locations[frame], mapping_id=1, line=lines)
            sample.location_id.append(locations[frame])
    profile.string_table.extend(strings)
    return gzip.compress(profile.SerializeToString(), mtime=0)
