"""The API server of a cluster: discovery, objects, lists in pages, watches, and reviews of access."""

from __future__ import annotations

import base64
import json
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.simulators.kubelet import Answer, Asked, ClusterService, Json
from tests.simulators.web_pki import Files, WebAuthority

PAGE = 2
"""Objects in a page, whatever the client asks for: every list of a test has several."""


def status(code: int, message: str) -> Answer:
    return Answer(code, json.dumps({"kind": "Status", "code": code, "message": message}).encode())


def thing(
    name: str, uid: str, namespace: str = "", labels: Json | None = None, owners: list[Json] | None = None
) -> Json:
    """An object, with something that nobody asks for."""
    metadata: Json = {"name": name, "uid": uid, "labels": labels, "managedFields": [{"manager": "x"}]}
    if namespace:
        metadata["namespace"] = namespace
    if owners:
        metadata["ownerReferences"] = owners
    return {"metadata": metadata, "spec": {"replicas": 3}}


@dataclass
class Cluster:
    """`objects` are by the path of their collection, such as /apis/apps/v1/deployments.

    `forbidden` are paths that are refused. `reviews` are the specs that were asked about.
    """

    objects: dict[str, list[Json]] = field(default_factory=dict[str, list[Json]])
    forbidden: set[str] = field(default_factory=set[str])
    allowed: bool = True
    reviews: list[Json] = field(default_factory=list[Json])
    version: int = 1
    watchers: list[queue.Queue[Json | None]] = field(default_factory=list["queue.Queue[Json | None]"])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, asked: Asked) -> Answer:
        parts = urlsplit(asked.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path in self.forbidden:
            return status(403, f"{parts.path} is forbidden: the agent may not")
        if asked.method == "POST":
            return self._review(asked)
        if (found := _DISCOVERY.get(parts.path)) is not None:
            return Answer(body=json.dumps(found).encode())
        if (items := self.objects.get(parts.path)) is not None:
            return self._watch() if "watch" in query else self._list(items, query)
        return self._get(parts.path)

    def change(self, kind: str, event: str, item: Json) -> None:
        """Tell all who watch: ADDED, MODIFIED or DELETED, or ERROR and its Status."""
        with self.lock:
            self.version += 1
            if event in ("ADDED", "MODIFIED", "DELETED"):
                uid = item["metadata"]["uid"]
                self.objects[kind] = [each for each in self.objects[kind] if each["metadata"]["uid"] != uid]
                item["metadata"]["resourceVersion"] = str(self.version)
            if event in ("ADDED", "MODIFIED"):
                self.objects[kind].append(item)
            for each in self.watchers:
                each.put({"type": event, "object": item})

    def end_watches(self) -> None:
        with self.lock:
            for each in self.watchers:
                each.put(None)
            self.watchers.clear()

    def _list(self, items: list[Json], query: dict[str, str]) -> Answer:
        start = int(query.get("continue", "0"))
        more = str(start + PAGE) if start + PAGE < len(items) else ""
        metadata = {"resourceVersion": str(self.version), "continue": more}
        return Answer(body=json.dumps({"metadata": metadata, "items": items[start : start + PAGE]}).encode())

    def _watch(self) -> Answer:
        news: queue.Queue[Json | None] = queue.Queue()
        with self.lock:
            self.watchers.append(news)

        def lines() -> Iterator[bytes]:
            while (event := news.get()) is not None:
                yield json.dumps(event).encode() + b"\n"

        return Answer(parts=lines())

    def _get(self, path: str) -> Answer:
        for collection, items in self.objects.items():
            root, _, plural = collection.rpartition("/")
            for item in items:
                metadata = item["metadata"]
                within = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
                if path == f"{root}{within}/{plural}/{metadata['name']}":
                    return Answer(body=json.dumps(item).encode())
        return status(404, f"{path} not found")

    def _review(self, asked: Asked) -> Answer:
        if asked.path != "/apis/authorization.k8s.io/v1/subjectaccessreviews":
            return status(404, "not found")
        review: Json = json.loads(asked.body)
        self.reviews.append(review["spec"])
        return Answer(201, json.dumps(review | {"status": {"allowed": self.allowed}}).encode())


_DISCOVERY: dict[str, Any] = {
    "/api/v1": {
        "resources": [
            {"name": "pods", "kind": "Pod", "namespaced": True},
            {"name": "pods/log", "kind": "Pod", "namespaced": True},
            {"name": "namespaces", "kind": "Namespace", "namespaced": False},
            {"name": "nodes", "kind": "Node", "namespaced": False},
        ]
    },
    "/apis/apps": {
        "versions": [{"version": "v1beta1"}, {"version": "v1"}],
        "preferredVersion": {"version": "v1"},
    },
    "/apis/apps/v1": {"resources": [{"name": "deployments", "kind": "Deployment", "namespaced": True}]},
    "/apis/apps/v1beta1": {"resources": [{"name": "oddities", "kind": "Oddity", "namespaced": True}]},
}


@contextmanager
def api_server(cluster: Cluster, files: Files, token: str = "") -> Generator[ClusterService, None, None]:
    service = ClusterService(cluster, files=files, token=token)
    try:
        yield service
    finally:
        cluster.end_watches()
        service.close()


def kubeconfig(path: Path, service: ClusterService, authority: WebAuthority, token: str) -> Path:
    """As kubectl writes them."""
    ca = base64.b64encode(authority.file.read_bytes()).decode()
    path.write_text(f"""
apiVersion: v1
kind: Config
current-context: here
contexts:
- context:
    cluster: local
    user: agent
  name: here
clusters:
- cluster:
    certificate-authority-data: {ca}
    server: https://127.0.0.1:{service.port}
  name: local
preferences: {{}}
users:
- name: agent
  user:
    token: {token}
""")
    return path
