"""Processes in real cgroups, named as engines name those of containers, and what the docker attestor says of them.

Root only.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from attestors.docker.attestor import DockerAttestor
from attestors.docker.configuration import Configuration
from operations import logs
from operations.errors import Refused
from tests.simulators.cgroups import OWN, cgroup
from tests.simulators.docker_daemon import IMAGE, IMAGE_ID, Daemon
from transport.peer import Process

ID = "c0ffee00" * 8
OTHER_ID = "0b5e55ed" * 8
DOCKERS = f"docker-{ID}.scope"

SELECTORS = [
    "docker:label:org.example.tier:web",
    "docker:env:COLOR=blue",
    "docker:env:PATH=/usr/local/bin:/usr/bin:/bin",
    f"docker:image_id:{IMAGE}",
    f"docker:image_config_digest:{IMAGE_ID}",
]
"""Of a container that a daemon has been told to `run`, and no more of it."""


@contextmanager
def process_in(path: str) -> Generator[Process, None, None]:
    """One in a cgroup of version 2 of this path, below that of the tests."""
    with cgroup(f"{OWN}/{path}") as group, group.running() as process:
        yield process


def attestor_of(daemon: Daemon, **settings: Any) -> DockerAttestor:
    return DockerAttestor(Configuration(docker_socket_path=daemon.socket, **settings), logs.get("docker"))


async def selectors(attestor: DockerAttestor, process: Process) -> list[str]:
    return [str(each) for each in await attestor.attest(process)]


class Verifier:
    """Has one opinion on every image, and remembers which it was asked about."""

    def __init__(self, *verified: str) -> None:
        self._verified = verified
        self.asked: list[str] = []
        self.closed = False

    async def close(self) -> None:
        self.closed = True

    async def verify(self, image_reference: str) -> Sequence[str]:
        self.asked.append(image_reference)
        if image_reference not in self._verified:
            raise Refused(f"{image_reference}: no signature")
        return ["image-signature:verified"]


async def verified(daemon: Daemon, verifier: Verifier, process: Process) -> list[str]:
    configuration = Configuration(docker_socket_path=daemon.socket)
    return await selectors(DockerAttestor(configuration, logs.get("docker"), verifier), process)
