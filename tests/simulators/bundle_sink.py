"""A web server that bundles are sent to, over TLS, in a thread: it keeps what came, and answers as a test has it."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self, cast

from tests.simulators.web_pki import Files

PATIENCE = 30.0


@dataclass(frozen=True)
class Sent:
    """`client` are the URIs and names in the client's certificate."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    client: tuple[str, ...]


@dataclass
class BundleSink:
    """`status` and `headers` are its answer; `endless` gives a body without end, `silent` none at all.

    With `clients` a certificate is asked for, and judged by these CAs.
    """

    files: Files
    clients: Path | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    endless: bool = False
    silent: bool = False
    sent: list[Sent] = field(default_factory=list[Sent])
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.files.certificate, self.files.key)
        if self.clients is not None:
            self.trust(self.clients)
            self.context.verify_mode = ssl.CERT_REQUIRED
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def trust(self, clients: Path) -> None:
        """From now on clients below these CAs are taken, too."""
        self.context.load_verify_locations(clients)

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, sink: BundleSink) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sink = sink

    def finish_request(self, request: object, client_address: object) -> None:
        """The handshake belongs to a connection's own thread."""
        plain = cast("ssl.SSLSocket", request)
        plain.settimeout(PATIENCE)
        with self.sink.context.wrap_socket(plain, server_side=True) as secured:
            _Handler(secured, client_address, self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self._take()

    def do_POST(self) -> None:
        self._take()

    def _take(self) -> None:
        sink = cast("_Server", self.server).sink
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        shown = cast("ssl.SSLSocket", self.connection).getpeercert() or {}
        names = cast("tuple[tuple[str, str], ...]", shown.get("subjectAltName", ()))
        headers = dict(self.headers.items())
        sink.sent.append(Sent(self.command, self.path, headers, body, tuple(value for _, value in names)))
        if sink.silent:
            sink.over.wait(PATIENCE)
            return
        self.send_response(sink.status)
        for name, value in sink.headers.items():
            self.send_header(name, value)
        if not sink.endless:
            self.send_header("Content-Length", "0")
        self.end_headers()
        while sink.endless and not sink.over.is_set():
            self.wfile.write(bytes(65536))

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""
