"""Asking the kubelet for the node's pods: over TLS with a token, a certificate or as nobody, or in the clear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from attestors.k8s import pods, tls
from attestors.k8s.configuration import Configuration
from attestors.k8s.pods import Pods
from operations.errors import TemporarilyUnavailable
from operations.logs import Logger
from operations.quoting import quote
from transport.http_client import Query, Service, asking
from transport.limits import MIB

_LARGEST_LIST = 64 * MIB
_TOLD_OF_AN_ERROR = 1024
_TIMEOUT = 10.0
_HERE = "127.0.0.1"
_OK = 200


@dataclass(frozen=True, slots=True)
class Access:
    """Where the kubelet is and how it knows us."""

    service: Service
    token: str = field(default="", repr=False)


def access(configuration: Configuration, node: str) -> Access:
    """What the files say now; without a node's name the kubelet is here, and its certificate may be in any name.

    Blocks. Raises InvalidArgument.
    """
    if not configuration.secure:
        return Access(Service(_HERE, configuration.port))
    if configuration.skip_kubelet_verification:
        context = tls.trusting_anyone()
    else:
        authorities = tls.read_file(configuration.ca_file, "kubelet CA")
        context = tls.trusting(authorities, "kubelet CA", host_names=bool(node))
    token = ""
    if configuration.use_anonymous_authentication:
        pass
    elif configuration.certificate_path:
        tls.show(context, configuration.certificate_path, configuration.private_key_path)
    else:
        token = tls.read_token(configuration.token_file)
    return Access(Service(node or _HERE, configuration.port, context), token)


class Kubelet:
    """Files are read again every `reload_interval`, by the next who asks. `timeout` is in seconds, for one request."""

    def __init__(
        self, configuration: Configuration, node: str, workers: Executor, log: Logger, *, timeout: float = _TIMEOUT
    ) -> None:
        self._load: Callable[[], Access] = lambda: access(configuration, node)
        self._reload_after = configuration.reload_seconds
        self._workers = workers
        self._log = log
        self.timeout = timeout
        self._access: Access | None = None
        self._loaded_at = 0.0

    async def prepare(self) -> None:
        """Read the files. Raises InvalidArgument."""
        await self._read()

    async def _read(self) -> Access:
        loop = asyncio.get_running_loop()
        fresh = await loop.run_in_executor(self._workers, self._load)
        self._access, self._loaded_at = fresh, loop.time()
        return fresh

    async def pods(self) -> Pods:
        """Raises InvalidArgument for files that cannot be used any more, TemporarilyUnavailable."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout):
                access = self._access
                if access is None or loop.time() - self._loaded_at >= self._reload_after:
                    access = await self._read()
                content = await _list(access)
                return await loop.run_in_executor(self._workers, pods.parse, content, self._tell_of_no_uid)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"unable to perform request: no answer within {self.timeout:g} s") from error

    def _tell_of_no_uid(self) -> None:
        self._log.warning("Pod has no UID")


async def _list(access: Access) -> bytes:
    headers = {"Authorization": f"Bearer {access.token}"} if access.token else {}
    try:
        async with asking(access.service, Query("/pods", headers=headers)) as answer:
            if answer.status != _OK:
                told = (await answer.beginning(_TOLD_OF_AN_ERROR)).decode("utf-8", "replace").strip()
                raise _Unexpected(f"unexpected status code on pods response: {answer.status} {quote(told)}")
            return await answer.body(_LARGEST_LIST)
    except _Unexpected:
        raise
    except TemporarilyUnavailable as error:
        raise TemporarilyUnavailable(f"unable to perform request: {error}") from error


class _Unexpected(TemporarilyUnavailable):
    """The kubelet's own refusal, in need of no introduction."""
