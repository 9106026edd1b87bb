"""A kubelet, or an API server: the parts of their HTTP that agents ask, and what goes wrong with them."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from tests.simulators.web_pki import Files

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request as it came. `certificate` says whether the client has shown one."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    certificate: bool


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""


class ClusterService:
    """Answers in threads of its own until it is closed.

    `token` is what callers have to bear, `client_authority` who has to have issued their certificates. While `hanging`
    is set no request is answered.
    """

    def __init__(
        self,
        answer: Callable[[Asked], Answer],
        *,
        files: Files | None = None,
        token: str = "",
        client_authority: Path | None = None,
    ) -> None:
        self.answer = answer
        self.token = token
        self.asked: list[Asked] = []
        self.hanging = threading.Event()
        self._ended = threading.Event()
        self._server = _Server(self)
        if files is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files.certificate, files.key)
            if client_authority is not None:
                context.load_verify_locations(client_authority)
                context.verify_mode = ssl.CERT_REQUIRED
            # The handshake is the business of the connection's own thread.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def respond(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        while self.hanging.is_set() and not self._ended.wait(0.05):
            pass
        if self.token and asked.headers.get("Authorization") != f"Bearer {self.token}":
            return Answer(401, b"Unauthorized\n")
        return self.answer(asked)


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, service: ClusterService) -> None:
        self.service = service
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away, or that do not trust us, are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.settimeout(30)
            self.request.do_handshake()
        super().setup()

    def do_GET(self) -> None:
        service = cast(_Server, self.server).service
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        shown = isinstance(self.request, ssl.SSLSocket) and bool(self.request.getpeercert(binary_form=True))
        answer = service.respond(Asked(self.command, self.path, dict(self.headers), body, shown))
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class Pods:
    """The pods of a node, as the kubelet's /pods gives them; `garbage` instead of them, if set."""

    items: list[Json] = field(default_factory=list[Json])
    garbage: Answer | None = None

    def __call__(self, asked: Asked) -> Answer:
        if asked.path != "/pods":
            return Answer(404, b"404 page not found\n")
        if self.garbage is not None:
            return self.garbage
        return Answer(body=json.dumps({"kind": "PodList", "apiVersion": "v1", "items": self.items}).encode())


@contextmanager
def kubelet(
    pods: Pods, *, files: Files | None = None, token: str = "", client_authority: Path | None = None
) -> Generator[ClusterService, None, None]:
    service = ClusterService(pods, files=files, token=token, client_authority=client_authority)
    try:
        yield service
    finally:
        service.close()


def container(name: str, container_id: str, image: str = "registry.example/app:v1", digest: str = "") -> Json:
    """A container's status; without an id, of one that has not been made yet."""
    status: Json = {"name": name, "image": image, "imageID": digest, "ready": bool(container_id), "restartCount": 0}
    if container_id:
        status |= {"containerID": f"containerd://{container_id}", "state": {"running": {}}}
    else:
        status["state"] = {"waiting": {"reason": "ContainerCreating"}}
    return status


def pod(
    uid: str,
    *containers: Json,
    name: str = "web-0",
    namespace: str = "shop",
    inits: Sequence[Json] = (),
    labels: Mapping[str, str] | None = None,
    owners: Sequence[Json] = (),
) -> Json:
    """With what the kubelet tells besides, which is not looked at."""
    made: Json = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": "4711",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": labels,
            "annotations": {"kubernetes.io/config.source": "api"},
            "ownerReferences": list(owners),
        },
        "spec": {
            "serviceAccountName": "clerk",
            "nodeName": "node-7",
            "containers": [{"name": each["name"], "image": each["image"], "env": []} for each in containers],
            "volumes": [{"name": "token", "projected": {"defaultMode": 420}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "tolerationSeconds": 300}],
        },
        "status": {"phase": "Running", "podIP": "10.1.2.3", "containerStatuses": list(containers)},
    }
    if inits:
        made["status"]["initContainerStatuses"] = list(inits)
    return made
