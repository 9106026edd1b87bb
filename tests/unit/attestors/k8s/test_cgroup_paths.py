"""Paths of cgroups: those the old locator knows, and those no kubelet makes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestors.containers.identifiers import NOWHERE, Container
from attestors.k8s import nesting
from attestors.k8s.legacy_locator import of_path, of_paths
from operations.errors import Refused

ID = "4f0c" * 16
OTHER_ID = "5a1d" * 16
POD = "6d1c63a5-f6f7-4d6b-9a1b-6f3e0b2c9d10"
OTHER_POD = "7e2d74b6-0708-5e7c-ab2c-70410c3dae21"
FLAT = POD.replace("-", "_")
IN_POD = Container(ID, POD)

LEGACY = {
    f"/kubepods/pod{POD}/{ID}": IN_POD,
    f"/kubepods/burstable/pod{POD}/{ID}": IN_POD,
    f"/docker/{OTHER_ID}/kubepods/besteffort/pod{POD}/{ID}": IN_POD,
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{FLAT}.slice/docker-{ID}.scope": IN_POD,
    f"/../../pod{POD}/{ID}": IN_POD,
    f"/anything/pod{POD}/{ID}": IN_POD,
    f"/kubepods-besteffort-pod{FLAT}.slice:cri-containerd:{ID}": IN_POD,
    f"/kubepods.slice/kubepods-besteffort-pod{FLAT}.slice/crio-{ID}.scope": IN_POD,
    f"/../crio-{ID}.scope": Container(ID),
    f"/machine/crio-{ID}": Container(ID),
    f"/{ID}": NOWHERE,
    f"/docker/{ID}": NOWHERE,
    f"/kubepods/{ID}": NOWHERE,
    f"/kubepods/pod{POD}": NOWHERE,
    f"/kubepods/pod{POD}/{ID}/below": NOWHERE,
    f"/kubepods/pod{POD}/x{ID}": NOWHERE,
    f"/kubepods/pod{POD.replace('-', '')}": NOWHERE,
    f"/kubepods/podx{POD}/{ID}": NOWHERE,
    "/user.slice": NOWHERE,
    "/": NOWHERE,
    "": NOWHERE,
}


@pytest.mark.parametrize("path", LEGACY)
def test_paths_of_the_old_locator(path: str) -> None:
    assert of_path(path.encode()) == LEGACY[path]


def test_a_pod_without_dashes_is_written_as_it_is() -> None:
    flat = POD.replace("-", "")
    assert of_path(f"/kubepods/pod{flat}/{ID}".encode()) == Container(ID, flat)


def paths(*texts: str) -> list[bytes]:
    return [each.encode() for each in texts]


def test_the_old_locator_puts_paths_together() -> None:
    assert of_paths([]) == NOWHERE
    assert of_paths(paths("/user.slice", f"/kubepods/pod{POD}/{ID}", "/", f"/x/pod{POD}/{ID}")) == IN_POD
    with pytest.raises(Refused) as refusal:
        of_paths(paths(f"/kubepods/pod{POD}/{ID}", f"/kubepods/pod{POD}/{OTHER_ID}"))
    assert str(refusal.value) == f"multiple container IDs found in cgroups ({ID}, {OTHER_ID})"
    with pytest.raises(Refused) as refusal:
        of_paths(paths(f"/kubepods/pod{POD}/{ID}", f"/kubepods/pod{OTHER_POD}/{ID}"))
    assert str(refusal.value) == f"multiple pod UIDs found in cgroups ({POD}, {OTHER_POD})"


@given(st.binary())
def test_the_old_locator_survives_anything(path: bytes) -> None:
    of_path(path)
    nesting.require_none(path, containers=True)


@pytest.mark.parametrize("part", ["pod", "-", "a", "a-", f"/pod{POD}/", f"/pod{POD}", "crio-"])
def test_long_paths_take_no_time(part: str) -> None:
    start = time.process_time()
    for end in ("", f"/{ID}", f"crio-{ID}", f"crio-{ID}x"):
        of_path((part * (16384 // len(part)) + end).encode())
    assert time.process_time() - start < 30


TRUE = [
    "/",
    "/user.slice",
    f"/docker/{ID}",
    f"/docker/{OTHER_ID}/kubepods/besteffort/pod{POD}/{ID}",
    f"/kubepods/burstable/pod{POD}/{ID}",
    f"/kubepods/burstable/pod{POD}/{ID}/init.scope",
    f"/kubepods.slice/kubepods-pod{FLAT}.slice/cri-containerd-{ID}.scope",
    f"/kubepods-pod{FLAT}.slice:cri-containerd:{ID}",
    f"/kubepods.slice/kubepods-pod{FLAT}.slice/crio-{ID}.scope/container",
    f"/a-pod{POD}/pod{FLAT}/{ID}",
]


@pytest.mark.parametrize("path", TRUE)
def test_what_the_kubelet_makes(path: str) -> None:
    nesting.require_none(path.encode(), containers=True)


def test_another_pod_below_a_container() -> None:
    path = f"/kubepods/burstable/pod{POD}/{ID}/kubepods/pod{OTHER_POD}/{OTHER_ID}".encode()
    for containers in (True, False):
        with pytest.raises(Refused, match=f"several pods named in one cgroup path .pod{POD}, pod{OTHER_POD}."):
            nesting.require_none(path, containers=containers)


def test_another_container_below_a_container() -> None:
    path = f"/kubepods/burstable/pod{POD}/{ID}/docker/{OTHER_ID}".encode()
    with pytest.raises(Refused, match="several containers named in one cgroup path"):
        nesting.require_none(path, containers=True)
    nesting.require_none(path, containers=False)
