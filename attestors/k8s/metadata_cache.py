"""Metadata of all objects of the kinds that were asked about, kept up to date by watching: api_server.cache.enabled."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec

from attestors.k8s.api_server import TIMEOUT, ApiServer, Expired
from attestors.k8s.objects import LIST, Kind, LiveMetadatas, Page, Partial, decoded, pages
from attestors.k8s.pods import Metadata
from operations.errors import NotFound, SpireError, TemporarilyUnavailable
from operations.logs import Logger
from transport.http_client import Incoming
from transport.limits import MIB

_MOST_KINDS = 64
_MOST_OBJECTS = 200_000
_LARGEST_EVENT = 4 * MIB
_WATCH = 300
_AGAIN = 1.0
_AT_MOST = 30.0
_FIRST_LIST = 60.0
_EXPIRED = 410


class _Object(msgspec.Struct, frozen=True, kw_only=True):
    """What an event is about; of an error, its Status."""

    metadata: Metadata = Metadata()
    code: int = 0
    message: str = ""


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    """meta/v1 WatchEvent."""

    type: str = ""
    object: _Object = _Object()


class _TooMany(Exception):
    """More objects than are kept."""


class MetadataCache:
    """A kind is listed and watched from the first question about it on. Old news is good while there is no newer."""

    def __init__(self, server: ApiServer, log: Logger) -> None:
        self._server = server
        self._live = LiveMetadatas(server)
        self._log = log
        self._kinds: dict[Kind, _Watched] = {}

    async def get(self, kind: Kind, namespace: str, name: str) -> Metadata:
        watched = await self._watched(kind)
        if watched is None:
            return await self._live.get(kind, namespace, name)
        found = watched.by_name.get((namespace, name))
        if found is None:
            raise NotFound(f"{namespace}/{name}")
        return found

    async def find(self, kind: Kind, uid: str) -> Metadata:
        watched = await self._watched(kind)
        if watched is None:
            return await self._live.find(kind, uid)
        key = watched.names.get(uid)
        if key is None:
            raise NotFound(uid)
        return watched.by_name[key]

    async def close(self) -> None:
        for each in self._kinds.values():
            each.task.cancel()
        if self._kinds:
            await asyncio.wait([each.task for each in self._kinds.values()])

    async def _watched(self, kind: Kind) -> _Watched | None:
        """None for a kind of which there is too much to keep."""
        watched = self._kinds.get(kind)
        if watched is None:
            if len(self._kinds) >= _MOST_KINDS:
                return None
            watched = self._kinds[kind] = _Watched(self._server, kind, self._log)
        return watched if await watched.ready() else None


class _Watched:
    """One kind's objects: a list, and what has changed since."""

    def __init__(self, server: ApiServer, kind: Kind, log: Logger) -> None:
        self.by_name: dict[tuple[str, str], Metadata] = {}
        self.names: dict[str, tuple[str, str]] = {}
        self._server = server
        self._kind = kind
        self._log = log
        self._listed = asyncio.Event()
        self._failure: SpireError | None = None
        self._wait = _AGAIN
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def ready(self) -> bool:
        """Whether it is kept. Raises TemporarilyUnavailable when the API server has not given a list."""
        if self.task.done():
            return False
        try:
            async with asyncio.timeout(_FIRST_LIST if self._failure is None else TIMEOUT / 10):
                await self._listed.wait()
        except TimeoutError as error:
            reason = self._failure or "timed out waiting for Kubernetes cache to start"
            raise TemporarilyUnavailable(str(reason)) from error
        return not self.task.done()

    async def _run(self) -> None:
        while True:
            try:
                version = await self._list()
                while True:
                    version = await self._watch(version)
            except Expired:
                self._wait = _AGAIN
            except _TooMany:
                self._log.warning(
                    "Too many objects to keep; the API server is asked each time", resource=self._kind.plural
                )
                self.by_name.clear()
                self.names.clear()
                self._listed.set()
                return
            except SpireError as error:
                self._failure = error
                self._log.warning("Kubernetes cache cannot be kept", resource=self._kind.plural, error=error)
            await asyncio.sleep(self._wait)
            self._wait = min(2 * self._wait, _AT_MOST)

    async def _list(self) -> str:
        """Returns the version from which to watch."""
        by_name: dict[tuple[str, str], Metadata] = {}
        version = ""
        async with aclosing(pages(self._server, self._kind)) as listing:
            async for page in listing:
                by_name |= {(each.namespace, each.name): each for each in _metadatas(page)}
                version = page.metadata.resource_version
                if len(by_name) > _MOST_OBJECTS:
                    raise _TooMany
        self.by_name = by_name
        self.names = {each.uid: key for key, each in by_name.items()}
        self._failure = None
        self._listed.set()
        return version

    async def _watch(self, version: str) -> str:
        """Until the API server ends it, which it does every few minutes. Returns the version to go on from."""
        query = f"watch=1&allowWatchBookmarks=true&timeoutSeconds={_WATCH}&resourceVersion={version}"
        accept = LIST.replace("PartialObjectMetadataList", "PartialObjectMetadata")
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_WATCH + TIMEOUT):
                async with self._server.watching(f"{self._kind.collection}?{query}", accept) as answer:
                    lines = _Lines(answer)
                    while line := await lines.next():
                        version = self._take(decoded(line, _Event)) or version
                        self._wait = _AGAIN
        except TimeoutError:
            pass  # a connection that has died without a word
        if asyncio.get_running_loop().time() - began < _AGAIN:
            await asyncio.sleep(_AGAIN)
        return version

    def _take(self, event: _Event) -> str:
        """Returns the version that it brings."""
        metadata = event.object.metadata
        key = (metadata.namespace, metadata.name)
        if event.type == "ERROR":
            reason = f"{event.object.code}: {event.object.message}"
            raise Expired(reason) if event.object.code == _EXPIRED else TemporarilyUnavailable(reason)
        if event.type in ("ADDED", "MODIFIED", "DELETED"):
            before = self.by_name.pop(key, None)
            if before is not None:
                self.names.pop(before.uid, None)
        if event.type in ("ADDED", "MODIFIED"):
            self.by_name[key] = metadata
            self.names[metadata.uid] = key
            if len(self.by_name) > _MOST_OBJECTS:
                raise _TooMany
        return metadata.resource_version


class _Lines:
    """An answer's lines."""

    def __init__(self, answer: Incoming) -> None:
        self._answer = answer
        self._rest = bytearray()

    async def next(self) -> bytes:
        """Empty at the end. Raises TemporarilyUnavailable, for a line that is too long too."""
        while (end := self._rest.find(b"\n")) < 0:
            part = await self._answer.read()
            if not part:
                return b""
            self._rest += part
            if len(self._rest) > _LARGEST_EVENT:
                raise TemporarilyUnavailable(f"an event is larger than {_LARGEST_EVENT} bytes")
        line = bytes(self._rest[: end + 1])
        del self._rest[: end + 1]
        return line


def _metadatas(page: Page) -> list[Metadata]:
    items: tuple[Partial, ...] = page.items or ()
    return [each.metadata for each in items]
