"""Pods and other objects that brokers name, and whether Kubernetes lets them; with a cache of it, and without."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from attestors.containers.identifiers import NOWHERE, Container
from attestors.k8s.attestor import K8sAttestor
from attestors.k8s.configuration import (
    ApiServer,
    Broker,
    BrokerEntry,
    Cache,
    Configuration,
    Experimental,
)
from attestors.k8s.references import OBJECT_REFERENCE
from generated.spiffe.broker import api_pb2
from operations import logs
from operations.errors import InvalidArgument, NotFound, Refused, SpireError
from plugins.workloadattestor import BROKER_ID, PID_REFERENCE
from tests.simulators.api_server import Cluster, api_server, kubeconfig, thing
from tests.simulators.kubelet import Answer, ClusterService, Json, Pods, container, kubelet, pod
from tests.simulators.web_pki import WebAuthority
from transport.errors import status_of
from transport.peer import Process
from transport.status import Code

UID = "6d1c63a5-f6f7-4d6b-9a1b-6f3e0b2c9d10"
FAR_UID = "7e2d74b6-0708-5e7c-ab2c-70410c3dae21"
ID = "4f0c" * 16
LOCAL = "spiffe://example.org/local"
ANYWHERE = "spiffe://example.org/anywhere"
OWNERS: list[Json] = [
    {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d1", "controller": True},
    {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "n1"},
]


def far_pod() -> Json:
    return pod(FAR_UID, container("app", "5a1d" * 16), name="far-0")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(
        {
            "/api/v1/pods": [
                pod("p1", name="a"), pod("p2", name="b"), pod("p3", name="c"), far_pod(),
            ],
            "/api/v1/namespaces": [thing("shop", "s1", labels={"team": "blue", "env": "prod"}), thing("lab", "s2")],
            "/api/v1/nodes": [thing("node-7", "n7", labels={"zone": "a"})],
            "/apis/apps/v1/deployments": [
                thing("web", "d1", "shop", {"app": "web"}, OWNERS), thing("db", "d2", "shop"), thing("db", "d3", "lab"),
            ],
            "/apis/apps/v1beta1/oddities": [thing("odd", "o1", "shop")],
        }
    )  # fmt: skip


@pytest.fixture
def server(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterService]:
    authority = WebAuthority(tmp_path)
    with api_server(cluster, authority.issue("api", "127.0.0.1"), token="api-token") as service:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", service, authority, "api-token")))
        yield service


@pytest.fixture
def pods() -> Pods:
    return Pods([pod(UID, container("app", ID), name="near-0")])


@pytest.fixture
def node(pods: Pods) -> Iterator[ClusterService]:
    with kubelet(pods) as service:
        yield service


Attesting = Callable[..., AbstractAsyncContextManager[K8sAttestor]]


@pytest.fixture(params=[False, True], ids=["asking", "watching"])
def attesting(request: pytest.FixtureRequest, server: ClusterService, node: ClusterService) -> Attesting:
    del server

    @asynccontextmanager
    async def make(
        *, policy: str = "permissive", labels: bool = False, kubelet: bool = True, where: Container = NOWHERE
    ) -> AsyncGenerator[K8sAttestor]:
        async def locate(_: Process) -> Container:
            return where

        brokers = [BrokerEntry(id=ANYWHERE, pod_reference_scope="cluster")]
        if kubelet:
            brokers.append(BrokerEntry(id=LOCAL))
        configuration = Configuration(
            kubelet_read_only_port=node.port if kubelet else 0,
            disable_kubelet_client=not kubelet,
            enable_namespace_labels=labels,
            experimental=Experimental(
                api_server=ApiServer(cache=Cache(enabled=request.param)),
                broker=Broker(access_policy=policy, brokers=tuple(brokers)),
            ),
        )
        attestor = K8sAttestor(configuration, logs.get("k8s"), locate=locate)
        await attestor.prepare()
        try:
            yield attestor
        finally:
            await attestor.close()

    return make


async def refer(attestor: K8sAttestor, broker: str | None, type_url: str, value: bytes) -> list[str]:
    token = None if broker is None else BROKER_ID.set(broker)
    try:
        return [str(each) for each in await attestor.attest_reference(type_url, value)]
    finally:
        if token is not None:
            BROKER_ID.reset(token)


def reference(kind: str, namespace: str = "", name: str = "", uid: str = "") -> bytes:
    plural, _, group = kind.partition(".")
    type_ = api_pb2.KubernetesObjectType(plural=plural, group=group)
    message = api_pb2.KubernetesObjectReference(type=type_, uid=uid)
    if name or namespace:
        message.key.CopyFrom(api_pb2.KubernetesObjectKey(namespace=namespace, name=name))
    return message.SerializeToString()


async def named(
    attestor: K8sAttestor, broker: str | None, kind: str, namespace: str = "", name: str = "", *, uid: str = ""
) -> list[str]:
    return await refer(attestor, broker, OBJECT_REFERENCE, reference(kind, namespace, name, uid))


async def test_pods_of_this_node(attesting: Attesting, server: ClusterService) -> None:
    async with attesting() as attestor:
        for broker in (LOCAL, ANYWHERE, None):
            for found in (
                await named(attestor, broker, "pods.core", "shop", "near-0"),
                await named(attestor, broker, "pods.core", uid=UID),
                await named(attestor, broker, "pods.core", "shop", "near-0", uid=UID),
            ):
                assert "k8s:pod-name:near-0" in found
                assert "k8s:sa:clerk" in found
                assert not [each for each in found if each.startswith("k8s:container")]
    assert not server.asked


async def test_pods_of_other_nodes(attesting: Attesting) -> None:
    async with attesting() as attestor:
        assert f"k8s:pod-uid:{FAR_UID}" in await named(attestor, ANYWHERE, "pods.core", "shop", "far-0")
        assert f"k8s:pod-uid:{FAR_UID}" in await named(attestor, ANYWHERE, "pods.core", uid=FAR_UID)
        for broker in (LOCAL, None):
            with pytest.raises(NotFound, match=r"^pod shop/far-0 not found on agent node$"):
                await named(attestor, broker, "pods.core", "shop", "far-0")
            with pytest.raises(NotFound, match=f"^pod with UID {FAR_UID} not found on agent node$"):
                await named(attestor, broker, "pods.core", uid=FAR_UID)


async def test_pods_that_are_not_there(attesting: Attesting) -> None:
    async with attesting() as attestor:
        with pytest.raises(NotFound, match=r"^pod shop/none not found$"):
            await named(attestor, ANYWHERE, "pods.core", "shop", "none")
        with pytest.raises(NotFound, match=r"^Pod with UID none not found$"):
            await named(attestor, ANYWHERE, "pods.core", uid="none")
        with pytest.raises(NotFound, match=f"^pod shop/near-0 has UID {UID}, expected another$"):
            await named(attestor, LOCAL, "pods.core", "shop", "near-0", uid="another")


async def test_a_kubelet_that_is_away(attesting: Attesting, pods: Pods) -> None:
    pods.garbage = Answer(500, b"no")
    async with attesting() as attestor:
        assert f"k8s:pod-uid:{FAR_UID}" in await named(attestor, ANYWHERE, "pods.core", "shop", "far-0")
        with pytest.raises(SpireError, match="unexpected status code on pods response: 500") as refusal:
            await named(attestor, LOCAL, "pods.core", "shop", "near-0")
        assert status_of(refusal.value).code is Code.UNAVAILABLE


async def test_without_a_kubelet(attesting: Attesting, node: ClusterService) -> None:
    async with attesting(kubelet=False) as attestor:
        assert f"k8s:pod-uid:{FAR_UID}" in await named(attestor, ANYWHERE, "pods.core", uid=FAR_UID)
        with pytest.raises(SpireError, match="kubelet client is disabled") as refusal:
            await named(attestor, None, "pods.core", uid=FAR_UID)
        assert status_of(refusal.value).code is Code.FAILED_PRECONDITION
    assert not node.asked


async def test_any_object(attesting: Attesting) -> None:
    async with attesting(labels=True) as attestor:
        expected = [
            "uid:d1", "resource:deployments.apps", "plural:deployments", "group:apps", "version:v1",
            "apiVersion:apps/v1", "kind:Deployment", "name:web", "namespace:shop", "key:shop/web", "label:app:web",
            "owner-key:apps/Deployment/web", "owner-uid:apps/Deployment/d1", "controller-key:apps/Deployment/web",
            "controller-uid:apps/Deployment/d1", "owner-key:core/Node/n", "owner-uid:core/Node/n1",
            "ns-label:team:blue", "ns-label:env:prod",
        ]  # fmt: skip
        assert await named(attestor, LOCAL, "deployments.apps", "shop", "web") == [f"k8s:{each}" for each in expected]
        assert await named(attestor, LOCAL, "deployments.apps", uid="d1") == [f"k8s:{each}" for each in expected]
        assert "k8s:namespace:lab" in await named(attestor, LOCAL, "deployments.apps", "lab", "db", uid="d3")


async def test_objects_of_the_cluster_and_of_old_versions(attesting: Attesting) -> None:
    async with attesting(labels=True) as attestor:
        found = await named(attestor, LOCAL, "nodes.core", "", "node-7")
        assert found == [
            "k8s:uid:n7", "k8s:resource:nodes.core", "k8s:plural:nodes", "k8s:group:core", "k8s:version:v1",
            "k8s:apiVersion:v1", "k8s:kind:Node", "k8s:name:node-7", "k8s:key:node-7", "k8s:label:zone:a",
        ]  # fmt: skip
        assert "k8s:apiVersion:apps/v1beta1" in await named(attestor, LOCAL, "oddities.apps", "shop", "odd")


OBJECTS: dict[tuple[str, ...], tuple[type[SpireError], str]] = {
    ("unknown.apps", "shop", "x"): (InvalidArgument, "unknown Kubernetes resource unknown.apps: "),
    ("pods/log.core", "shop", "x"): (InvalidArgument, "unknown Kubernetes resource pods/log.core: "),
    ("things.nowhere", "shop", "x"): (
        InvalidArgument, "unknown Kubernetes resource things.nowhere: no matches for nowhere/, Resource=things",
    ),
    ("things...", "shop", "x"): (InvalidArgument, "unknown Kubernetes resource things...: "),
    ("deployments.apps", "", "web"): (
        InvalidArgument, "namespace is required when name is set for a namespaced resource",
    ),
    ("pods.core", "", "web"): (InvalidArgument, "namespace is required when name is set for a namespaced resource"),
    ("nodes.core", "shop", "node-7"): (InvalidArgument, "namespace must be empty for cluster-scoped resource"),
    ("deployments.apps", "shop", "none"): (NotFound, "Deployment shop/none not found"),
    ("deployments.apps", "", "", "none"): (NotFound, "Deployment with UID none not found"),
    ("deployments.apps", "shop", "web", "d2"): (NotFound, "deployments.apps shop/web has UID d1, expected d2"),
    ("", "", ""): (InvalidArgument, "object reference type is missing plural"),
    ("pods", "", ""): (InvalidArgument, "object reference type is missing group"),
    ("pods.core", "", ""): (InvalidArgument, "object reference is missing key and UID"),
    ("pods.core", "shop", ""): (InvalidArgument, "object reference key is missing name"),
}  # fmt: skip


@pytest.mark.parametrize("which", OBJECTS, ids=str)
async def test_references_that_lead_nowhere(attesting: Attesting, which: tuple[str, ...]) -> None:
    kind, reason = OBJECTS[which]
    async with attesting() as attestor:
        with pytest.raises(kind, match=f"^{re.escape(reason)}"):
            await refer(attestor, LOCAL, OBJECT_REFERENCE, reference(*which))


async def test_names_that_would_be_other_paths(attesting: Attesting, server: ClusterService) -> None:
    async with attesting() as attestor:
        for namespace, name in (("..", "web"), ("shop", ".."), ("shop", "a/../b"), ("shop", "x?watch=1")):
            with pytest.raises((NotFound, InvalidArgument)):
                await named(attestor, LOCAL, "deployments.apps", namespace, name)
    assert not [each for each in server.asked if ".." in each.path.split("/")]


async def test_what_is_no_reference(attesting: Attesting) -> None:
    async with attesting() as attestor:
        with pytest.raises(InvalidArgument, match="unable to unmarshal object reference"):
            await refer(attestor, LOCAL, OBJECT_REFERENCE, b"\xff")
        with pytest.raises(InvalidArgument, match="object reference is missing type"):
            await refer(attestor, LOCAL, OBJECT_REFERENCE, b"")
        with pytest.raises(InvalidArgument, match="unable to unmarshal PID reference"):
            await refer(attestor, LOCAL, PID_REFERENCE, b"\xff")
        with pytest.raises(InvalidArgument, match=r"^unsupported reference type: x/y$"):
            await refer(attestor, LOCAL, "x/y", b"")


async def test_brokers_that_are_not_known(attesting: Attesting) -> None:
    async with attesting() as attestor:
        with pytest.raises(Refused, match=r'^broker "spiffe://example.org/x" is not configured$'):
            await named(attestor, "spiffe://example.org/x", "pods.core", uid=UID)
    attestor = K8sAttestor(Configuration(disable_kubelet_client=True), logs.get("k8s"))
    with pytest.raises(SpireError, match="broker configuration missing") as refusal:
        await named(attestor, LOCAL, "pods.core", uid=UID)
    assert status_of(refusal.value).code is Code.INTERNAL
    await attestor.close()


async def test_kubernetes_is_asked_about_each_object(attesting: Attesting, cluster: Cluster) -> None:
    async with attesting(policy="enforced") as attestor:
        await named(attestor, ANYWHERE, "pods.core", uid=FAR_UID)
        await named(attestor, LOCAL, "deployments.apps", "shop", "web")
        await named(attestor, LOCAL, "nodes.core", "", "node-7")
        asked = [(each["user"], each["resourceAttributes"]) for each in cluster.reviews]
        verb = {"verb": "impersonate-via-spire"}
        assert asked == [
            (ANYWHERE, verb | {"group": "", "resource": "pods", "namespace": "shop", "name": "far-0"}),
            (LOCAL, verb | {"group": "apps", "resource": "deployments", "namespace": "shop", "name": "web"}),
            (LOCAL, verb | {"group": "", "resource": "nodes", "namespace": "", "name": "node-7"}),
        ]
        assert not any("groups" in each for each in cluster.reviews)
        cluster.allowed = False
        with pytest.raises(
            Refused, match=r"^Kubernetes authorizer does not allow the broker to use impersonate-via-spire"
        ):
            await named(attestor, ANYWHERE, "pods.core", uid=FAR_UID)
        cluster.forbidden.add("/apis/authorization.k8s.io/v1/subjectaccessreviews")
        with pytest.raises(SpireError, match="unable to check Kubernetes authorization for broker: 403: ") as refusal:
            await named(attestor, ANYWHERE, "pods.core", uid=FAR_UID)
        assert status_of(refusal.value).code is Code.INTERNAL


async def test_a_pid(attesting: Attesting, cluster: Cluster) -> None:
    value = api_pb2.WorkloadPIDReference(pid=os.getpid()).SerializeToString()
    async with attesting(policy="enforced", where=Container(ID, UID)) as attestor:
        found = await refer(attestor, LOCAL, PID_REFERENCE, value)
        assert "k8s:container-name:app" in found
        assert cluster.reviews[0]["resourceAttributes"]["name"] == "near-0"
        cluster.allowed = False
        with pytest.raises(Refused, match="does not allow"):
            await refer(attestor, LOCAL, PID_REFERENCE, value)
    async with attesting(policy="enforced") as attestor:
        assert await refer(attestor, LOCAL, PID_REFERENCE, value) == []
    async with attesting() as attestor:
        gone = api_pb2.WorkloadPIDReference(pid=4_000_000).SerializeToString()
        with pytest.raises(NotFound):
            await refer(attestor, LOCAL, PID_REFERENCE, gone)


async def test_labels_of_namespaces(attesting: Attesting, cluster: Cluster) -> None:
    me = Process(os.getpid(), os.getuid(), os.getgid(), 0)
    async with attesting(labels=True, where=Container(ID, UID)) as attestor:
        found = [str(each) for each in await attestor.attest(me)]
        assert {"k8s:ns-label:team:blue", "k8s:ns-label:env:prod"} <= set(found)
        assert "k8s:ns-label:team:blue" in await named(attestor, LOCAL, "pods.core", uid=UID)
    cluster.objects["/api/v1/namespaces"] = []
    async with attesting(labels=True, where=Container(ID, UID)) as attestor:
        with pytest.raises(
            SpireError, match='unable to get namespace labels for "shop": unable to get namespace "shop"'
        ):
            await attestor.attest(me)
