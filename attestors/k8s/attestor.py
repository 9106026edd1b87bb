"""From a process to its pod: the kernel names the container, the kubelet what runs in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from attestors import processes
from attestors.containers import locator
from attestors.containers.locator import Container
from attestors.k8s import kubeconfig, legacy_locator, nesting, selectors
from attestors.k8s.api_server import ApiServer
from attestors.k8s.configuration import BrokerEntry, Configuration
from attestors.k8s.kubelet import Kubelet
from attestors.k8s.metadata_cache import MetadataCache
from attestors.k8s.objects import POD, LiveMetadatas, Metadatas, namespace_labels
from attestors.k8s.pod_lists import PodLists
from attestors.k8s.pods import ContainerStatus, Pod, Pods
from attestors.k8s.references import OBJECT_REFERENCE, References, pid_of
from attestors.turns import Turns
from identity.selectors import Selector
from operations.errors import (
    ConfigurationError,
    InvalidArgument,
    Refused,
    SpireError,
    TemporarilyUnavailable,
)
from operations.logs import Logger
from plugins.workloadattestor import BROKER_ID, PID_REFERENCE, WorkloadAttestor
from transport.peer import Process
from transport.status import Code, RpcError

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

_WORKERS = 2
_WAITING = 1024
_AT_ONCE = 16
_ASKING = 10.0
_VERIFYING = 60.0


class ImageVerifier(Protocol):
    """What attestors.sigstore gives."""

    async def verify(self, image_reference: str) -> Sequence[str]: ...
    async def close(self) -> None: ...


Locate = Callable[[Process], Awaitable[Container]]
"""Where a process runs; raises NotFound and Refused."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a workload is part of. Without `container` it is its pod's, whose container is not ready yet."""

    pod: Pod
    container: ContainerStatus | None


class K8sAttestor:
    """Waits for containers that the kubelet does not list yet, and bounds by itself how many wait."""

    name = "k8s"

    def __init__(self, configuration: Configuration, log: Logger, *, locate: Locate | None = None) -> None:
        self._configuration = configuration
        self._log = log
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="k8s-attestor")
        self._kubelet = Kubelet(configuration, configuration.node(), self._workers, log)
        self._lists = PodLists(self._kubelet.pods, configuration.poll_interval)
        self._locators = locator.Workers()
        self._locate = locate or _locating(configuration, self._locators, log)
        self._turns = Turns(_AT_ONCE)
        self._waiting = asyncio.Semaphore(_WAITING)
        server = ApiServer(kubeconfig.find, self._workers)
        cached = configuration.experimental.api_server.cache.enabled
        self._cache = MetadataCache(server, log) if cached else None
        self._metadatas: Metadatas = self._cache or LiveMetadatas(server)
        self._references = References(configuration, server, self._metadatas, self._pods, log)
        self.verifier: ImageVerifier | None = None

    @property
    def patience(self) -> float:
        """Seconds that a workload's container may take to appear, with the last answers of all who are asked then."""
        last = self._configuration.poll_interval + self._kubelet.timeout + _ASKING
        return self._polling + last + (_VERIFYING if self._configuration.sigstore is not None else 0.0)

    @property
    def _polling(self) -> float:
        return self._configuration.poll_attempts * self._configuration.poll_interval

    async def prepare(self) -> None:
        """Raises InvalidArgument for files that cannot be used, and as ImageVerifier.prepare does."""
        if not self._configuration.disable_kubelet_client:
            await self._kubelet.prepare()
        if self._configuration.sigstore is not None:
            from attestors.sigstore import verifier as sigstore  # few agents verify images

            verifier = sigstore.ImageVerifier(self._configuration.sigstore, log=self._log)
            await verifier.prepare()
            self.verifier = verifier

    async def close(self) -> None:
        await self._lists.close()
        if self._cache is not None:
            await self._cache.close()
        if self.verifier is not None:
            await self.verifier.close()
        self._locators.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def attest(self, process: Process) -> Sequence[Selector]:
        """None for a process outside of containers.

        Raises NotFound when the process is gone, Refused when it may not be examined or cannot be told from others',
        TemporarilyUnavailable when the kubelet does not answer or does not know the container in time.
        """
        found = await self._find(process)
        return () if found is None else self._selectors(await self._describe(found))

    async def attest_reference(self, type_url: str, value: bytes) -> Sequence[Selector]:
        """As plugins.workloadattestor.ReferenceAttestor has it, for pids and for objects of Kubernetes."""
        broker_id = BROKER_ID.get(None)
        broker = self._references.broker(broker_id)
        if type_url == PID_REFERENCE:
            return await self._attest_pid(value, broker)
        if type_url != OBJECT_REFERENCE:
            raise InvalidArgument(f"unsupported reference type: {type_url}")
        async with self._turns.of(broker_id):
            referred = await self._references.resolve(value, broker)
            await self._references.require_access(broker, referred.kind, referred.metadata)
        return self._selectors(referred.values)

    async def _attest_pid(self, value: bytes, broker: BrokerEntry | None) -> Sequence[Selector]:
        with processes.pinned(pid_of(value)) as process:
            found = await self._find(process)
            if found is None:
                return ()
            values = await self._describe(found)
        await self._references.require_access(broker, POD, found.pod.metadata)
        return self._selectors(values)

    def _selectors(self, values: Sequence[str]) -> Sequence[Selector]:
        return [Selector(self.name, value) for value in values]

    async def _pods(self) -> Pods:
        return (await self._lists.after(0)).pods

    async def _find(self, process: Process) -> Found | None:
        """Waits for its container. One container's callers have not all places to wait in."""
        if self._configuration.disable_kubelet_client:
            raise RpcError(Code.FAILED_PRECONDITION, "kubelet client is disabled")
        container = await self._locate(process)
        if not container.container_id:
            return None
        async with self._turns.of(container), self._waiting:
            return await self._poll(
                container, self._log.bind(pod_uid=container.pod_uid, container_id=container.container_id)
            )

    async def _poll(self, container: Container, log: Logger) -> Found:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._polling
        version = attempt = 0
        while True:
            attempt += 1
            failure: SpireError | None = None
            try:
                listed = await self._lists.after(version)
            except SpireError as error:
                failure = error
            else:
                version = listed.version
                if (found := self._match(listed.pods, container)) is not None:
                    return found
            if attempt >= self._configuration.poll_attempts or loop.time() >= end:
                raise _given_up(log, attempt, failure)
            self._tell(log, attempt, failure)

    def _match(self, pods: Pods, container: Container) -> Found | None:
        """Raises Refused when a container is in two pods, TemporarilyUnavailable for pods that cannot be read."""
        if container.pod_uid:
            pod = pods.get(container.pod_uid)
            candidates = [] if pod is None else [pod]
        else:
            candidates = list(pods.all())
        found = [Found(pod, status) for pod in candidates if (status := pod.container(container.container_id))]
        if len(found) > 1:
            self._log.warning("Two pods found with same container Id", container_id=container.container_id)
            raise Refused("two pods found with same container Id")
        if not found and container.pod_uid and candidates and self._configuration.disable_container_selectors:
            # The pod is known, and what is known of the container is not asked for.
            return Found(candidates[0], None)
        return found[0] if found else None

    async def _describe(self, found: Found) -> list[str]:
        values = selectors.of_pod(found.pod)
        if found.container is not None and not self._configuration.disable_container_selectors:
            values += selectors.of_container(found.container)
        if self._configuration.enable_namespace_labels:
            values += selectors.of_namespace(await namespace_labels(self._metadatas, found.pod.metadata.namespace))
        if found.container is not None and self.verifier is not None:
            values += await _verified(self.verifier, found.container, self._log)
        return values

    def _tell(self, log: Logger, attempt: int, failure: SpireError | None) -> None:
        interval = timedelta(seconds=self._configuration.poll_interval)
        if failure is not None:
            log.warning(
                "Unable to get pod list; will retry after backoff",
                attempt=attempt,
                error=failure,
                retry_interval=interval,
            )
        else:
            log.debug("Container id not found; will retry after backoff", attempt=attempt, retry_interval=interval)


def _locating(configuration: Configuration, workers: locator.Workers, log: Logger) -> Locate:
    told = log if configuration.verbose_container_locator_logs else None

    def examine(pid: int) -> Container:
        paths = locator.cgroups(pid, log=told)
        if not configuration.use_new_container_locator:
            return legacy_locator.of_paths(paths)
        for path in paths:
            nesting.require_none(path, containers=not configuration.disable_container_selectors)
        return locator.container_of(pid, paths, log=told)

    return lambda process: workers.ask(process, examine)


def _given_up(log: Logger, attempt: int, failure: SpireError | None) -> TemporarilyUnavailable:
    if failure is not None:
        log.warning("Unable to get pod list; giving up", attempt=attempt, error=failure)
        return TemporarilyUnavailable(str(failure))
    log.warning("Container id not found; giving up", attempt=attempt)
    return TemporarilyUnavailable("no selectors found after max poll attempts")


async def _verified(verifier: ImageVerifier, container: ContainerStatus, log: Logger) -> Sequence[str]:
    log.debug("Attempting to verify sigstore image signature", image=container.image)
    try:
        return await verifier.verify(container.image_id)
    except SpireError as error:
        reason = f"error verifying sigstore image signature for imageID {container.image_id}: {error}"
        kind = TemporarilyUnavailable if isinstance(error, TemporarilyUnavailable) else Refused
        raise kind(reason) from error


async def load(configuration: Configuration, context: PluginContext) -> WorkloadAttestor:
    """Raises ConfigurationError."""
    if configuration.use_new_container_locator:
        context.log.info("Using the new container locator")
    else:
        context.log.warning("Using the legacy container locator. This option will be removed in a future release.")
    attestor = K8sAttestor(configuration, context.log)
    try:
        await attestor.prepare()
    except ConfigurationError:
        raise
    except InvalidArgument as error:
        raise ConfigurationError(str(error)) from error
    return attestor
