"""A container registry of our own, over HTTP or HTTPS: manifests, blobs, log-ins, and whatever bad it is told to do."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.simulators.sigstore import Attachment

Headers = dict[str, str]

_EMPTY = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"


@dataclass
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)


@dataclass
class Answer:
    """`body` in parts is sent as it comes, without a length."""

    status: int = 200
    body: bytes | Iterable[bytes] = b""
    headers: Headers = field(default_factory=dict)


Route = Callable[[Asked], Answer | None]


class WebServer:
    """Answers by the first route that has an answer. Threads, on 127.0.0.1; TLS with a certificate and its key."""

    def __init__(self, *routes: Route, tls: tuple[Path, Path] | None = None) -> None:
        self.routes: list[Route] = list(routes)
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.scheme = "https" if tls is not None else "http"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        return next((answer for route in self.routes if (answer := route(asked)) is not None), Answer(404))

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are no news."""


def _handler(server: WebServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = server.answer(Asked(self.command, self.path, dict(self.headers.items()), body))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if isinstance(answer.body, bytes):
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
                return
            self.close_connection = True
            self.end_headers()
            for part in answer.body:
                self.wfile.write(part)

        do_GET = do_POST = _answer  # noqa: N815 - the library's names

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    return Handler


class Registry:
    """One repository, `app`. Its routes go into a WebServer."""

    def __init__(self, name: str = "app") -> None:
        self.name = name
        self.manifests: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}

    def push_image(self, content: str = "image") -> str:
        """Its digest."""
        manifest = json.dumps({"schemaVersion": 2, "config": {}, "layers": [], "note": content}).encode()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        self.manifests[digest] = self.manifests["latest"] = manifest
        return digest

    def attach(self, image_digest: str, *attachments: Attachment, suffix: str = "sig") -> None:
        """As cosign does: a tag, and a layer for each."""
        layers = [self._layer(attachment) for attachment in attachments]
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": _EMPTY},
            "layers": layers,
        }
        self.manifests[f"{image_digest.replace(':', '-')}.{suffix}"] = json.dumps(manifest).encode()

    def _layer(self, attachment: Attachment) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(attachment.payload).hexdigest()}"
        self.blobs[digest] = attachment.payload
        return {
            "mediaType": attachment.media_type,
            "size": len(attachment.payload),
            "digest": digest,
            "annotations": attachment.annotations,
        }

    def route(self, asked: Asked) -> Answer | None:
        path = urlsplit(asked.path).path
        if path == "/v2/":
            return Answer()
        base = f"/v2/{self.name}/"
        if not path.startswith(base):
            return None
        kind, _, name = path.removeprefix(base).partition("/")
        found = {"manifests": self.manifests, "blobs": self.blobs}[kind].get(name)
        return None if found is None else Answer(body=found)


class BearerLogin:
    """Wants a token, which it gives out at /token, perhaps for a user's name and password only."""

    def __init__(self, realm: Callable[[], str], *, user: tuple[str, str] | None = None) -> None:
        self._realm = realm
        self._basic = None if user is None else f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"
        self.token = "good"

    def route(self, asked: Asked) -> Answer | None:
        if urlsplit(asked.path).path == "/token":
            if self._basic is not None and asked.headers.get("Authorization") != self._basic:
                return Answer(401)
            return Answer(body=json.dumps({"token": self.token}).encode())
        if asked.path.startswith("/v2/") and asked.headers.get("Authorization") != f"Bearer {self.token}":
            challenge = f'Bearer realm="{self._realm()}/token",service="registry",scope="repository:app:pull"'
            return Answer(401, headers={"WWW-Authenticate": challenge})
        return None
