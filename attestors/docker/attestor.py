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
from attestors.turns import Turns
from identity.selectors import Selector
from operations.errors import InvalidArgument, NotFound, Refused, SpireError, TemporarilyUnavailable
from operations.logs import Logger
from operations.quoting import quote
from plugins.workloadattestor import WorkloadAttestor
from transport.peer import Process

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "docker"

T = TypeVar("T")

_WAITS = (0.1, 0.2, 0.4)
"""Seconds between the tries to ask an engine."""
_WAITING_TIME = 3.0
_CONTAINER_TIME = 5.0
_IMAGE_TIME = 2.0
_VERIFYING_TIME = 60.0
_OF_A_CONTAINER = 8
_OF_AN_ENGINE = 16
_MOST_SELECTORS = 10_000
_IDLE = frozenset(("created", "configured", "exited", "stopped", "dead"))
"""What Docker and Podman call a container in which nothing runs."""


class ImageVerifier(Protocol):
    """What attestors.sigstore gives."""

    async def verify(self, image_reference: str) -> Sequence[str]: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Found:
    """A process's container, and the paths of its cgroups."""

    container_id: str
    paths: Sequence[bytes]


class DockerAttestor:
    """Selectors `label`, `env`, `image_id` and `image_config_digest`, and those of signatures where they are verified.

    A process outside of containers has none. Bounds its callers by itself: those in one container wait for each other,
    and those whose engine is slow for each other, and nobody else for them.
    """

    name = NAME

    def __init__(self, configuration: Configuration, log: Logger, verifier: ImageVerifier | None = None) -> None:
        self._configuration = configuration
        self._log = log
        self._verifier = verifier
        self._matchers = configuration.matchers
        docker = endpoints.parse(configuration.docker_socket)
        self._docker = Engine(docker, "docker_socket_path", configuration.api_version)
        self._workers = locator.Workers()
        self._containers = Turns(_OF_A_CONTAINER)
        self._engines = Turns(_OF_AN_ENGINE)

    @property
    def patience(self) -> float:
        """Seconds that a workload may take, with its turn to wait for."""
        asking = _CONTAINER_TIME + 2 * _IMAGE_TIME
        return _WAITING_TIME + asking + (_VERIFYING_TIME if self._verifier is not None else 0.0)

    async def close(self) -> None:
        """When nobody is attested any more."""
        if self._verifier is not None:
            await self._verifier.close()
        self._workers.close()

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises SpireError when the container cannot be told, its engine not asked, or its image not trusted."""
        found = await self._workers.ask(process, self._find)
        if not found.container_id:
            return ()
        async with self._containers.of(found.container_id):
            values = await self._values(process, found)
        return [Selector(NAME, value) for value in values]

    async def _values(self, process: Process, found: _Found) -> Sequence[str]:
        engine = self._engine(found.paths)
        async with self._engines.of(engine.name):
            container = await self._inspect(engine, process, found)
            values = _container_values(container)
            image = await self._image(engine, container)
        if image.id:
            values.append(f"image_config_digest:{image.id}")
        if self._verifier is not None:
            values += await self._verified(self._verifier, container.config.image, image.repo_digests or ())
        return values

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
        setting = "podman_socket_path" if socket == configuration.podman_socket else "podman_socket_path_template"
        try:
            return Engine(endpoints.parse(socket), setting)
        except InvalidArgument as error:
            raise InvalidArgument(f"unable to create Podman client for socket {quote(socket)}: {error}") from error

    async def _inspect(self, engine: Engine, process: Process, found: _Found) -> ContainerAnswer:
        """Tries more than once: an engine may know a container a moment after its process has begun."""

        async def ask(left: float) -> ContainerAnswer:
            container = await engine.container(found.container_id, within=left)
            await self._require_inside(process, found, container.state)
            return container

        return await _retried(ask, _CONTAINER_TIME)

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

    async def _image(self, engine: Engine, container: ContainerAnswer) -> ImageAnswer:
        """What the engine knows of a container's image; nothing where it tells nothing, unless signatures matter."""
        name = container.config.image
        try:
            if not name:
                raise InvalidArgument("the container names no image")
            image = await _ask_image(engine, name)
            if image.id and container.image not in ("", image.id):
                # The name has been given to another image since.
                image = await _ask_image(engine, container.image)
        except SpireError as error:
            if self._verifier is None:
                return ImageAnswer()
            raise TemporarilyUnavailable(f"failed to inspect image {quote(name)}: {error}") from error
        return image

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


async def _ask_image(engine: Engine, reference: str) -> ImageAnswer:
    return await _retried(lambda left: engine.image(reference, within=left), _IMAGE_TIME, lasting=NotFound)


async def _retried(
    ask: Callable[[float], Coroutine[Any, Any, T]], within: float, *, lasting: type[SpireError] | tuple[()] = ()
) -> T:
    """Asks, with the seconds that are left of `within`, until there is an answer. Raises what the last try raised.

    An error of the class `lasting` is an answer.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + within
    for wait in _WAITS:
        try:
            return await ask(ends - loop.time())
        except lasting:
            raise
        except SpireError:
            if loop.time() + wait >= ends:
                raise
            await asyncio.sleep(wait)
    return await ask(ends - loop.time())


def _container_values(container: ContainerAnswer) -> list[str]:
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
    return DockerAttestor(configuration, log, await _verifier(configuration, log))


async def _verifier(configuration: Configuration, log: Logger) -> ImageVerifier | None:
    if configuration.sigstore is None:
        return None
    from attestors.sigstore import verifier as sigstore  # few agents verify images

    verifier = sigstore.ImageVerifier(configuration.sigstore, log=log)
    await verifier.prepare()
    return verifier
