"""Pods whose images are signed, and others: the kubelet says which image, a registry what it is signed by."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from attestors.containers.identifiers import Container
from attestors.k8s.attestor import K8sAttestor
from attestors.k8s.configuration import Configuration
from attestors.sigstore.configuration import Configuration as Sigstores
from operations import logs
from operations.errors import Refused
from tests.simulators.kubelet import Pods, container, kubelet, pod
from tests.simulators.registry import Registry, WebServer
from tests.simulators.sigstore import Sigstore
from transport.peer import Process

UID = "6d1c63a5-f6f7-4d6b-9a1b-6f3e0b2c9d10"
ID = "4f0c" * 16
ME = Process(1, 0, 0, 0)

Attesting = Callable[[str], AbstractAsyncContextManager[K8sAttestor]]


@pytest.fixture
def attesting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attesting:
    sigstore, registry = Sigstore(), Registry()
    for name, value in sigstore.environment(tmp_path / "trust").items():
        monkeypatch.setenv(name, value)

    @asynccontextmanager
    async def make(signed: str) -> AsyncGenerator[K8sAttestor]:
        async def locate(_: Process) -> Container:
            return Container(ID, UID)

        digest = registry.push_image()
        if signed:
            registry.attach(digest, sigstore.signature(digest))
        with WebServer(registry.route) as server:
            status = container("app", ID, "app:v1", f"{server.host}/app@{digest}")
            with kubelet(Pods([pod(UID, status)])) as service:
                configuration = Configuration(
                    kubelet_read_only_port=service.port, sigstore=Sigstores(ignore_attestations=True)
                )
                attestor = K8sAttestor(configuration, logs.get("k8s"), locate=locate)
                await attestor.prepare()
                try:
                    yield attestor
                finally:
                    await attestor.close()

    return make


async def test_a_signed_image(attesting: Attesting) -> None:
    async with attesting("signed") as attestor:
        found = [str(each) for each in await attestor.attest(ME)]
    assert "k8s:container-name:app" in found
    assert "k8s:image-signature:verified" in found


async def test_an_image_that_is_not_signed(attesting: Attesting) -> None:
    async with attesting("") as attestor:
        with pytest.raises(
            Refused, match=r"^error verifying sigstore image signature for imageID localhost:\d+/app@sha256:"
        ):
            await attestor.attest(ME)
