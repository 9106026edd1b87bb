"""go-plugin's AutoMTLS: the host's very certificate is let in, and no other."""

from __future__ import annotations

import base64
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from generated.grpc.health.v1 import health_pb2
from keystores.served import KeyManagerPlugin
from operations.errors import InvalidArgument
from plugins.served.mutual_tls import MutualTls, own_identity
from plugins.served.plugin import Service
from plugins.served.services import around
from tests.simulators.served import Store
from transport import dial
from transport.client import Channel
from transport.limits import CLIENT_LIMITS
from transport.router import Router
from transport.server import Server
from transport.sockets import Link
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity, client_context


class Dialer:
    scheme, authority = b"https", b"localhost"

    def __init__(self, path: str, identity: InProcessIdentity | None) -> None:
        self._path = path
        self._identity = identity

    async def dial(self) -> tuple[socket.socket, Link]:
        sock, _ = await dial.UnixDialer(self._path).dial()
        return sock, client_context(self._identity).link(sock, server=False)


HOST = own_identity()


def pem(identity: InProcessIdentity) -> str:
    certificate = x509.load_der_x509_certificate(identity.chain[0])
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[str]:
    tls = MutualTls(pem(HOST))
    router = Router()
    router.before = tls.check
    services: list[Service] = [*around(KeyManagerPlugin(Store()), lambda: None)]
    for service, handlers in services:
        router.add(service, handlers)
    server = Server(router)
    await server.listen_unix(str(tmp_path / "s"), mode=0o600, tls=lambda: tls.context)
    yield str(tmp_path / "s")
    await server.drain(0)


async def check(path: str, identity: InProcessIdentity | None) -> None:
    channel = Channel(Dialer(path, identity), None, CLIENT_LIMITS)
    try:
        await channel.unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest(service="plugin"),
            health_pb2.HealthCheckResponse,
            timeout=30,
        )
    finally:
        await channel.close()


async def test_the_host_is_let_in(path: str) -> None:
    await check(path, HOST)


@pytest.mark.parametrize("identity", [None, own_identity()], ids=["nobody", "another"])
async def test_others_are_not(path: str, identity: InProcessIdentity | None) -> None:
    with pytest.raises(RpcError) as error:
        await check(path, identity)
    assert error.value.code is Code.UNAUTHENTICATED


def test_the_certificate_is_for_the_name_that_hosts_look_for() -> None:
    encoded = MutualTls(pem(HOST)).certificate
    certificate = x509.load_der_x509_certificate(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="PLUGIN_CLIENT_CERT is no certificate"):
        MutualTls("nonsense")
