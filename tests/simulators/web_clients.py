"""A client of the web, which asks a port of loopback by a name that no resolver knows."""

from __future__ import annotations

import socket
import ssl

from cryptography import x509


def get(port: int, name: str, root: str, path: str = "/") -> tuple[x509.Certificate, bytes] | None:
    """The certificate that was shown, and the body; None while there is none that `root` (PEM) leads to."""
    context = ssl.create_default_context(cadata=root)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as sock,
            context.wrap_socket(sock, server_hostname=name) as connection,
        ):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    except OSError:
        return None
    return certificate, answer.partition(b"\r\n\r\n")[2]
