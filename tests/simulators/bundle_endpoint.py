"""A bundle endpoint of another trust domain, in threads: it answers as a test has it, well or badly."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import ssl
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from identity.bundles import Bundle, X509Authority, to_pem
from identity.spiffeid import SpiffeId, TrustDomain
from server.config.federation import Federated
from tests.simulators import pki
from tests.simulators.callers import ForeignDomain

ENDPOINT = "/spire/server"
PATIENCE = 60.0


@dataclass
class Answer:
    """`endless` is sent again and again behind the body, `hold` keeps the connection open behind it.

    With `after` nothing is sent before that has happened.
    """

    body: bytes = b""
    status: str = "200 OK"
    headers: Sequence[str] = ()
    length: int | None = None
    endless: bytes = b""
    hold: bool = False
    after: threading.Event | None = None

    def head(self) -> bytes:
        length = len(self.body) if self.length is None else self.length
        lines = [f"HTTP/1.1 {self.status}", *self.headers]
        if not self.endless:
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class Endpoint:
    """`answers` are by path; `asked` has the paths that were asked for."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict[str, Answer])
    asked: list[str] = field(default_factory=list[str])
    open: int = 0
    most: int = 0
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/bundle"

    def give(self, bundle: Bundle, path: str = "/bundle") -> None:
        self.answers[path] = Answer(bundle.to_jwks().encode())

    def serve(self, connection: ssl.SSLSocket) -> None:
        connection.do_handshake()
        request = b""
        while b"\r\n\r\n" not in request:
            part = connection.recv(4096)
            if not part:
                return
            request += part
        path = request.split()[1].decode()
        self.asked.append(path)
        answer = self.answers.get(path, Answer(b"no such page", "404 Not Found"))
        if answer.after is not None:
            answer.after.wait(PATIENCE)
        connection.sendall(answer.head() + answer.body)
        while answer.endless:
            connection.sendall(answer.endless)
        if answer.hold:
            self.closing.wait(PATIENCE)


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncGenerator[Endpoint]:
    endpoint, lock = Endpoint(), threading.Lock()

    class Handler(socketserver.BaseRequestHandler):
        request: socket.socket

        def handle(self) -> None:
            with lock:
                endpoint.open += 1
                endpoint.most = max(endpoint.most, endpoint.open)
            try:
                with context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False) as connection:
                    endpoint.serve(connection)
            except OSError:
                pass  # the client has gone away
            finally:
                with lock:
                    endpoint.open -= 1

    with _Server(("127.0.0.1", 0), Handler) as server:
        endpoint.port = int(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield endpoint
        finally:
            endpoint.closing.set()
            await asyncio.to_thread(server.shutdown)
            thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


def bundle_of(domain: ForeignDomain, sequence: int = 0, hint: int = 0) -> Bundle:
    return Bundle(TrustDomain(domain.name), (X509Authority(domain.authority.der),), (), hint, sequence)


def by_svid(domain: ForeignDomain, url: str, path: str = ENDPOINT) -> Federated:
    trust_domain = TrustDomain(domain.name)
    return Federated(trust_domain, url, SpiffeId(trust_domain, path))


def svid_context(
    folder: Path, domain: ForeignDomain, path: str = ENDPOINT, *, age: float = 0.5, lifetime: float = 0.5
) -> ssl.SSLContext:
    """A server that shows an X509-SVID of that path, good from `age` hours ago until `lifetime` hours from now."""
    now = datetime.now(UTC)
    content = pki.Certificate(
        uris=(f"spiffe://{domain.name}{path}",), not_before=now - age * pki.HOUR, not_after=now + lifetime * pki.HOUR
    )
    key = pki.ec_key()
    return context_of(folder, [domain.authority.sign(content, key)], key)


def context_of(folder: Path, chain: Sequence[bytes], key: pki.PrivateKey) -> ssl.SSLContext:
    number = x509.load_der_x509_certificate(chain[0]).serial_number
    certificate, private = folder / f"{number:x}.pem", folder / f"{number:x}.key"
    certificate.write_text(to_pem(chain))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return context
