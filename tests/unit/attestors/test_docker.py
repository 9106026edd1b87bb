"""The docker attestor against daemons that answer as Docker and Podman do, and against some that do not.

Processes are in real cgroups, named as the engines name theirs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from attestors.docker import attestor
from attestors.docker.attestor import DockerAttestor
from attestors.docker.configuration import Configuration
from operations import logs
from operations.errors import InvalidArgument, NotFound, Refused, SpireError, TemporarilyUnavailable
from plugins.catalog import PluginContext
from tests.simulators import docker_daemon
from tests.simulators.cgroups import cgroup
from tests.simulators.docker_daemon import IMAGE, IMAGE_ID, MANIFEST, Daemon, Handler, answers, docker, podman
from transport.peer import Process

ID = "c0ffee00" * 8
OTHER_ID = "0b5e55ed" * 8
DOCKERS = f"spire-test/docker-{ID}.scope"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make cgroups")

SELECTORS = [
    "docker:label:org.example.tier:web",
    "docker:env:COLOR=blue",
    "docker:env:PATH=/usr/local/bin:/usr/bin:/bin",
    f"docker:image_id:{IMAGE}",
    f"docker:image_config_digest:{IMAGE_ID}",
]


@pytest.fixture
def daemon() -> Generator[Daemon, None, None]:
    with docker() as running:
        yield running


@contextmanager
def process_in(path: str) -> Generator[Process, None, None]:
    with cgroup(path) as group, group.running() as process:
        yield process


@pytest.fixture
def process() -> Generator[Process, None, None]:
    """One in a container of Docker's."""
    with process_in(DOCKERS) as running:
        yield running


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestor, "_WAITS", (0.0, 0.0, 0.0))


def attestor_of(daemon: Daemon, **settings: Any) -> DockerAttestor:
    return DockerAttestor(Configuration(docker_socket_path=daemon.socket, **settings), logs.get("docker"))


async def selectors(attestor: DockerAttestor, process: Process) -> list[str]:
    return [str(each) for each in await attestor.attest(process)]


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
    with process_in("spire-test/plain.service") as process:
        assert await selectors(attestor_of(daemon), process) == []
    assert daemon.requests == []


async def test_over_tcp(process: Process) -> None:
    with docker(tcp=True) as daemon:
        daemon.run(ID, pid=process.pid)
        attesting = DockerAttestor(Configuration(docker_socket_path=f"tcp://127.0.0.1:{daemon.port}"), logs.get())
        assert await selectors(attesting, process) == SELECTORS


async def test_rootful_podman(daemon: Daemon) -> None:
    with podman() as engine, process_in(f"spire-test/libpod-{ID}.scope/container") as process:
        engine.run(ID, pid=process.pid)
        assert await selectors(attestor_of(daemon, podman_socket_path=engine.socket), process) == SELECTORS
        assert engine.requests[:2] == ["HEAD /_ping", f"GET /v1.41/containers/{ID}/json"]
    assert daemon.requests == []


async def test_a_users_podman(daemon: Daemon) -> None:
    path = f"spire-test/user-61234.slice/user@61234.service/user.slice/libpod-{ID}.scope"
    with podman() as engine, tempfile.TemporaryDirectory() as folder, process_in(path) as process:
        (Path(folder) / "61234").symlink_to(engine.folder)
        engine.run(ID, pid=process.pid)
        attesting = attestor_of(daemon, podman_socket_path_template=f"unix://{folder}/%d/engine.sock")
        assert await selectors(attesting, process) == SELECTORS
    assert daemon.requests == []


async def test_a_podman_socket_that_cannot_be_one(daemon: Daemon) -> None:
    attesting = attestor_of(daemon, podman_socket_path="/run/podman.sock")
    reason = r'^unable to create Podman client for socket "/run/podman\.sock": '
    with process_in(f"spire-test/libpod-{ID}.scope") as process, pytest.raises(InvalidArgument, match=reason):
        await selectors(attesting, process)


async def test_the_legacy_locator(daemon: Daemon) -> None:
    matchers = ("/spire-test/*/<id>", "/spire-test/<id>")
    attesting = attestor_of(daemon, use_new_container_locator=False, container_id_cgroup_matchers=matchers)
    with process_in("spire-test/batch.slice/web") as process:
        daemon.run("web", pid=process.pid)
        assert await selectors(attesting, process) == SELECTORS
    with process_in(f"spire-test/batch.slice/{ID}/below") as process:
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


async def test_a_process_in_a_cgroup_that_only_bears_a_containers_name(daemon: Daemon, no_waits: None) -> None:
    """Users of systemd, and containers with cgroups of their own, may call a cgroup as they please."""
    with process_in(DOCKERS) as process, process_in(f"spire-test/user-61234.slice/docker-{ID}.scope") as forging:
        daemon.run(ID, pid=process.pid)
        attesting = attestor_of(daemon)
        assert await selectors(attesting, process) == SELECTORS
        with pytest.raises(Refused, match=f"is in a cgroup named like container {ID}, but outside it"):
            await selectors(attesting, forging)
    with process_in(DOCKERS) as process, process_in(f"spire-test/docker-{OTHER_ID}.scope/{ID}") as forging:
        daemon.run(ID, pid=process.pid)
        assert await selectors(attesting, process) == SELECTORS
        with pytest.raises(Refused, match="but outside it"):
            await selectors(attesting, forging)


async def test_processes_that_a_container_has_put_below(daemon: Daemon) -> None:
    """As systemd does within a container."""
    with process_in(f"{DOCKERS}/init.scope") as first, process_in(f"{DOCKERS}/system.slice/web.service") as process:
        daemon.run(ID, pid=first.pid)
        assert await selectors(attestor_of(daemon), process) == SELECTORS


async def test_a_first_process_of_which_nothing_is_known(daemon: Daemon, process: Process) -> None:
    """The daemon may count pids in another namespace."""
    attesting = attestor_of(daemon)
    for pid in (1, 2**22 + 1):
        daemon.run(ID, pid=pid)
        assert await selectors(attesting, process) == SELECTORS


@pytest.mark.parametrize("status", ["created", "exited", "dead", "stopped"])
async def test_a_container_that_does_not_run(daemon: Daemon, process: Process, no_waits: None, status: str) -> None:
    daemon.run(ID, status=status)
    with pytest.raises(Refused, match=f"^container {ID} does not run: it is {status}$"):
        await selectors(attestor_of(daemon), process)


async def test_a_container_that_is_about_to_run(daemon: Daemon, process: Process) -> None:
    def fault(handler: Handler) -> bool:
        handler.daemon.run(ID, pid=process.pid, status="created" if len(handler.daemon.requests) < 3 else "running")
        return False

    daemon.fault = fault
    assert await selectors(attestor_of(daemon), process) == SELECTORS


async def test_no_daemon(process: Process, no_waits: None) -> None:
    attesting = DockerAttestor(Configuration(docker_socket_path="unix:///nowhere/docker.sock"), logs.get())
    advice = "no such file or directory; check that the engine runs, and docker_socket_path"
    with pytest.raises(TemporarilyUnavailable, match=rf"^unix:///nowhere/docker\.sock.*: {advice}$"):
        await selectors(attesting, process)


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        (f"spire-test/libpod-{ID}.scope", "podman_socket_path"),
        (f"spire-test/user-61234.slice/libpod-{ID}.scope", "podman_socket_path_template"),
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


async def test_an_image_that_is_not_told_costs_its_selector_only(
    daemon: Daemon, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attestor, "_IMAGE_TIME", 0.5)
    daemon.run(ID, pid=process.pid)
    attesting = attestor_of(daemon)
    daemon.images.clear()
    assert await selectors(attesting, process) == SELECTORS[:-1]
    daemon.images[IMAGE] = docker_daemon.image_answer("")
    assert await selectors(attesting, process) == SELECTORS[:-1]
    daemon.fault = lambda handler: "images" in handler.path and (bool(handler.rfile.read(1)) or True)
    assert await selectors(attesting, process) == SELECTORS[:-1]


async def test_a_name_that_another_image_bears_by_now(daemon: Daemon, process: Process) -> None:
    daemon.run(ID, pid=process.pid, image="sha256:old")
    attesting = attestor_of(daemon)
    assert await selectors(attesting, process) == SELECTORS[:-1]
    daemon.images["sha256:old"] = docker_daemon.image_answer("sha256:old", ["shop/web@sha256:older"])
    assert await selectors(attesting, process) == [*SELECTORS[:-1], "docker:image_config_digest:sha256:old"]
    verifier = Verifier()
    with pytest.raises(Refused):
        await verified(daemon, verifier, process)
    assert verifier.asked == ["shop/web@sha256:older"]


async def test_names_of_images_stay_in_their_place(daemon: Daemon, process: Process) -> None:
    name = "../containers/x?size=1#/ü %2e"
    daemon.run(ID, pid=process.pid, image="sha256:1", Image=name)
    daemon.images[name] = docker_daemon.image_answer("sha256:1")
    found = await selectors(attestor_of(daemon), process)
    assert found[-2:] == [f"docker:image_id:{name}", "docker:image_config_digest:sha256:1"]


class Verifier:
    """Has one opinion on every image, and remembers which it was asked about."""

    def __init__(self, *verified: str) -> None:
        self._verified = verified
        self.asked: list[str] = []

    async def verify(self, image_reference: str) -> Sequence[str]:
        self.asked.append(image_reference)
        if image_reference not in self._verified:
            raise Refused(f"{image_reference}: no signature")
        return ["image-signature:verified"]


async def verified(daemon: Daemon, verifier: Verifier, process: Process) -> list[str]:
    configuration = Configuration(docker_socket_path=daemon.socket)
    return await selectors(DockerAttestor(configuration, logs.get("docker"), verifier), process)


async def test_signatures(daemon: Daemon, process: Process, caplog: pytest.LogCaptureFixture) -> None:
    daemon.run(ID, pid=process.pid)
    digests = [f"{name}@{MANIFEST}" for name in ("mirror/web", "shop/web", "other/web")]
    daemon.images[IMAGE] = docker_daemon.image_answer(digests=digests)
    verifier = Verifier(digests[1])
    assert await verified(daemon, verifier, process) == [*SELECTORS, "docker:image-signature:verified"]
    assert verifier.asked == digests[:2]
    assert [record.message for record in caplog.records] == ["Error verifying sigstore image signature"]


async def test_unsigned_images_are_refused(daemon: Daemon, process: Process) -> None:
    daemon.run(ID, pid=process.pid)
    with pytest.raises(Refused, match=rf"^sigstore signature verification failed for image {IMAGE}: errors: "):
        await verified(daemon, Verifier(), process)
    daemon.images[IMAGE] = docker_daemon.image_answer(digests=[])
    with pytest.raises(Refused, match=f"no repo digest found for image {IMAGE}$"):
        await verified(daemon, Verifier(), process)
    daemon.images.clear()
    with pytest.raises(TemporarilyUnavailable, match=f'^failed to inspect image "{IMAGE}": Error response from daemon'):
        await verified(daemon, Verifier(), process)
    daemon.run(ID, pid=process.pid, Image="")
    with pytest.raises(TemporarilyUnavailable, match=r'^failed to inspect image "": '):
        await verified(daemon, Verifier(), process)


async def test_a_process_that_has_ended(daemon: Daemon) -> None:
    with process_in(DOCKERS) as process:
        daemon.run(ID, pid=process.pid)
    with pytest.raises(NotFound):
        await selectors(attestor_of(daemon), process)


async def test_a_container_of_a_slow_engine_keeps_no_other_waiting(daemon: Daemon, process: Process) -> None:
    daemon.run(ID, pid=process.pid)
    with podman() as engine, process_in(f"spire-test/libpod-{OTHER_ID}.scope") as slow:
        engine.fault = lambda handler: bool(handler.rfile.read(1)) or True
        attesting = attestor_of(daemon, podman_socket_path=engine.socket)
        hanging = [asyncio.ensure_future(selectors(attesting, slow)) for _ in range(200)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(3):
            assert await selectors(attesting, process) == SELECTORS
        assert len(engine.requests) <= 8
        for each in hanging:
            each.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


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
