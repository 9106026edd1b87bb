"""Workloads that a broker names: pods and other objects of Kubernetes, and whether it may speak for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from google.protobuf.message import DecodeError

from attestors.k8s import objects, selectors
from attestors.k8s.api_server import ApiServer
from attestors.k8s.configuration import ENFORCED, BrokerEntry, Configuration
from attestors.k8s.objects import CORE, POD, Kind, Kinds, Metadatas
from attestors.k8s.pods import Metadata, Pod, Pods
from generated.spiffe.broker.api_pb2 import KubernetesObjectReference, WorkloadPIDReference
from operations.errors import InvalidArgument, NotFound, Refused, SpireError
from operations.logs import Logger
from operations.quoting import quote
from transport.status import Code, RpcError

OBJECT_REFERENCE = "type.googleapis.com/spiffe.broker.KubernetesObjectReference"

_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_VERB = "impersonate-via-spire"


@dataclass(frozen=True, slots=True)
class Referred:
    """An object and its selectors' values."""

    kind: Kind
    metadata: Metadata
    values: Sequence[str]


class NodePods(Protocol):
    async def __call__(self) -> Pods:
        """The node's pods. Raises SpireError."""
        ...


class References:
    def __init__(
        self, configuration: Configuration, server: ApiServer, metadatas: Metadatas, node_pods: NodePods, log: Logger
    ) -> None:
        self._configuration = configuration
        self._server = server
        self._metadatas = metadatas
        self._node_pods = node_pods
        self._log = log
        self._kinds = Kinds(server)

    def broker(self, broker_id: str | None) -> BrokerEntry | None:
        """What the configuration says of a broker; None where none asks. Raises Refused for one it does not know."""
        if broker_id is None:
            return None
        broker = self._configuration.experimental.broker
        if broker is None:
            raise RpcError(Code.INTERNAL, "broker configuration missing")
        entry = broker.entry(broker_id)
        if entry is None:
            raise Refused(f"broker {quote(broker_id)} is not configured")
        return entry

    async def resolve(self, value: bytes, broker: BrokerEntry | None) -> Referred:
        """`value` is a KubernetesObjectReference. Raises SpireError: what is wrong with it, or with who was asked."""
        reference = _read(value)
        if (reference.type.plural, reference.type.group) == (POD.plural, CORE):
            return await self._pod(reference, anywhere=broker is not None and broker.anywhere)
        return await self._object(reference)

    async def require_access(self, broker: BrokerEntry | None, kind: Kind, metadata: Metadata) -> None:
        """Raise Refused when Kubernetes does not let the broker speak for the object, if it is to be asked."""
        settings = self._configuration.experimental.broker
        if broker is None or settings is None or settings.access_policy != ENFORCED:
            return
        try:
            answer = await self._server.post(_REVIEWS, _review(broker.id, kind, metadata))
            allowed = objects.decoded(answer, _Review).status.allowed
        except SpireError as error:
            text = f"unable to check Kubernetes authorization for broker: {error}"
            raise RpcError(Code.INTERNAL, text) from error
        if not allowed:
            raise Refused(f"Kubernetes authorizer does not allow the broker to use {_VERB} for the referenced object")

    async def _pod(self, reference: KubernetesObjectReference, *, anywhere: bool) -> Referred:
        namespace, name, uid = reference.key.namespace, reference.key.name, reference.uid
        if name:
            if not namespace:
                raise _no_namespace()
            pod = await self._pod_by_name(namespace, name, anywhere=anywhere)
        else:
            pod = await self._pod_by_uid(uid, anywhere=anywhere)
        metadata = pod.metadata
        if uid and metadata.uid != uid:
            raise _another(f"pod {metadata.namespace}/{metadata.name}", metadata.uid, uid)
        values = selectors.of_pod(pod) + await self._of_namespace(metadata.namespace)
        return Referred(POD, metadata, values)

    async def _pod_by_name(self, namespace: str, name: str, *, anywhere: bool) -> Pod:
        for pod in (await self._here(anywhere=anywhere)).all():
            if (pod.metadata.namespace, pod.metadata.name) == (namespace, name):
                return pod
        if not anywhere:
            raise NotFound(f"pod {namespace}/{name} not found on agent node")
        return await self._elsewhere(namespace, name)

    async def _pod_by_uid(self, uid: str, *, anywhere: bool) -> Pod:
        if pod := (await self._here(anywhere=anywhere)).get(uid):
            return pod
        if not anywhere:
            raise NotFound(f"pod with UID {uid} not found on agent node")
        metadata = await self._found(POD, uid)
        return await self._elsewhere(metadata.namespace, metadata.name)

    async def _here(self, *, anywhere: bool) -> Pods:
        """The node's pods; none when the kubelet cannot be asked and other nodes will do."""
        if self._configuration.disable_kubelet_client:
            if not anywhere:
                raise RpcError(Code.FAILED_PRECONDITION, "kubelet client is disabled")
            return Pods({})
        try:
            return await self._node_pods()
        except SpireError as error:
            if not anywhere:
                raise RpcError(Code.UNAVAILABLE, str(error)) from error
            self._log.debug("Unable to query kubelet for pod reference; falling back to Kubernetes API", error=error)
            return Pods({})

    async def _elsewhere(self, namespace: str, name: str) -> Pod:
        try:
            return await objects.pod(self._server, namespace, name)
        except NotFound as error:
            raise NotFound(f"pod {namespace}/{name} not found") from error
        except InvalidArgument:
            raise
        except SpireError as error:
            raise RpcError(Code.INTERNAL, f"unable to get pod from Kubernetes API: {error}") from error

    async def _object(self, reference: KubernetesObjectReference) -> Referred:
        namespace, name, uid = reference.key.namespace, reference.key.name, reference.uid
        kind = await self._kinds.find(reference.type.plural, reference.type.group)
        if kind.namespaced and name and not namespace:
            raise _no_namespace()
        if not kind.namespaced and namespace:
            raise InvalidArgument("namespace must be empty for cluster-scoped resource")
        metadata = await self._named(kind, namespace, name) if name else await self._found(kind, uid)
        if uid and metadata.uid != uid:
            what = f"{reference.type.plural}.{reference.type.group} {metadata.namespace}/{metadata.name}"
            raise _another(what, metadata.uid, uid)
        values = selectors.of_object(kind, metadata)
        if kind.namespaced and metadata.namespace:
            values += await self._of_namespace(metadata.namespace)
        return Referred(kind, metadata, values)

    async def _named(self, kind: Kind, namespace: str, name: str) -> Metadata:
        try:
            return await self._metadatas.get(kind, namespace, name)
        except NotFound as error:
            raise NotFound(f"{kind.kind} {namespace}/{name} not found") from error
        except InvalidArgument:
            raise
        except SpireError as error:
            raise RpcError(Code.INTERNAL, f"unable to get {kind.kind}: {error}") from error

    async def _found(self, kind: Kind, uid: str) -> Metadata:
        try:
            return await self._metadatas.find(kind, uid)
        except NotFound as error:
            raise NotFound(f"{kind.kind} with UID {uid} not found") from error
        except SpireError as error:
            raise RpcError(Code.INTERNAL, f"unable to list {kind.kind}: {error}") from error

    async def _of_namespace(self, namespace: str) -> list[str]:
        if not self._configuration.enable_namespace_labels:
            return []
        return selectors.of_namespace(await objects.namespace_labels(self._metadatas, namespace))


class _Verdict(msgspec.Struct, frozen=True, kw_only=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True, kw_only=True):
    """authorization.k8s.io/v1 SubjectAccessReview, as it is answered."""

    status: _Verdict = _Verdict()


def _review(user: str, kind: Kind, metadata: Metadata) -> bytes:
    attributes = {
        "group": kind.group,
        "resource": kind.plural,
        "namespace": metadata.namespace,
        "name": metadata.name,
        "verb": _VERB,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    return msgspec.json.encode(review)


def pid_of(value: bytes) -> int:
    """Of a WorkloadPIDReference. Raises InvalidArgument."""
    try:
        return WorkloadPIDReference.FromString(value).pid
    except DecodeError as error:
        raise InvalidArgument("unable to unmarshal PID reference") from error


def _read(value: bytes) -> KubernetesObjectReference:
    try:
        reference = KubernetesObjectReference.FromString(value)
    except DecodeError as error:
        raise InvalidArgument("unable to unmarshal object reference") from error
    if not reference.HasField("type"):
        raise InvalidArgument("object reference is missing type")
    if not reference.type.plural:
        raise InvalidArgument("object reference type is missing plural")
    if not reference.type.group:
        raise InvalidArgument("object reference type is missing group")
    if not (reference.HasField("key") or reference.uid):
        raise InvalidArgument("object reference is missing key and UID")
    if reference.HasField("key") and not reference.key.name:
        raise InvalidArgument("object reference key is missing name")
    return reference


def _no_namespace() -> InvalidArgument:
    return InvalidArgument("namespace is required when name is set for a namespaced resource")


def _another(what: str, uid: str, expected: str) -> NotFound:
    return NotFound(f"{what} has UID {uid}, expected {expected}")
