"""From a process to its pod's selectors: containers that come late, pods that cannot be told apart, and whose image."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from attestors import processes
from attestors.containers.identifiers import NOWHERE, Container
from attestors.k8s.attestor import K8sAttestor, load
from attestors.k8s.configuration import Configuration
from operations import logs
from operations.errors import ConfigurationError, InvalidArgument, Refused, SpireError, TemporarilyUnavailable
from plugins.catalog import PluginContext
from plugins.workloadattestor import HoldsConnections, Patient
from tests.simulators.kubelet import Answer, ClusterService, Pods, container, kubelet, pod
from transport.peer import Process
from transport.status import Code, RpcError

UID = "6d1c63a5-f6f7-4d6b-9a1b-6f3e0b2c9d10"
OTHER_UID = "7e2d74b6-0708-5e7c-ab2c-70410c3dae21"
ID = "4f0c" * 16
OTHER_ID = "5a1d" * 16


def me() -> Process:
    return Process(os.getpid(), os.getuid(), os.getgid(), processes.started(os.getpid()))


@asynccontextmanager
async def attesting(
    service: ClusterService, where: Container, *, attempts: int = 0, pods_only: bool = False
) -> AsyncGenerator[K8sAttestor]:
    async def locate(_: Process) -> Container:
        return where

    configuration = Configuration(
        kubelet_read_only_port=service.port,
        max_poll_attempts=attempts,
        poll_retry_interval="20ms",
        disable_container_selectors=pods_only,
    )
    attestor = K8sAttestor(configuration, logs.get("k8s"), locate=locate)
    await attestor.prepare()
    try:
        yield attestor
    finally:
        await attestor.close()


async def attest(service: ClusterService, where: Container, *, attempts: int = 0, pods_only: bool = False) -> list[str]:
    async with attesting(service, where, attempts=attempts, pods_only=pods_only) as attestor:
        return [str(each) for each in await attestor.attest(me())]


async def asked_thrice(service: ClusterService) -> None:
    while len(service.asked) < 3:  # noqa: ASYNC110 - another thread counts
        await asyncio.sleep(0.01)


def one() -> Pods:
    return Pods([pod(UID, container("app", ID), labels={"app": "web"}), pod(OTHER_UID, container("app", OTHER_ID))])


async def test_a_container_of_a_known_pod() -> None:
    with kubelet(one()) as service:
        found = await attest(service, Container(ID, UID))
    assert f"k8s:pod-uid:{UID}" in found
    assert "k8s:pod-label:app:web" in found
    assert "k8s:container-name:app" in found


async def test_a_container_of_an_unknown_pod() -> None:
    with kubelet(one()) as service:
        assert f"k8s:pod-uid:{OTHER_UID}" in await attest(service, Container(OTHER_ID))


async def test_outside_of_containers_nobody_is_asked() -> None:
    with kubelet(one()) as service:
        assert await attest(service, NOWHERE) == []
        assert not service.asked


async def test_a_container_that_comes_late() -> None:
    pods = Pods([pod(UID, container("app", ""))])
    with kubelet(pods) as service:
        waiting = asyncio.ensure_future(attest(service, Container(ID, UID), attempts=1000))
        await asked_thrice(service)
        pods.items = one().items
        assert "k8s:container-name:app" in await waiting


async def test_a_container_that_never_comes() -> None:
    with kubelet(Pods([pod(UID, container("app", ""))])) as service:
        with pytest.raises(TemporarilyUnavailable, match=r"^no selectors found after max poll attempts$"):
            await attest(service, Container(ID, UID), attempts=4)
        assert len(service.asked) == 4


async def test_a_container_of_another_pod_than_its_cgroup_says() -> None:
    with kubelet(one()) as service, pytest.raises(TemporarilyUnavailable, match="no selectors found"):
        await attest(service, Container(OTHER_ID, UID), attempts=1)


async def test_an_init_container() -> None:
    with kubelet(Pods([pod(UID, container("app", ""), inits=[container("setup", ID)])])) as service:
        assert "k8s:container-name:setup" in await attest(service, Container(ID, UID))


@pytest.mark.parametrize("ready", [True, False])
async def test_without_container_selectors_the_pod_is_enough(ready: bool) -> None:
    with kubelet(Pods([pod(UID, container("app", ID if ready else ""))])) as service:
        found = await attest(service, Container(ID, UID), pods_only=True)
    assert f"k8s:pod-uid:{UID}" in found
    assert not [each for each in found if each.startswith("k8s:container")]


async def test_without_container_selectors_an_unknown_pod_needs_its_container() -> None:
    pods = Pods([pod(UID, container("app", ""))])
    with kubelet(pods) as service, pytest.raises(TemporarilyUnavailable, match="no selectors found"):
        await attest(service, Container(ID), attempts=2, pods_only=True)


async def test_two_pods_that_claim_one_container() -> None:
    with kubelet(Pods([pod(UID, container("app", ID)), pod(OTHER_UID, container("app", ID))])) as service:
        with pytest.raises(Refused, match=r"^two pods found with same container Id$"):
            await attest(service, Container(ID))
        assert f"k8s:pod-uid:{UID}" in await attest(service, Container(ID, UID)), "which pod it is in is known"


async def test_a_pod_that_cannot_be_read() -> None:
    bad = {"metadata": {"uid": OTHER_UID, "labels": 7}}
    with kubelet(Pods([bad, pod(UID, container("app", ID))])) as service:
        assert f"k8s:pod-uid:{UID}" in await attest(service, Container(ID, UID))
        for where in (Container(ID, OTHER_UID), Container(ID)):
            with pytest.raises(TemporarilyUnavailable, match="unable to decode pod info from kubelet response"):
                await attest(service, where)


async def test_a_kubelet_that_refuses_and_recovers() -> None:
    pods = one()
    pods.garbage = Answer(403, b"Forbidden")
    with kubelet(pods) as service:
        waiting = asyncio.ensure_future(attest(service, Container(ID, UID), attempts=1000))
        await asked_thrice(service)
        pods.garbage = None
        assert "k8s:container-name:app" in await waiting
        pods.garbage = Answer(500, b"no")
        with pytest.raises(TemporarilyUnavailable, match='unexpected status code on pods response: 500 "no"'):
            await attest(service, Container(ID, UID), attempts=2)


async def test_a_disabled_kubelet_client() -> None:
    attestor = K8sAttestor(Configuration(disable_kubelet_client=True), logs.get("k8s"))
    await attestor.prepare()
    with pytest.raises(RpcError, match="kubelet client is disabled") as refusal:
        await attestor.attest(me())
    assert refusal.value.code is Code.FAILED_PRECONDITION
    await attestor.close()


async def test_the_end() -> None:
    before = set(threading.enumerate())
    with kubelet(one()) as service:
        configuration = Configuration(kubelet_read_only_port=service.port, max_poll_attempts=1)
        attestor = K8sAttestor(configuration, logs.get("k8s"))
        await attestor.prepare()
        verifier = attestor.verifier = _Signed(())
        with suppress(SpireError):  # whoever runs this may be in a container
            await attestor.attest(me())
        workers = of_attestors(before)
        assert {each.name.rpartition("_")[0] for each in workers} == {"container-locator", "k8s-attestor"}
        assert isinstance(attestor, HoldsConnections)
        await attestor.close()
    assert verifier.closed
    for worker in workers:
        await asyncio.to_thread(worker.join, 60)
    assert not of_attestors(before)


def of_attestors(before: set[threading.Thread]) -> set[threading.Thread]:
    return {each for each in set(threading.enumerate()) - before if each.name.startswith(("container-", "k8s-"))}


async def test_it_says_how_long_it_may_take() -> None:
    attestor = K8sAttestor(Configuration(), logs.get("k8s"))
    assert isinstance(attestor, Patient)
    assert 30 < attestor.patience < 100
    await attestor.close()


async def test_a_hundred_callers_of_one_container_leave_room_for_others() -> None:
    with kubelet(one()) as service:
        places = {"here": Container("00" * 32, UID)}

        async def locate(process: Process) -> Container:
            return places["here"] if process.pid == 1 else Container(ID, UID)

        configuration = Configuration(kubelet_read_only_port=service.port, poll_retry_interval="20ms")
        attestor = K8sAttestor(configuration, logs.get("k8s"), locate=locate)
        stuck = [asyncio.ensure_future(attestor.attest(Process(1, 0, 0, 0))) for _ in range(2000)]
        await asyncio.sleep(0.1)
        assert await attestor.attest(me())
        assert not any(each.done() for each in stuck)
        for each in stuck:
            each.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        await attestor.close()


class _Signed:
    """In the place of the room that verifies images."""

    def __init__(self, result: Sequence[str] | SpireError) -> None:
        self._result = result
        self.asked: list[str] = []
        self.closed = False

    async def verify(self, image_reference: str) -> Sequence[str]:
        self.asked.append(image_reference)
        if isinstance(self._result, SpireError):
            raise self._result
        return self._result

    async def close(self) -> None:
        self.closed = True


async def verified(verifier: _Signed) -> list[str]:
    pods = Pods([pod(UID, container("app", ID, "app:v1", "registry.example/app@sha256:aa"))])
    with kubelet(pods) as service:
        async with attesting(service, Container(ID, UID)) as attestor:
            attestor.verifier = verifier
            return [str(each) for each in await attestor.attest(me())]


async def test_an_image_that_is_signed() -> None:
    verifier = _Signed(["image-signature:verified", "image-signature-subject:me"])
    found = await verified(verifier)
    assert found[-2:] == ["k8s:image-signature:verified", "k8s:image-signature-subject:me"]
    assert verifier.asked == ["registry.example/app@sha256:aa"]


@pytest.mark.parametrize(
    "error", [InvalidArgument("no reference"), Refused("unsigned"), TemporarilyUnavailable("away")]
)
async def test_an_image_that_is_not(error: SpireError) -> None:
    expected = TemporarilyUnavailable if isinstance(error, TemporarilyUnavailable) else Refused
    reason = f"error verifying sigstore image signature for imageID registry.example/app@sha256:aa: {error}"
    with pytest.raises(expected, match=re.escape(reason)):
        await verified(_Signed(error))


async def test_it_starts_only_with_files_that_are_there(tmp_path: Path) -> None:
    context = PluginContext("example.org", None, logs.get("k8s"))
    with pytest.raises(ConfigurationError, match="unable to load kubelet CA: open /nowhere: no such file"):
        await load(Configuration(kubelet_ca_path="/nowhere"), context)
    await load(Configuration(disable_kubelet_client=True), context)
