"""The docker attestor against daemons that answer as Docker and Podman do."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from attestors.docker import attestor
from attestors.docker.attestor import DockerAttestor
from attestors.docker.configuration import Configuration
from operations import logs
from operations.errors import InvalidArgument, NotFound
from plugins.catalog import PluginContext
from tests.simulators.cgroups import OWN
from tests.simulators.contained import (
    DOCKERS,
    ID,
    SELECTORS,
    Verifier,
    attestor_of,
    process_in,
    selectors,
)
from tests.simulators.docker_daemon import IMAGE, Daemon, Handler, docker, podman
from transport.peer import Process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make cgroups")


async def test_selectors(daemon: Daemon, process: Process) -> None:
    daemon.run(ID, pid=process.pid)
    attesting = attestor_of(daemon)
    assert await selectors(attesting, process) == SELECTORS
    assert await selectors(attesting, process) == SELECTORS
    # The version of the API is asked for once.
    asked = [f"GET /v1.47/containers/{ID}/json", f"GET /v1.47/images/{IMAGE}/json"]
    assert daemon.requests == ["HEAD /_ping", *asked, *asked]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"Labels": {}, "Env": [], "Image": ""}, []),
        ({"Labels": None, "Env": None, "Image": ""}, []),
        ({"Labels": {"a": "", "b:c": "d:e"}, "Env": [], "Image": ""}, ["label:a:", "label:b:c:d:e"]),
        ({"Labels": {}, "Env": ["F", "G=", "ü\n"], "Image": ""}, ["env:F", "env:G=", "env:ü\n"]),
        ({"Labels": {}, "Env": [], "Image": "gone:1"}, ["image_id:gone:1"]),
    ],
)
async def test_what_containers_have(
    daemon: Daemon, process: Process, config: dict[str, Any], expected: list[str]
) -> None:
    daemon.run(ID, pid=process.pid, **config)
    assert await selectors(attestor_of(daemon), process) == [f"docker:{each}" for each in expected]


async def test_an_answer_with_the_least(daemon: Daemon, process: Process) -> None:
    """Nothing else than what selectors are made of is needed."""
    daemon.containers[ID] = {"Config": {"Labels": {"a": "b"}}}
    assert await selectors(attestor_of(daemon), process) == ["docker:label:a:b"]


async def test_a_process_outside_of_containers(daemon: Daemon) -> None:
    with process_in("plain.service") as process:
        assert await selectors(attestor_of(daemon), process) == []
    assert daemon.requests == []


async def test_over_tcp(process: Process) -> None:
    with docker(tcp=True) as daemon:
        daemon.run(ID, pid=process.pid)
        attesting = DockerAttestor(Configuration(docker_socket_path=f"tcp://127.0.0.1:{daemon.port}"), logs.get())
        assert await selectors(attesting, process) == SELECTORS


async def test_rootful_podman(daemon: Daemon) -> None:
    with podman() as engine, process_in(f"libpod-{ID}.scope/container") as process:
        engine.run(ID, pid=process.pid)
        assert await selectors(attestor_of(daemon, podman_socket_path=engine.socket), process) == SELECTORS
        assert engine.requests[:2] == ["HEAD /_ping", f"GET /v1.41/containers/{ID}/json"]
    assert daemon.requests == []


async def test_a_users_podman(daemon: Daemon) -> None:
    path = f"user-61234.slice/user@61234.service/user.slice/libpod-{ID}.scope"
    with podman() as engine, tempfile.TemporaryDirectory() as folder, process_in(path) as process:
        (Path(folder) / "61234").symlink_to(engine.folder)
        engine.run(ID, pid=process.pid)
        attesting = attestor_of(daemon, podman_socket_path_template=f"unix://{folder}/%d/engine.sock")
        assert await selectors(attesting, process) == SELECTORS
    assert daemon.requests == []


async def test_a_podman_socket_that_cannot_be_one(daemon: Daemon) -> None:
    attesting = attestor_of(daemon, podman_socket_path="/run/podman.sock")
    reason = r'^unable to create Podman client for socket "/run/podman\.sock": '
    with process_in(f"libpod-{ID}.scope") as process, pytest.raises(InvalidArgument, match=reason):
        await selectors(attesting, process)


async def test_the_legacy_locator(daemon: Daemon) -> None:
    matchers = (f"/{OWN}/*/<id>", f"/{OWN}/<id>")
    attesting = attestor_of(daemon, use_new_container_locator=False, container_id_cgroup_matchers=matchers)
    with process_in("batch.slice/web") as process:
        daemon.run("web", pid=process.pid)
        assert await selectors(attesting, process) == SELECTORS
    with process_in(f"batch.slice/{ID}/below") as process:
        assert await selectors(attesting, process) == []


@pytest.mark.parametrize(
    ("offered", "asked"), [("1.24", "v1.24"), ("1.41", "v1.41"), ("1.99", "v1.55"), ("", "v1.55"), ("new", "v1.55")]
)
async def test_versions_of_the_api(daemon: Daemon, process: Process, offered: str, asked: str) -> None:
    def fault(handler: Handler) -> bool:
        handler.daemon.api_version = offered if handler.command == "HEAD" else "1.55"
        return False

    daemon.fault = fault
    daemon.run(ID, pid=process.pid)
    assert await selectors(attestor_of(daemon), process) == SELECTORS
    assert daemon.requests[1] == f"GET /{asked}/containers/{ID}/json"


async def test_a_version_that_is_given(daemon: Daemon, process: Process) -> None:
    daemon.run(ID, pid=process.pid)
    assert await selectors(attestor_of(daemon, docker_version="1.40"), process) == SELECTORS
    assert daemon.requests[0] == f"GET /v1.40/containers/{ID}/json"


async def test_a_daemon_that_became_an_older_one(daemon: Daemon, process: Process) -> None:
    daemon.run(ID, pid=process.pid)
    attesting = attestor_of(daemon)
    await selectors(attesting, process)
    daemon.api_version = "1.40"
    assert await selectors(attesting, process) == SELECTORS


async def test_a_container_that_the_daemon_knows_a_moment_later(daemon: Daemon, process: Process) -> None:
    def fault(handler: Handler) -> bool:
        if len(handler.daemon.requests) == 4:
            handler.daemon.run(ID, pid=process.pid)
        return False

    daemon.fault = fault
    assert await selectors(attestor_of(daemon), process) == SELECTORS
    assert len([each for each in daemon.requests if ID in each]) >= 3


async def test_a_container_that_does_not_exist(daemon: Daemon, process: Process) -> None:
    began = time.monotonic()
    with pytest.raises(NotFound, match=f"^Error response from daemon: No such container: {ID} .unix:///"):
        await selectors(attestor_of(daemon), process)
    assert time.monotonic() - began >= 0.7
    assert len([each for each in daemon.requests if ID in each]) == 4


async def test_a_process_that_has_ended(daemon: Daemon) -> None:
    with process_in(DOCKERS) as process:
        daemon.run(ID, pid=process.pid)
    with pytest.raises(NotFound):
        await selectors(attestor_of(daemon), process)


async def test_patience(daemon: Daemon) -> None:
    """Longer than what it asks may take, so that what failed is told."""
    assert attestor_of(daemon).patience == 12.0
    configuration = Configuration(docker_socket_path=daemon.socket)
    assert DockerAttestor(configuration, logs.get(), Verifier()).patience == 72.0


async def test_many_at_once(daemon: Daemon, process: Process) -> None:
    daemon.run(ID, pid=process.pid)
    attesting = attestor_of(daemon)
    found = await asyncio.gather(*(selectors(attesting, process) for _ in range(64)))
    assert found == [SELECTORS] * 64


async def test_loading(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "spire")
    matchers = ("/docker/<id>",)
    configuration = Configuration(use_new_container_locator=False, container_id_cgroup_matchers=matchers)
    made = await attestor.load(configuration, PluginContext("example.org", None, logs.get("docker")))
    assert made.name == "docker"
    assert "Using the legacy container locator with custom cgroup matchers." in caplog.text
