"""What paths of cgroups name, as engines and the kubelet write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestors.containers import proc_files
from attestors.containers.identifiers import NOWHERE, Container, of_path, of_paths, places
from operations.errors import Refused

ID = "4f0c" * 16
OTHER_ID = "5a1d" * 16
POD = "6d1c63a5-f6f7-4d6b-9a1b-6f3e0b2c9d10"
OTHER_POD = "7e2d74b6-0708-5e7c-ab2c-70410c3dae21"
ESCAPED_POD = POD.replace("-", "_")
POD_SLICE = f"kubelet-kubepods-burstable-pod{ESCAPED_POD}.slice"

IN_CONTAINERS = {
    "docker with cgroupfs": f"/docker/{ID}",
    "docker with systemd": f"/system.slice/docker-{ID}.scope",
    "docker without root": f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
    "docker below a parent of its own": f"/batch.slice/{ID}",
    "a service within a container": f"/docker/{ID}/system.slice/nginx.service",
    "docker within docker": f"/docker/{OTHER_ID}/docker/{ID}/system.slice/containerd.service",
    "podman": f"/machine.slice/libpod-{ID}.scope",
    "podman with cgroupfs": f"/libpod_parent/libpod-{ID}",
    "podman's payload beside conmon": f"/machine.slice/libpod-{ID}.scope/container",
    "podman as a service": f"/system.slice/web.service/libpod-payload-{ID}",
    "podman without root": f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
    "another cgroup namespace's": f"/../{ID}",
    "a cgroup that was removed": f"/docker/{ID} (deleted)",
    "no slash": ID,
    "upper case": f"/docker/{ID.upper()}",
}

IN_PODS = {
    "cgroupfs": f"/kubepods/besteffort/pod{POD}/{ID}",
    "guaranteed": f"/kubepods/pod{POD}/{ID}",
    "containerd": f"/kubelet.slice/kubelet-kubepods.slice/{POD_SLICE}/cri-containerd-{ID}.scope",
    "cri-o": f"/kubepods.slice/kubepods-pod{ESCAPED_POD}.slice/crio-{ID}.scope/container",
    "kind": f"/docker/{OTHER_ID}/kubelet.slice/kubelet-kubepods.slice/{POD_SLICE}/cri-containerd-{ID}.scope",
    "colons": f"/system.slice/containerd.service/kubepods-burstable-pod{ESCAPED_POD}.slice:cri-containerd:{ID}",
    "colons around": f"/kubepods-pod{ESCAPED_POD}.slice:cri-containerd:{ID}/init.scope",
    "another cgroup namespace's": f"/../../kubepods-pod{ESCAPED_POD}.slice/cri-containerd-{ID}.scope",
    "a slice between": f"/kubepods/pod{POD}/sandbox/{ID}",
}

OUTSIDE = {
    "root": "/",
    "a user's session": "/user.slice/user-1000.slice/session-2.scope",
    "a pod's sandbox alone": f"/kubepods/besteffort/pod{POD}",
    "too short": f"/docker/{ID[:-1]}",
    "too long": f"/docker/{ID}0",
    "within a word": f"/docker/x{ID}",
    "after an underscore": f"/docker/x_{ID}",
    "no hex": f"/docker/{'g' * 64}",
    "a slash at the end": f"/docker/{ID}/",
    "a slash too many": f"/docker/{ID}//init.scope",
    "empty": "",
}


@pytest.mark.parametrize("path", IN_CONTAINERS.values(), ids=IN_CONTAINERS)
def test_containers(path: str) -> None:
    expected = ID.upper() if ID.upper() in path else ID
    assert of_path(path.encode()) == Container(expected)
    assert of_path(path.encode(), pods=False) == Container(expected)


@pytest.mark.parametrize("path", IN_PODS.values(), ids=IN_PODS)
def test_pods(path: str) -> None:
    assert of_path(path.encode()) == Container(ID, POD)
    assert of_path(path.encode(), pods=False) == Container(ID)


@pytest.mark.parametrize("path", OUTSIDE.values(), ids=OUTSIDE)
def test_outside(path: str) -> None:
    assert of_path(path.encode()) == NOWHERE


@given(st.binary())
def test_any_path_names_an_id_or_nothing(path: bytes) -> None:
    found = of_path(path)
    assert found.container_id == "" or len(found.container_id) == 64
    assert found.pod_uid == "" or len(found.pod_uid) == 36


def paths(*texts: str) -> list[bytes]:
    return [text.encode() for text in texts]


def test_hierarchies_agree() -> None:
    assert of_paths(paths("/", f"/docker/{ID}", f"/system.slice/docker-{ID}.scope")) == Container(ID)
    assert of_paths(paths("/", "/user.slice")) == NOWHERE
    # Docker with cgroups of version 1, on a system that has those of version 2 besides.
    assert of_paths(paths(f"/docker/{ID}", "/system.slice/containerd.service")) == Container(ID)
    assert of_paths([]) == NOWHERE


def test_a_pod_wins_over_its_nodes_container() -> None:
    in_pod, node = f"/docker/{OTHER_ID}/kubepods/besteffort/pod{POD}/{ID}", f"/docker/{OTHER_ID}/system.slice"
    assert of_paths(paths(in_pod, node)) == Container(ID, POD)
    assert of_paths(paths(node, in_pod)) == Container(ID, POD)
    # Where nobody asks for pods the two are containers that disagree.
    with pytest.raises(Refused, match="multiple container IDs found"):
        of_paths(paths(in_pod, node), pods=False)


def test_places() -> None:
    scope = f"/system.slice/docker-{ID}.scope"
    assert places(paths(scope, f"{scope}/init.scope", "/", f"/docker/{OTHER_ID}"), ID) == {scope.encode()}
    assert places(paths(f"/docker/{OTHER_ID}/{ID}/a"), ID) == {f"/docker/{OTHER_ID}/{ID}".encode()}
    assert places(paths("/", "/user.slice"), ID) == frozenset()


def test_disagreement_is_refused() -> None:
    with pytest.raises(Refused, match=rf'^multiple container IDs found \("{ID}", "{OTHER_ID}"\)$'):
        of_paths(paths(f"/docker/{ID}", f"/docker/{OTHER_ID}"))
    with pytest.raises(Refused, match=rf'^multiple pod UIDs found \("{POD}", "{OTHER_POD}"\)$'):
        of_paths(paths(f"/kubepods/pod{POD}/{ID}", f"/kubepods/pod{OTHER_POD}/{ID}"))
    with pytest.raises(Refused, match="multiple container IDs found"):
        of_paths(paths(f"/kubepods/pod{POD}/{ID}", f"/kubepods/pod{POD}/{OTHER_ID}"))


def test_cgroup_files() -> None:
    both = b"12:cpu,cpuacct:/a\n1:name=systemd:/user.slice/x:y\n0::/user.slice/a b\n"
    assert proc_files.cgroup_paths(both) == [b"/a", b"/user.slice/x:y", b"/user.slice/a b"]
    assert proc_files.cgroup_paths(b"0::/") == [b"/"]
    assert proc_files.cgroup_paths(b"") == []
    # What ends no line for the kernel ends none for us: \v, \x85 and the like are parts of names.
    assert proc_files.cgroup_paths(b"0::/a\x0b\x0c\r\x85b\n") == [b"/a\x0b\x0c\r\x85b"]


@pytest.mark.parametrize("content", [b"11:hugetlb\n", b"\n", b"0::/\n\n0::/\n", b"\x00\xff" * 1000])
def test_cgroup_files_that_are_none(content: bytes) -> None:
    with pytest.raises(Refused, match=r"^unable to obtain cgroups: invalid cgroup entry, contains \d colon") as caught:
        proc_files.cgroup_paths(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_mount_files() -> None:
    content = (
        b"25 1 0:23 /../4f0c /sys/fs/cgroup ro,nosuid shared:4 master:1 - cgroup2 cgroup2 rw\n"
        b"\n"
        b"33 25 0:28 /docker/4f0c /sys/fs/cgroup/systemd ro - cgroup systemd rw,name=systemd\n"
        b"40 25 0:68 / /local rw,relatime - tmpfs  rw,size=8192k\n"
        b"41 25 0:69 /a\\040b /c\\040d rw - ext4 /dev/sda1 rw\n"
    )
    found = [(mount.root, mount.type, mount.is_cgroup) for mount in proc_files.mounts(content)]
    assert found == [
        (b"/../4f0c", b"cgroup2", True),
        (b"/docker/4f0c", b"cgroup", True),
        (b"/", b"tmpfs", False),
        (b"/a\\040b", b"ext4", False),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"25 1 0:23 / /sys/fs/cgroup ro,nosuid cgroup2 cgroup2 rw", "missing separator in mountinfo line"),
        (b"25 1 0:23 - cgroup2 cgroup2 rw", "expected at least 6 fields before separator in mountinfo line"),
        (b"25 1 0:23 / /sys/fs/cgroup rw - ", "missing filesystem type in mountinfo line"),
        (b"25 1 0:23 / /sys/fs/cgroup rw -", "missing filesystem type in mountinfo line"),
        (b"\x00\xff" * 5000, "missing separator in mountinfo line"),
    ],
)
def test_mount_files_that_are_none(line: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=f"^{reason}: ") as caught:
        proc_files.mounts(b"40 25 0:68 / /local rw,relatime - tmpfs  rw\n" + line + b"\n")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
