"""Images: their digests, and signatures as far as the attestor goes."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from attestors.docker import attestor
from attestors.docker.attestor import DockerAttestor
from attestors.docker.configuration import Configuration
from operations import logs
from operations.errors import Refused, TemporarilyUnavailable
from plugins.workloadattestor import HoldsConnections
from tests.simulators import docker_daemon
from tests.simulators.contained import (
    ID,
    SELECTORS,
    Verifier,
    attestor_of,
    selectors,
    verified,
)
from tests.simulators.docker_daemon import IMAGE, MANIFEST, Daemon
from transport.peer import Process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make cgroups")


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


async def test_signatures(daemon: Daemon, process: Process, caplog: pytest.LogCaptureFixture) -> None:
    daemon.run(ID, pid=process.pid)
    digests = [f"{name}@{MANIFEST}" for name in ("mirror/web", "shop/web", "other/web")]
    daemon.images[IMAGE] = docker_daemon.image_answer(digests=digests)
    verifier = Verifier(digests[1])
    assert await verified(daemon, verifier, process) == [*SELECTORS, "docker:image-signature:verified"]
    assert verifier.asked == digests[:2]
    assert [record.message for record in caplog.records] == ["Error verifying sigstore image signature"]


async def test_the_end(daemon: Daemon, process: Process) -> None:
    before = set(threading.enumerate())
    daemon.run(ID, pid=process.pid)
    verifier = Verifier(f"{IMAGE}@{MANIFEST}")
    daemon.images[IMAGE] = docker_daemon.image_answer(digests=[f"{IMAGE}@{MANIFEST}"])
    attesting = DockerAttestor(Configuration(docker_socket_path=daemon.socket), logs.get("docker"), verifier)
    await attesting.attest(process)
    workers = of_locators(before)
    assert workers
    assert isinstance(attesting, HoldsConnections)
    await attesting.close()
    assert verifier.closed
    for worker in workers:
        await asyncio.to_thread(worker.join, 60)
    assert not of_locators(before)


def of_locators(before: set[threading.Thread]) -> set[threading.Thread]:
    return {each for each in set(threading.enumerate()) - before if each.name.startswith("container-locator")}


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
