"""Any object of Kubernetes by its metadata: what kind it is of, where its kind is kept, and which one it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from attestors.k8s.api_server import ApiServer, segment
from attestors.k8s.pods import Metadata, Pod
from operations.documents import Malformed, decode
from operations.errors import InvalidArgument, NotFound, SpireError, TemporarilyUnavailable
from operations.quoting import quote
from transport.status import Code, RpcError

OBJECT = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
CORE = "core"
"""What the group without a name is called in references and selectors."""

_PAGE = 500
_KIND_LIFE = 600.0
_MOST_KINDS = 1024
_LISTING = 30.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind:
    """`group` is the API's, which for core objects is empty."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        return f"/apis/{segment(self.group)}/{segment(self.version)}" if self.group else f"/api/{segment(self.version)}"

    @property
    def collection(self) -> str:
        """The path of all objects of the kind."""
        return f"{self.root}/{segment(self.plural)}"

    def path(self, namespace: str, name: str) -> str:
        within = f"/namespaces/{segment(namespace)}" if self.namespaced else ""
        return f"{self.root}{within}/{segment(self.plural)}/{segment(name)}"


POD = Kind("", "v1", "Pod", "pods", namespaced=True)
NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False)


class _Answer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The base of all answers."""


class _Version(_Answer, frozen=True, kw_only=True):
    version: str = ""


class _Group(_Answer, frozen=True, kw_only=True):
    """meta/v1 APIGroup."""

    versions: tuple[_Version, ...] | None = None
    preferred_version: _Version = _Version()


class _Resource(_Answer, frozen=True, kw_only=True):
    name: str = ""
    kind: str = ""
    namespaced: bool = False


class _Resources(_Answer, frozen=True, kw_only=True):
    """meta/v1 APIResourceList."""

    resources: tuple[_Resource, ...] | None = None


class Partial(_Answer, frozen=True, kw_only=True):
    """meta/v1 PartialObjectMetadata, or any object."""

    metadata: Metadata = Metadata()


class ListMetadata(_Answer, frozen=True, kw_only=True):
    resource_version: str = ""
    next: str = msgspec.field(default="", name="continue")


class Page(_Answer, frozen=True, kw_only=True):
    """meta/v1 PartialObjectMetadataList."""

    metadata: ListMetadata = ListMetadata()
    items: tuple[Partial, ...] | None = None


class Metadatas(Protocol):
    """Where metadata is looked up: at the API server, or in a cache of it."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Metadata:
        """Raises NotFound, TemporarilyUnavailable, InvalidArgument."""
        ...

    async def find(self, kind: Kind, uid: str) -> Metadata:
        """By its UID alone. Raises as `get`."""
        ...


class LiveMetadatas:
    """Asks the API server each time."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    async def get(self, kind: Kind, namespace: str, name: str) -> Metadata:
        content = await self._server.get(kind.path(namespace, name), OBJECT)
        return decoded(content, Partial).metadata

    async def find(self, kind: Kind, uid: str) -> Metadata:
        try:
            async with asyncio.timeout(_LISTING):
                async for page in pages(self._server, kind):
                    for each in page.items or ():
                        if each.metadata.uid == uid:
                            return each.metadata
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"{kind.plural} could not be listed within {_LISTING:g} s") from error
        raise NotFound(uid)


async def pages(server: ApiServer, kind: Kind) -> AsyncGenerator[Page, None]:
    """All objects of a kind, in parts that fit into memory."""
    start = f"{kind.collection}?limit={_PAGE}"
    path = start
    while True:
        page = decoded(await server.get(path, LIST), Page)
        yield page
        if not page.metadata.next:
            return
        path = f"{start}&continue={segment(page.metadata.next)}"


class Kinds:
    """What the API server has, remembered for a while."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._known: dict[tuple[str, str], tuple[float, Kind]] = {}

    async def find(self, plural: str, group: str) -> Kind:
        """`group` is as in references. Raises RpcError: INVALID_ARGUMENT for a kind that there is not."""
        now = asyncio.get_running_loop().time()
        found_at, kind = self._known.get((plural, group), (float("-inf"), None))
        if kind is None or now - found_at > _KIND_LIFE:
            kind = await self._discover(plural, group)
            if len(self._known) >= _MOST_KINDS:
                self._known.clear()
            self._known[plural, group] = now, kind
        return kind

    async def _discover(self, plural: str, group: str) -> Kind:
        try:
            if group == CORE:
                return await self._in("", "v1", plural)
            found = decoded(await self._server.get(f"/apis/{segment(group)}"), _Group)
            versions = [found.preferred_version.version, *(each.version for each in found.versions or ())]
            for version in dict.fromkeys(filter(None, versions)):
                try:
                    return await self._in(group, version, plural)
                except NotFound:
                    continue
            raise NotFound(f"no version of {group}")
        except (NotFound, InvalidArgument) as error:
            reason = f"no matches for {'' if group == CORE else group}/, Resource={plural}"
            raise InvalidArgument(f"unknown Kubernetes resource {plural}.{group}: {reason}") from error
        except SpireError as error:
            raise RpcError(Code.INTERNAL, f"unable to set up Kubernetes client: {error}") from error

    async def _in(self, group: str, version: str, plural: str) -> Kind:
        root = Kind(group, version, "", "", namespaced=False).root
        for each in decoded(await self._server.get(root), _Resources).resources or ():
            # Subresources have a slash.
            if each.name == plural and "/" not in plural:
                return Kind(group, version, each.kind, plural, each.namespaced)
        raise NotFound(f"{root} has no such resource")


async def pod(server: ApiServer, namespace: str, name: str) -> Pod:
    """Raises NotFound, TemporarilyUnavailable, InvalidArgument."""
    return decoded(await server.get(POD.path(namespace, name)), Pod)


def decoded(content: bytes, kind: type[T]) -> T:
    """Raises TemporarilyUnavailable."""
    try:
        return decode(content, kind)
    except Malformed as error:
        raise TemporarilyUnavailable(f"the API server's answer cannot be understood: {error}") from error


async def namespace_labels(metadatas: Metadatas, namespace: str) -> Mapping[str, str]:
    """Raises RpcError."""
    try:
        found = await metadatas.get(NAMESPACE, "", namespace)
    except SpireError as error:
        name = quote(namespace)
        text = f"unable to get namespace labels for {name}: unable to get namespace {name}: {error}"
        raise RpcError(Code.INTERNAL, text) from error
    return found.labels or {}
