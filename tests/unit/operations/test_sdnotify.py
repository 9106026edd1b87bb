"""Words to systemd: states, and signs of life where it waits for them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from operations import sdnotify


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_states(supervisor: socket.socket) -> None:
    sdnotify.starting("Attesting")
    sdnotify.serving("Serving spiffe://example.org")
    sdnotify.stopping()
    assert supervisor.recv(500) == b"STATUS=Attesting"
    assert supervisor.recv(500) == b"READY=1\nSTATUS=Serving spiffe://example.org"
    assert supervisor.recv(500).startswith(b"STOPPING=1\nSTATUS=")


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_calmed_in_half_its_time(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], interval: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sdnotify.watchdog_interval() == interval


async def test_signs_of_life(supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    task = asyncio.create_task(sdnotify.keep_watchdog_calm())
    for _ in range(3):
        assert await asyncio.to_thread(supervisor.recv, 100) == b"WATCHDOG=1"
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_none_when_none_are_wanted(supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await asyncio.wait_for(sdnotify.keep_watchdog_calm(), 30)
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(100)
