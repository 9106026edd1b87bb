"""The HTTP API of Docker and of Podman, as far as workload attestors ask it, with answers recorded from both.

`docker()` and `podman()` answer as the daemons do. `fault` makes a daemon answer wrongly.
"""

from __future__ import annotations

import json
import socketserver
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

DOCKER = "27.3.1"
PODMAN = "4.3.1"
IMAGE = "registry.example.org/shop/web:1.2"
IMAGE_ID = "sha256:0e49ccac9ae7ac5eafe3146dae3675a04641be67da65ca2bcb78623b23b344f5"
MANIFEST = "sha256:b98924415f956c6d13d09b3e8abfda31c7a44a4e7cf881976d0a1ccf0ce44bae"


def container_answer(
    container_id: str, *, pid: int = 0, status: str = "running", image: str = IMAGE_ID, **config: Any
) -> dict[str, Any]:
    """Of `GET /containers/{id}/json`; `config` are parts of its Config by their names, such as Labels."""
    running = status == "running"
    return {
        "Id": container_id,
        "Created": "2026-11-26T19:37:50.137514823Z",
        "Path": "/bin/sleep",
        "Args": ["600"],
        "State": {
            "Status": status,
            "Running": running,
            "Paused": False,
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": pid if running else 0,
            "ExitCode": 0,
            "Error": "",
            "StartedAt": "2026-11-26T19:37:50.170232468Z",
            "FinishedAt": "0001-01-01T00:00:00Z",
        },
        "Image": image,
        "Name": "/web",
        "RestartCount": 0,
        "HostConfig": {"NetworkMode": "none", "PidMode": "", "Privileged": False, "Ulimits": None},
        "Config": {
            "Hostname": container_id[:12],
            "User": "",
            "Tty": False,
            "Env": ["COLOR=blue", "PATH=/usr/local/bin:/usr/bin:/bin"],
            "Cmd": ["/bin/sleep", "600"],
            "Image": IMAGE,
            "Volumes": None,
            "WorkingDir": "/",
            "Entrypoint": None,
            "Labels": {"org.example.tier": "web"},
            **config,
        },
    }


def image_answer(image_id: str = IMAGE_ID, digests: list[str] | None = None) -> dict[str, Any]:
    """Of `GET /images/{name}/json`."""
    repository = IMAGE.rpartition(":")[0]
    return {
        "Id": image_id,
        "RepoTags": [IMAGE],
        "RepoDigests": [f"{repository}@{MANIFEST}"] if digests is None else digests,
        "Created": "2026-11-26T19:34:01.405441519Z",
        "Config": {"Env": None, "Cmd": None, "Labels": None},
        "Architecture": "amd64",
        "Os": "linux",
        "Size": 1987655,
    }


Fault = Callable[["Handler"], bool]
"""Answers a request in the daemon's stead; false leaves it to the daemon."""


@dataclass
class Daemon:
    """`requests` are those that came, as `GET /v1.47/containers/…`."""

    folder: Path
    api_version: str
    headers: Mapping[str, str]
    no_container: str
    no_image: str
    containers: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    images: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    requests: list[str] = field(default_factory=list[str])
    fault: Fault | None = None
    port: int = 0

    @property
    def path(self) -> str:
        return str(self.folder / "engine.sock")

    @property
    def socket(self) -> str:
        return f"unix://{self.path}"

    def run(self, container_id: str, **more: Any) -> None:
        """`more` is as of `container_answer`."""
        self.containers[container_id] = container_answer(container_id, **more)

    def answer(self, path: str) -> tuple[int, object]:
        """Status and JSON, or text."""
        _, version, kind, rest = f"{path}///".split("/", 3)
        if path == "/_ping":
            return 200, "OK"
        if not version.startswith("v"):
            return 404, {"message": "page not found"}
        if _number(version[1:]) > _number(self.api_version):
            newest = f"Maximum supported API version is {self.api_version}"
            return 400, {"message": f"client version {version[1:]} is too new. {newest}"}
        name = unquote(rest.rstrip("/").removesuffix("/json"))
        known, missing = (self.containers, self.no_container) if kind == "containers" else (self.images, self.no_image)
        if name not in known:
            return 404, {"message": missing.format(name)}
        return 200, known[name]


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    daemon: Daemon

    def do_GET(self) -> None:
        self.daemon.requests.append(f"{self.command} {self.path}")
        if self.daemon.fault is None or not self.daemon.fault(self):
            self.send(*self.daemon.answer(self.path))

    def do_HEAD(self) -> None:
        self.do_GET()

    def send(self, status: int, body: object, kind: str = "application/json") -> None:
        content = body if isinstance(body, bytes) else str(body).encode()
        if not isinstance(body, bytes | str):
            content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**self.daemon.headers, "Api-Version": self.daemon.api_version}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


def answers(status: int, body: object) -> Fault:
    """The same answer to all but pings."""

    def fault(handler: Handler) -> bool:
        if handler.command == "GET":
            handler.send(status, body)
        return handler.command == "GET"

    return fault


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False


class _TcpServer(ThreadingHTTPServer):
    block_on_close = False


@contextmanager
def docker(*, tcp: bool = False) -> Generator[Daemon, None, None]:
    """Answers as Docker 27."""
    headers = {"Server": f"Docker/{DOCKER} (linux)", "Ostype": "linux", "Docker-Experimental": "false"}
    with _listening("1.47", headers, "No such container: {}", "No such image: {}", tcp=tcp) as daemon:
        yield daemon


@contextmanager
def podman() -> Generator[Daemon, None, None]:
    """Answers as Podman 4.3."""
    headers = {"Server": f"Libpod/{PODMAN} (linux)", "Libpod-Api-Version": PODMAN, "Docker-Experimental": "true"}
    no_container = 'no container with name or ID "{}" found: no such container'
    no_image = "failed to find image {0}: docker.io/library/{0}: No such image"
    with _listening("1.41", headers, no_container, no_image, tcp=False) as daemon:
        yield daemon


@contextmanager
def _listening(
    version: str, headers: Mapping[str, str], no_container: str, no_image: str, *, tcp: bool
) -> Generator[Daemon, None, None]:
    # A path of its own: those of tests may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        daemon = Daemon(Path(folder), version, headers, no_container, no_image, images={IMAGE: image_answer()})
        handler = cast(type[Handler], type("BoundHandler", (Handler,), {"daemon": daemon}))
        server = _TcpServer(("127.0.0.1", 0), handler) if tcp else _UnixServer(daemon.path, handler)
        with server:
            daemon.port = server.socket.getsockname()[1] if tcp else 0
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            try:
                yield daemon
            finally:
                server.shutdown()
                thread.join()
