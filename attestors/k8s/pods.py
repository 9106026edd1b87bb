"""Pods as the kubelet lists them (Kubernetes API v1, PodList), of which only what gives selectors is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from operations.documents import Malformed, decode
from operations.errors import TemporarilyUnavailable


class _Object(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The base of all objects. Kubernetes writes null for what is empty."""


class OwnerReference(_Object, frozen=True, kw_only=True):
    kind: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""
    controller: bool | None = None


class Metadata(_Object, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    labels: Mapping[str, str] | None = None
    owner_references: tuple[OwnerReference, ...] | None = None
    resource_version: str = ""


class ContainerStatus(_Object, frozen=True, kw_only=True):
    """`container_id` is a URL such as `containerd://…`, empty until the container has been made."""

    name: str = ""
    image: str = ""
    image_id: str = msgspec.field(name="imageID", default="")
    container_id: str | None = msgspec.field(name="containerID", default=None)

    @property
    def container(self) -> str:
        """The bare id."""
        return (self.container_id or "").partition("://")[2].partition("/")[0]


class Spec(_Object, frozen=True, kw_only=True):
    service_account_name: str = ""
    node_name: str = ""


class Status(_Object, frozen=True, kw_only=True):
    container_statuses: tuple[ContainerStatus, ...] | None = None
    init_container_statuses: tuple[ContainerStatus, ...] | None = None


class Pod(_Object, frozen=True, kw_only=True):
    metadata: Metadata = Metadata()
    spec: Spec = Spec()
    status: Status = Status()

    @property
    def containers(self) -> tuple[ContainerStatus, ...]:
        return self.status.container_statuses or ()

    @property
    def init_containers(self) -> tuple[ContainerStatus, ...]:
        return self.status.init_container_statuses or ()

    def container(self, container_id: str) -> ContainerStatus | None:
        """The container that runs, or ran before the others, under an id."""
        both = (*self.containers, *self.init_containers)
        return next((each for each in both if each.container == container_id), None)


@dataclass(frozen=True, slots=True)
class Pods:
    """Pods by their UID, and why those that cannot be read cannot."""

    readable: Mapping[str, Pod]
    unreadable: Mapping[str, str] = field(default_factory=dict[str, str])

    def get(self, uid: str) -> Pod | None:
        """Raises TemporarilyUnavailable."""
        if uid in self.unreadable:
            raise _cannot_read(self.unreadable[uid])
        return self.readable.get(uid)

    def all(self) -> Iterable[Pod]:
        """Raises TemporarilyUnavailable when there is one that cannot be read: it may be the one looked for."""
        for reason in self.unreadable.values():
            raise _cannot_read(reason)
        return self.readable.values()


class _PodList(_Object, frozen=True, kw_only=True):
    # One pod that cannot be read is to cost the others nothing.
    items: tuple[msgspec.Raw, ...] | None


class _Uid(_Object, frozen=True, kw_only=True):
    uid: str = ""


class _Bare(_Object, frozen=True, kw_only=True):
    metadata: _Uid = _Uid()


def parse(content: bytes, without_uid: Callable[[], None]) -> Pods:
    """The kubelet's answer. `without_uid` is told of each pod that has none and is left out.

    Raises TemporarilyUnavailable for what is no list of pods.
    """
    try:
        items = decode(content, _PodList).items
    except Malformed as error:
        if isinstance(error.__cause__, msgspec.ValidationError):
            reason = f"invalid kubelet response: expected an object with an items array: {error}"
        else:
            reason = f"unable to parse kubelet response: {error}"
        raise TemporarilyUnavailable(reason) from error
    readable: dict[str, Pod] = {}
    unreadable: dict[str, str] = {}
    for item in items or ():
        try:
            pod = decode(item, Pod)
        except Malformed as error:
            if uid := _uid_of(item):
                unreadable[uid] = str(error)
            else:
                without_uid()
            continue
        if pod.metadata.uid:
            readable[pod.metadata.uid] = pod
        else:
            without_uid()
    return Pods(readable, unreadable)


def _uid_of(item: msgspec.Raw) -> str:
    try:
        return decode(item, _Bare).metadata.uid
    except Malformed:
        return ""


def _cannot_read(reason: str) -> TemporarilyUnavailable:
    return TemporarilyUnavailable(f"unable to decode pod info from kubelet response: {reason}")
