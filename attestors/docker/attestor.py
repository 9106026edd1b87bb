"""Selectors of processes in containers: labels, environment and image, as the container's engine tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from attestors.containers import identifiers, locator
from attestors.docker import cgroup_matchers, endpoints, podman
from attestors.docker.configuration import Configuration
from attestors.docker.engine import ContainerAnswer, Engine, ImageAnswer, State
from identity.selectors import Selector
from operations.errors import InvalidArgument, Refused, SpireError, TemporarilyUnavailable
from operations.logs import Logger
from operations.quoting import quote
from plugins.workloadattestor import WorkloadAttestor
from transport.peer import Process

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "docker"

T = TypeVar("T")

_WAITS = (0.1, 0.2, 0.4)
"""Seconds between the tries to ask about a container."""
_CONTAINER_TIME = 7.0
_IMAGE_TIME = 2.0
_MOST_SELECTORS = 10_000
_IDLE = frozenset(("created", "configured", "exited", "stopped", "dead"))
"""What Docker and Podman call a container in which nothing runs."""


class ImageVerifier(Protocol):
    """What attestors.sigstore gives."""

    async def verify(self, image_reference: str) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class _Found:
    """A process's container, and the paths of its cgroups."""

    container_id: str
    paths: Sequence[bytes]


class DockerAttestor:
    """Selectors `label`, `env`, `image_id` and `image_config_digest`, and those of signatures where they are verified.

    A process outside of containers has none.
    """

    name = NAME

    def __init__(self, configuration: Configuration, log: Logger, verifier: ImageVerifier | None = None) -> None:
        self._configuration = configuration
        self._log = log
        self._verifier = verifier
        self._matchers = configuration.matchers
        self._docker = Engine(endpoints.parse(configuration.docker_socket), configuration.api_version)
        self._workers = locator.Workers()

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises SpireError when the container cannot be told, its engine not asked, or its image not trusted."""
        found = await self._workers.ask(process, self._find)
        if not found.container_id:
            return ()
        engine = self._engine(found.paths)
        container = await self._inspect(engine, process, found)
        values = _values(container)
        values += await self._image_values(engine, container.config.image)
        return [Selector(NAME, value) for value in values]

    def _find(self, pid: int) -> _Found:
        log = self._log if self._configuration.verbose_container_locator_logs else None
        paths = locator.cgroups(pid, log=log)
        if self._matchers:
            return _Found(cgroup_matchers.container_id(self._matchers, paths), paths)
        return _Found(locator.container_of(pid, paths, pods=False, log=log).container_id, paths)

    def _engine(self, paths: Sequence[bytes]) -> Engine:
        """Docker, or the Podman that the process's cgroups tell of."""
        configuration = self._configuration
        socket = podman.socket(paths, configuration.podman_socket, configuration.rootless_podman_socket)
        if not socket:
            return self._docker
        try:
            return Engine(endpoints.parse(socket))
        except InvalidArgument as error:
            raise InvalidArgument(f"unable to create Podman client for socket {quote(socket)}: {error}") from error

    async def _inspect(self, engine: Engine, process: Process, found: _Found) -> ContainerAnswer:
        """Tries more than once: an engine may know a container a moment after its process has begun."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + _CONTAINER_TIME

        async def ask() -> ContainerAnswer:
            container = await engine.container(found.container_id, within=ends - loop.time())
            await self._require_inside(process, found, container.state)
            return container

        return await _retried(ask, ends)

    async def _require_inside(self, process: Process, found: _Found, state: State | None) -> None:
        """Raise Refused unless the process can be in that container.

        Whoever has cgroups of their own, as users of systemd and some containers have, may call one by another's
        container. Its first process is where the engine has put the container, and there alone (ADR 0014).
        """
        if state is None:
            return
        if state.status in _IDLE:
            raise Refused(f"container {found.container_id} does not run: it is {state.status}")
        # Patterns are of whole paths: what they match is what the operator has described.
        if state.pid > 0 and not self._matchers:
            first = await self._workers.ask(process, lambda _: locator.cgroups(state.pid))
            _require_place(process, found, first)

    async def _image_values(self, engine: Engine, reference: str) -> Sequence[str]:
        try:
            image = await _image(engine, reference)
        except SpireError as error:
            if self._verifier is None:
                # The container's own selectors do not depend on it.
                return ()
            raise TemporarilyUnavailable(f"failed to inspect image {quote(reference)}: {error}") from error
        values = [f"image_config_digest:{image.id}"] if image.id else []
        if self._verifier is not None:
            values += await self._verified(self._verifier, reference, image.repo_digests or ())
        return values

    async def _verified(self, verifier: ImageVerifier, reference: str, digests: Sequence[str]) -> Sequence[str]:
        """Of the first of the image's manifests whose signatures count. Raises Refused."""
        if not digests:
            raise Refused(f"sigstore signature verification failed: no repo digest found for image {reference}")
        problems: list[str] = []
        for digest in digests:
            try:
                return await verifier.verify(digest)
            except SpireError as error:
                self._log.warning("Error verifying sigstore image signature", image_id=digest, error=error)
                problems.append(f"image_id {digest}: {error}")
        text = "; ".join(problems)
        raise Refused(f"sigstore signature verification failed for image {reference}: errors: {text}")


def _require_place(process: Process, found: _Found, first: Sequence[bytes]) -> None:
    """`first` are the cgroups of the container's first process; those that do not name the container tell nothing."""
    places = identifiers.places(first, found.container_id)
    if places and not identifiers.places(found.paths, found.container_id) <= places:
        raise Refused(f"process {process.pid} is in a cgroup named like container {found.container_id}, but outside it")


async def _image(engine: Engine, reference: str) -> ImageAnswer:
    if not reference:
        raise InvalidArgument("the container names no image")
    return await engine.image(reference, within=_IMAGE_TIME)


async def _retried(ask: Callable[[], Coroutine[Any, Any, T]], ends: float) -> T:
    """`ends` is the loop's time after which there are no more tries. Raises what the last one raised."""
    loop = asyncio.get_running_loop()
    for wait in _WAITS:
        try:
            return await ask()
        except SpireError:
            if loop.time() + wait >= ends:
                raise
            await asyncio.sleep(wait)
    return await ask()


def _values(container: ContainerAnswer) -> list[str]:
    config = container.config
    labels, env = config.labels or {}, config.env or ()
    if len(labels) + len(env) > _MOST_SELECTORS:
        raise Refused(f"more than {_MOST_SELECTORS} labels and variables: a container that has as many is not attested")
    values = [f"label:{name}:{value}" for name, value in labels.items()]
    values += [f"env:{each}" for each in env]
    if config.image:
        values.append(f"image_id:{config.image}")
    return values


async def load(configuration: Configuration, context: PluginContext) -> WorkloadAttestor:
    """Raises ConfigurationError."""
    log = context.log
    if configuration.container_id_cgroup_matchers:
        log.warning(
            "Using the legacy container locator with custom cgroup matchers. "
            "This feature will be removed in a future release."
        )
    return DockerAttestor(configuration, log, await _verifier(configuration))


async def _verifier(configuration: Configuration) -> ImageVerifier | None:
    if configuration.sigstore is None:
        return None
    from attestors.sigstore.verifier import ImageVerifier as SigstoreVerifier  # for those who verify images

    verifier = SigstoreVerifier(configuration.sigstore)
    await verifier.prepare()
    return verifier
