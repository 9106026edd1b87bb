"""Credentials of the kubelet's and the API server's clients, from the files where Kubernetes keeps them. All blocks."""

from __future__ import annotations

import os
import ssl

from identity.bundles import from_pem
from operations.errors import InvalidArgument

_LARGEST_FILE = 1 << 20


def read_file(path: str, what: str) -> bytes:
    """Raises InvalidArgument."""
    try:
        # A named pipe that nobody writes to must not hold the reader up.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidArgument(f"unable to load {what}: open {path}: {reason}") from error
    if len(content) > _LARGEST_FILE:
        raise InvalidArgument(f"unable to load {what}: {path} is larger than {_LARGEST_FILE} bytes")
    return content


def read_token(path: str) -> str:
    """Raises InvalidArgument."""
    try:
        token = read_file(path, "token").decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"unable to load token: {path} holds no token") from error
    if not token.isprintable():
        raise InvalidArgument(f"unable to load token: {path} holds more than a token")
    return token


def trusting(authorities: bytes, what: str, *, host_names: bool) -> ssl.SSLContext:
    """For services with certificates that CAs in PEM have issued; with `host_names`, in the service's own name.

    Each of the certificates is trusted, self-signed or not. Raises InvalidArgument.
    """
    try:
        trusted = from_pem(authorities.decode("ascii", "replace"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = host_names
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=b"".join(trusted))
    except (InvalidArgument, ssl.SSLError) as error:
        raise InvalidArgument(f"unable to parse {what}: {_reason(error)}") from error
    return context


def trusting_anyone() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def show(context: ssl.SSLContext, certificate_path: str, key_path: str) -> None:
    """Have connections show a certificate. Raises InvalidArgument."""
    read_file(certificate_path, "certificate")
    read_file(key_path, "private key")
    try:
        # With a password, or OpenSSL would ask on the terminal for one.
        context.load_cert_chain(certificate_path, key_path, password="")
    except (ssl.SSLError, OSError) as error:
        raise InvalidArgument(f"unable to load keypair: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"tls: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error)
