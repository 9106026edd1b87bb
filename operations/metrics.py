"""What the program counts and times, for whoever collects metrics. Without a sink, all of it does nothing.

    metrics.count("server_ca", "sign", "x509_svid")
    with metrics.call("svid", "rotate"):
        …

Keys, labels and kinds are SPIRE's (its documentation, telemetry.md), since dashboards rest on them. A call is a count
and a sample of the milliseconds it took, under the same key with `elapsed_time` behind; both carry the gRPC name of how
it ended in the label `status`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from operations import errors

P = ParamSpec("P")
T = TypeVar("T")

Key = tuple[str, ...]
Labels = tuple[tuple[str, str], ...]


class Emitter(Protocol):
    """Takes what was measured to where it is collected."""

    def count(self, key: Key, by: float, labels: Labels) -> None: ...
    def gauge(self, key: Key, value: float, labels: Labels) -> None: ...
    def sample(self, key: Key, value: float, labels: Labels) -> None: ...


_emitters: tuple[Emitter, ...] = ()


def use(emitters: Sequence[Emitter]) -> None:
    """Send everything to these from now on."""
    global _emitters
    _emitters = tuple(emitters)


def emitters() -> Sequence[Emitter]:
    """Where everything goes now."""
    return _emitters


def on() -> bool:
    """Whether anybody collects; saves the making of costly values."""
    return bool(_emitters)


def count(*key: str, by: float = 1, **labels: str) -> None:
    """Add to a counter."""
    for emitter in _emitters:
        emitter.count(key, by, tuple(labels.items()))


def gauge(*key: str, value: float, **labels: str) -> None:
    """Set what stays until it is set again."""
    for emitter in _emitters:
        emitter.gauge(key, value, tuple(labels.items()))


def sample(*key: str, value: float, **labels: str) -> None:
    """Add one value to a distribution."""
    for emitter in _emitters:
        emitter.sample(key, value, tuple(labels.items()))


def called(key: Key, seconds: float, error: BaseException | None = None, **labels: str) -> None:
    """A call that took so long, and ended well or with this error."""
    if not _emitters:
        return
    found = (*labels.items(), ("status", status(error)))
    for emitter in _emitters:
        emitter.count(key, 1, found)
        emitter.sample((*key, "elapsed_time"), seconds * 1000, found)


class call:  # noqa: N801 - reads as the verb it is, as contextlib's do
    """Times its block as one call."""

    __slots__ = ("_begin", "_key", "_labels")

    def __init__(self, *key: str, **labels: str) -> None:
        self._key = key
        self._labels = labels
        self._begin = 0.0

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        called(self._key, time.perf_counter() - self._begin, error, **self._labels)


def timed(*key: str, **labels: str) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Decorates an async function: each of its runs is a call."""

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            if not _emitters:
                return await function(*args, **kwargs)
            with call(*key, **labels):
                return await function(*args, **kwargs)

        return run

    return decorate


def time_methods(subject: object, keys: Mapping[str, Key]) -> None:
    """Time async methods of one object, by their names. Only when somebody collects: else it stays as it is."""
    if not _emitters:
        return
    for name, key in keys.items():
        method: Callable[..., Awaitable[Any]] = getattr(subject, name)
        setattr(subject, name, timed(*key)(method))


# The first class that fits wins; subclasses come before their bases.
_STATUSES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (errors.InvalidArgument, "InvalidArgument"),
    (errors.NotFound, "NotFound"),
    (errors.AlreadyExists, "AlreadyExists"),
    (errors.Refused, "PermissionDenied"),
    (errors.TemporarilyUnavailable, "Unavailable"),
    (errors.Unsupported, "Unimplemented"),
    (errors.PermanentlyUnusable, "Internal"),
)


def status(error: BaseException | None) -> str:
    """The gRPC name of how a call ended: its own, where the error is an answer of gRPC."""
    if error is None:
        return "OK"
    label: object = getattr(getattr(error, "code", None), "label", None)
    if isinstance(label, str):
        return label
    return next((name for kind, name in _STATUSES if isinstance(error, kind)), "Unknown")


@functools.cache
def rpc_key(service: str, method: str) -> Key:
    """The key of an RPC below `rpc`: the words of service and method, each in snake_case.

    All are remembered, so it is for methods that exist, and not for whatever a caller asks for.
    """
    for long, short in _SHORT_NAMES:
        service = service.replace(long, short)
    return (*map(_snake, service.split(".")), _snake(method))


_SHORT_NAMES: Final = (
    ("spire.api.server.", ""),
    ("SpiffeWorkloadAPI", "WorkloadAPI"),
    ("envoy.service.secret.v3.SecretDiscoveryService", "SDS.v3"),
    ("grpc.health.v1.Health", "Health"),
    ("logger.v1.Logger", "Logger"),
    ("spire.api.agent.Logger", "Logger"),
    ("spire.agent.debug.v1.Debug", "Debug"),
    ("spire.api.agent.delegatedidentity.v1.DelegatedIdentity", "DelegatedIdentity"),
)


def _snake(name: str) -> str:
    """As SPIRE derives metric names: an underscore before each capital beside a small letter, and for what is neither
    letter nor digit."""
    if name == "SubscribeToX509SVIDs":  # which the rule would make something else of than it was before
        return "subscribe_to_x509_svids"
    made = ""
    for index, char in enumerate(name):
        if not char.isalnum():
            made += "_"
            continue
        inner = 0 < index < len(name) - 1 and char.isupper()
        if inner and (name[index + 1].islower() or name[index - 1].islower()) and not made.endswith("_"):
            made += "_"
        made += char.lower()
    return made
