"""What is read of pods, and the selectors that come of it: the names are SPIRE 1.16's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestors.k8s import selectors
from attestors.k8s.pods import Pods, parse
from operations.errors import TemporarilyUnavailable
from tests.simulators.kubelet import container, pod

UID = "6d1c63a5-f6f7-4d6b-9a1b-6f3e0b2c9d10"
ID = "4f0c" * 16
OTHER_ID = "5a1d" * 16
INIT_ID = "6b2e" * 16


def read(*items: Any) -> Pods:
    return parse(json.dumps({"items": items}).encode(), lambda: None)


FULL = pod(
    UID,
    container("app", ID, "registry.example/app:v1", "registry.example/app@sha256:aa"),
    container("proxy", OTHER_ID, "registry.example/proxy:v2", "registry.example/proxy@sha256:bb"),
    inits=[container("setup", INIT_ID, "registry.example/setup:v3", "registry.example/setup@sha256:cc")],
    labels={"app": "web", "tier": "front:end"},
    owners=[{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": "77aa", "controller": True}],
)


def test_every_selector() -> None:
    found = read(FULL).readable[UID]
    assert selectors.of_pod(found) == [
        "sa:clerk",
        "ns:shop",
        "node-name:node-7",
        f"pod-uid:{UID}",
        "pod-name:web-0",
        "pod-image-count:2",
        "pod-init-image-count:1",
        "pod-image:registry.example/app@sha256:aa",
        "pod-image:registry.example/app:v1",
        "pod-image:registry.example/proxy@sha256:bb",
        "pod-image:registry.example/proxy:v2",
        "pod-init-image:registry.example/setup@sha256:cc",
        "pod-init-image:registry.example/setup:v3",
        "pod-label:app:web",
        "pod-label:tier:front:end",
        "pod-owner:ReplicaSet:web-5d",
        "pod-owner-uid:ReplicaSet:77aa",
    ]
    running = found.container(ID)
    assert running is not None
    assert selectors.of_container(running) == [
        "container-name:app",
        "container-image:registry.example/app@sha256:aa",
        "container-image:registry.example/app:v1",
    ]
    setup = found.container(INIT_ID)
    assert setup is not None
    assert selectors.of_container(setup)[0] == "container-name:setup"


def test_an_image_without_a_digest_is_named_as_spire_names_it() -> None:
    found = read(pod(UID, container("app", ID, "app:v1"), container("other", OTHER_ID, "app:v1"))).readable[UID]
    images = [each for each in selectors.of_pod(found) if each.startswith("pod-image:")]
    assert images == ["pod-image:", "pod-image:app:v1"]


def test_nothing_but_a_uid() -> None:
    found = read({"metadata": {"uid": UID, "labels": None, "ownerReferences": None}, "status": {}}).readable[UID]
    assert selectors.of_pod(found) == [
        "sa:",
        "ns:",
        "node-name:",
        f"pod-uid:{UID}",
        "pod-name:",
        "pod-image-count:0",
        "pod-init-image-count:0",
    ]


@pytest.mark.parametrize("text", ["", "containerd://", ID, f"containerd:/{ID}", f"x://{OTHER_ID}", f"x://{ID}0", "::"])
def test_other_containers(text: str) -> None:
    status = container("app", ID) | {"containerID": text}
    assert read(pod(UID, status)).readable[UID].container(ID) is None


@pytest.mark.parametrize("scheme", ["containerd", "docker", "cri-o"])
def test_a_container_by_any_runtime(scheme: str) -> None:
    status = container("app", ID) | {"containerID": f"{scheme}://{ID}"}
    assert read(pod(UID, status)).readable[UID].container(ID) is not None


def test_a_container_that_is_not_made_yet() -> None:
    for nothing in ({}, {"containerID": ""}, {"containerID": None}):
        status = container("app", "") | nothing
        assert read(pod(UID, status)).readable[UID].container(ID) is None
        assert read(pod(UID, status)).readable[UID].container("") is not None or nothing


def test_a_pod_in_another_character_set_costs_the_others_nothing() -> None:
    bad = json.dumps(pod(OTHER_ID, labels={"app": "mark"})).encode().replace(b"mark", b"\xff")
    found = parse(b'{"items": [' + bad + b"," + json.dumps(pod(UID)).encode() + b"]}", lambda: None)
    assert found.get(UID) is not None
    with pytest.raises(TemporarilyUnavailable, match="unable to decode pod info from kubelet response"):
        found.get(OTHER_ID)


def test_pods_without_a_uid_are_left_out() -> None:
    told: list[None] = []
    content = json.dumps({"items": [{}, {"metadata": {"uid": ""}}, {"metadata": 1}, 7, pod(UID)]}).encode()
    assert list(parse(content, lambda: told.append(None)).readable) == [UID]
    assert len(told) == 4


def test_one_that_cannot_be_read_costs_the_others_nothing() -> None:
    found = read({"metadata": {"uid": "bad", "labels": 7}}, pod(UID))
    assert found.get(UID) is not None
    assert found.get("unknown") is None
    for ask in (lambda: found.get("bad"), found.all):
        with pytest.raises(TemporarilyUnavailable, match="unable to decode pod info from kubelet response: Expected"):
            ask()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(TemporarilyUnavailable):
        parse(content, lambda: None)


@given(st.lists(json_values | st.fixed_dictionaries({"metadata": json_values, "status": json_values})))
def test_any_items_are_survived(items: list[Any]) -> None:
    read(*items, pod(UID)).get(UID)
