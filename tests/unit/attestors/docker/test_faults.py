"""Daemons that are away, answer wrongly, hang or are slow."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable

import pytest

from attestors.docker import attestor
from attestors.docker.attestor import DockerAttestor
from attestors.docker.configuration import Configuration
from operations import logs
from operations.errors import SpireError, TemporarilyUnavailable
from tests.simulators.contained import (
    ID,
    OTHER_ID,
    SELECTORS,
    attestor_of,
    process_in,
    selectors,
)
from tests.simulators.docker_daemon import Daemon, Handler, answers, podman
from transport.peer import Process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make cgroups")


async def test_no_daemon(process: Process, no_waits: None) -> None:
    attesting = DockerAttestor(Configuration(docker_socket_path="unix:///nowhere/docker.sock"), logs.get())
    advice = "no such file or directory; check that the engine runs, and docker_socket_path"
    with pytest.raises(TemporarilyUnavailable, match=rf"^unix:///nowhere/docker\.sock.*: {advice}$"):
        await selectors(attesting, process)


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        (f"libpod-{ID}.scope", "podman_socket_path"),
        (f"user-61234.slice/libpod-{ID}.scope", "podman_socket_path_template"),
    ],
)
async def test_no_podman(daemon: Daemon, no_waits: None, path: str, setting: str) -> None:
    sockets = {"podman_socket_path": "unix:///nowhere/p", "podman_socket_path_template": "unix:///nowhere/%d"}
    attesting = attestor_of(daemon, **sockets)
    with process_in(path) as process, pytest.raises(TemporarilyUnavailable, match=rf"and {setting}$"):
        await selectors(attesting, process)


def writes(data: bytes) -> Callable[[Handler], bool]:
    """Anything, and closes."""

    def fault(handler: Handler) -> bool:
        handler.wfile.write(data)
        handler.close_connection = True
        return True

    return fault


ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * (5 << 20)
MANY = {"Config": {"Env": [f"V{number}=1" for number in range(20_000)]}}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (answers(500, {"message": "server\nerror"}), "Error response from daemon: server error (unix:///"),
        (answers(503, "busy"), "Error response from daemon: busy (unix:///"),
        (answers(502, ""), "Error response from daemon: status 502 (unix:///"),
        (answers(500, "x" * 5_000_000), "Error response from daemon: xxx"),
        (answers(301, ""), "Error response from daemon: status 301 (unix:///"),
        (answers(200, "no json"), "the answer is none of a container engine"),
        (answers(200, []), "the answer is none of a container engine"),
        (answers(200, {}), "the answer is none of a container engine"),
        (answers(200, {"Config": None}), "the answer is none of a container engine"),
        (answers(200, {"Config": {"Labels": ["a"]}}), "the answer is none of a container engine"),
        (answers(200, {"Config": {"Env": {"a": "b"}}}), "the answer is none of a container engine"),
        (answers(200, b'{"Config": {"Labels": {"a": "\xff"}}}'), "the answer is none of a container engine"),
        (answers(200, b'{"Config": ' + b"[" * 100_000), "the answer is none of a container engine"),
        (answers(200, b'{"X": ' + b"[" * 100_000), "the answer is none of a container engine"),
        (answers(500, b'{"message": "x", "x": ' + b"[" * 100_000), "Error response from daemon: {"),
        (answers(200, MANY), "more than 10000 labels and variables"),
        (writes(b""), "unix:///"),
        (writes(b"\x00\xff" * 1000), "unix:///"),
        (writes(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx"), "unix:///"),
        (writes(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000), "unix:///"),
        (writes(ENDLESS), "the answer is larger than 1048576 bytes"),
    ],
)  # fmt: skip
async def test_wrong_answers(
    daemon: Daemon, process: Process, no_waits: None, fault: Callable[[Handler], bool], reason: str
) -> None:
    daemon.fault = fault
    attesting = attestor_of(daemon)
    with pytest.raises(SpireError, match=re.escape(reason)) as caught:
        await selectors(attesting, process)
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)
    # The daemon has come to its senses.
    daemon.fault = None
    daemon.run(ID, pid=process.pid)
    assert await selectors(attesting, process) == SELECTORS


async def test_a_daemon_that_hangs(daemon: Daemon, process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestor, "_CONTAINER_TIME", 0.5)
    daemon.fault = lambda handler: bool(handler.rfile.read(1)) or True
    with pytest.raises(TemporarilyUnavailable, match=r"^unix:///.*: no answer within 0.5 s$"):
        await selectors(attestor_of(daemon), process)


async def test_a_container_of_a_slow_engine_keeps_no_other_waiting(daemon: Daemon, process: Process) -> None:
    daemon.run(ID, pid=process.pid)
    with podman() as engine, process_in(f"libpod-{OTHER_ID}.scope") as slow:
        engine.fault = lambda handler: bool(handler.rfile.read(1)) or True
        attesting = attestor_of(daemon, podman_socket_path=engine.socket)
        hanging = [asyncio.ensure_future(selectors(attesting, slow)) for _ in range(200)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            assert await selectors(attesting, process) == SELECTORS
        assert len(engine.requests) <= 8
        for each in hanging:
            each.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
