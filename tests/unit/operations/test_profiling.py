"""Profiles: what of them pprof reads, who may ask for how much, and files."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from generated.perftools.profiles import profile_pb2 as pb
from operations import profiles, profiling
from operations.checks import Checks
from operations.errors import ConfigurationError
from operations.hcl import parse
from operations.http import Request
from operations.profiling import KEPT, Profiler
from operations.profiling_settings import Profiling, read, warnings
from server.config.file import ServerSection

OVER_HTTP = Profiling(1, 0, ())


def names_of(data: bytes) -> list[tuple[list[str], list[int]]]:
    """Functions, the innermost first, and values of each sample."""
    profile = pb.Profile.FromString(gzip.decompress(data))
    texts = profile.string_table
    assert texts[0] == ""
    functions = {each.id: texts[each.name] for each in profile.function}
    locations = {each.id: functions[each.line[0].function_id] for each in profile.location}
    assert all(len(each.value) == len(profile.sample_type) for each in profile.sample)
    return [([locations[each] for each in sample.location_id], list(sample.value)) for sample in profile.sample]


def burn(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


def test_cpu_is_that_of_the_thread_that_used_it() -> None:
    stop = threading.Event()
    busy = threading.Thread(target=burn, args=(stop,))
    idle = threading.Thread(target=stop.wait)
    for each in (busy, idle):
        each.start()
    try:
        data = profiles.cpu(1.0, threading.Event())
    finally:
        stop.set()
        busy.join()
        idle.join()
    spent = {"burn": 0, "wait": 0}
    for names, (_, nanoseconds) in names_of(data):
        for name in spent:
            spent[name] += nanoseconds if any(each.split(".")[-1] == name for each in names) else 0
    assert spent["burn"] > 10 * spent["wait"]
    profile = pb.Profile.FromString(gzip.decompress(data))
    assert [profile.string_table[each.type] for each in profile.sample_type] == ["samples", "cpu"]
    assert profile.duration_nanos >= 1e9


def test_memory_that_is_in_use_and_who_asked_for_it() -> None:
    kept: list[bytes] = []
    stop = threading.Event()

    def ask() -> None:
        while not tracemalloc.is_tracing():
            time.sleep(0.01)
        kept.append(bytes(5_000_000))
        stop.set()

    asking = threading.Thread(target=ask)
    asking.start()
    data = profiles.heap(60, stop)
    asking.join()
    assert not tracemalloc.is_tracing()
    assert any(values[1] >= 5_000_000 and "test_profiling.py" in names[0] for names, values in names_of(data))


async def wait_inside(event: asyncio.Event) -> None:
    await event.wait()


async def test_where_tasks_stand_down_to_what_they_wait_for() -> None:
    task = asyncio.create_task(wait_inside(asyncio.Event()), name="mine")
    await asyncio.sleep(0)
    handler = Profiler(OVER_HTTP, "server").handler()
    response = await handler(Request("GET", "/debug/pprof/goroutine", "debug=1"))
    text = response.body.decode()
    assert "task mine\n    Event.wait" in text
    assert "thread MainThread\n" in text
    samples = names_of((await handler(Request("GET", "/debug/pprof/goroutine"))).body)
    assert ["Event.wait", "wait_inside"] in [names for names, _ in samples]
    assert names_of((await handler(Request("GET", "/debug/pprof/threadcreate"))).body)
    task.cancel()


@pytest.mark.parametrize("query", ["seconds=0", "seconds=301", "seconds=x", "seconds=-1", "seconds=1e9"])
async def test_times_are_bounded(query: str) -> None:
    response = await Profiler(OVER_HTTP, "server").handler()(Request("GET", "/debug/pprof/profile", query))
    assert (response.status, response.body) == (400, b"seconds must be 1 to 300\n")


async def test_one_at_a_time_and_none_for_who_has_left() -> None:
    handler = Profiler(OVER_HTTP, "server").handler()
    first = asyncio.ensure_future(handler(Request("GET", "/debug/pprof/profile", "seconds=300")))
    await asyncio.sleep(0.1)
    assert (await handler(Request("GET", "/debug/pprof/profile", "seconds=1"))).status == 503
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    assert (await handler(Request("GET", "/debug/pprof/profile", "seconds=1"))).status == 200


async def test_other_pages() -> None:
    handler = Profiler(OVER_HTTP, "server").handler()
    assert b"profile?seconds" in (await handler(Request("GET", "/debug/pprof/"))).body
    assert b"python" in (await handler(Request("GET", "/debug/pprof/cmdline"))).body
    assert (await handler(Request("GET", "/debug/pprof/mutex"))).status == 404


async def test_files_of_each_name_and_only_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / profiling.FOLDER
    folder.mkdir()
    for number in range(KEPT):
        (folder / f"2000-01-01_{number:06d}_agent_goroutine.pb.gz").touch()
    (folder / "mine.txt").touch()
    writing = asyncio.create_task(Profiler(Profiling(0, 1, ("cpu", "goroutine", "heap")), "agent").write_files())
    try:
        async with asyncio.timeout(60):
            while not list(folder.glob("20[1-9]*_agent_heap.pb.gz")):  # noqa: ASYNC110 - a file says so
                await asyncio.sleep(0.05)
    finally:
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing
        tracemalloc.stop()
    assert len(list(folder.glob("*_agent_goroutine.pb.gz"))) == KEPT
    assert (folder / "mine.txt").exists()
    for name in ("cpu", "goroutine", "heap"):
        names_of(max(folder.glob(f"*_agent_{name}.pb.gz")).read_bytes())


async def test_a_disk_that_refuses_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / profiling.FOLDER).touch()
    writing = asyncio.create_task(Profiler(Profiling(0, 1, ("goroutine",)), "agent").write_files())
    async with asyncio.timeout(60):
        while "Profiles cannot be written" not in caplog.text:  # noqa: ASYNC110 - the log says so
            await asyncio.sleep(0.05)
    assert not writing.done()
    writing.cancel()


def test_settings() -> None:
    checks = Checks(parse("server {\n profiling_port = 70000\n}", "spire.conf"), "server")
    assert read(ServerSection(profiling_port=70000, profiling_freq=5), checks) is None
    with pytest.raises(ConfigurationError, match=r"spire.conf:2: .*profiling_port 70000"):
        checks.done()
    section = ServerSection(profiling_enabled=True, profiling_freq=5, profiling_names=("cpu", "mutex", "nope", "cpu"))
    assert read(section, Checks(parse("server {}", "c"), "server")) == Profiling(0, 5, ("cpu",))
    told = warnings(section)
    assert len(told) == 2
    assert '"mutex" is a profile of Go' in told[0]
    assert warnings(ServerSection(profiling_names=("nope",))) == ()
