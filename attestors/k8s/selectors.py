"""Selectors of pods, their containers, namespaces and of other objects of Kubernetes: values, in a settled order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attestors.k8s.pods import ContainerStatus, Pod


def of_pod(pod: Pod) -> list[str]:
    metadata = pod.metadata
    values = [
        f"sa:{pod.spec.service_account_name}",
        f"ns:{metadata.namespace}",
        f"node-name:{pod.spec.node_name}",
        f"pod-uid:{metadata.uid}",
        f"pod-name:{metadata.name}",
        f"pod-image-count:{len(pod.containers)}",
        f"pod-init-image-count:{len(pod.init_containers)}",
        *(f"pod-image:{image}" for image in _images(pod.containers)),
        *(f"pod-init-image:{image}" for image in _images(pod.init_containers)),
        *(f"pod-label:{name}:{value}" for name, value in (metadata.labels or {}).items()),
    ]
    for owner in metadata.owner_references or ():
        values += [f"pod-owner:{owner.kind}:{owner.name}", f"pod-owner-uid:{owner.kind}:{owner.uid}"]
    return values


def of_container(container: ContainerStatus) -> list[str]:
    return [f"container-name:{container.name}", *(f"container-image:{image}" for image in _images((container,)))]


def of_namespace(labels: Mapping[str, str]) -> list[str]:
    return [f"ns-label:{name}:{value}" for name, value in labels.items()]


def _images(containers: Sequence[ContainerStatus]) -> Iterable[str]:
    """Each image by its digest and by its tag, once: entries may name either."""
    return dict.fromkeys(name for each in containers for name in (each.image_id, each.image))
