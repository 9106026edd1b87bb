"""What server and agent serve over HTTP beside their APIs: their health, and their metrics."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from identity import x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from operations import health, logs, sections
from operations.errors import ConfigurationError, InvalidArgument, Refused, SpireError
from operations.http import Handler
from transport.http import Authorize, HttpServer, Times
from transport.peer import Peer
from transport.tls import InProcessIdentity, TlsContext, web_context

_LOOPBACK: Final = "localhost"

_log = logs.get("telemetry")
_health_log = logs.get("health")


@dataclass(frozen=True, slots=True)
class SvidSource:
    """The program's own SVID, and whom it trusts.

    `identity` gives the SVID in use, the same object until it is renewed, and raises SpireError while there is none.
    `authorities` gives a trust domain's X.509 authorities, DER, and raises SpireError where there are none.
    """

    identity: Callable[[], InProcessIdentity]
    authorities: Callable[[TrustDomain], Awaitable[Sequence[bytes]]]


async def serve_health(config: sections.HealthChecks, checker: health.Checker) -> HttpServer:
    """Answer for the program's health where it is configured. An address that is not to be had is only logged."""
    server = HttpServer(checker.handler(config.live_path, config.ready_path))
    host = config.bind_address.strip("[]") or health.DEFAULT_HOST
    port = int(config.bind_port or health.DEFAULT_PORT)
    try:
        await server.listen_tcp(host, port, "bind_address and bind_port of health_checks")
    except SpireError as error:
        _health_log.warning("Error serving health checks", error=error)
    else:
        _health_log.info("Serving health checks", address=f"{host}:{port}")
    return server


async def serve_metrics(
    config: sections.Prometheus, handler: Handler, svids: SvidSource, *, require_pq_kem: bool = False
) -> HttpServer:
    """Answer scrapes. An address that is not to be had is only logged.

    Raises ConfigurationError for certificates that cannot be used.
    """
    host = config.host or _LOOPBACK
    if not _is_loopback(host):
        _log.warning("Metrics can be read over the network: see that only their collector reaches this address")
    tls: Callable[[], TlsContext] | None = None
    authorize: Authorize | None = None
    if config.tls is not None:
        tls = _contexts(config.tls, svids, require_pq_kem=require_pq_kem)
        if config.tls.authorized_spiffe_ids:
            authorize = _only(_spiffe_ids(config.tls.authorized_spiffe_ids), svids)
    server = HttpServer(handler, authorize=authorize)
    _log.info("Starting prometheus exporter", host=host, port=config.port)
    try:
        await server.listen_tcp(host.strip("[]"), config.port, "host and port of Prometheus", tls=tls)
    except SpireError as error:
        _log.warning("Prometheus listener stopped unexpectedly", error=error)
    return server


async def serve_profiles(handler: Handler, port: int, longest: float) -> HttpServer:
    """Give profiles to whoever is on this machine; each may take `longest` seconds."""
    server = HttpServer(handler, times=Times(answer=longest + 60))
    try:
        await server.listen_tcp("127.0.0.1", port, "profiling_port")
    except SpireError as error:
        _log.warning("Unable to serve profiling server", error=error)
    else:
        _log.info("Serving profiles", address=f"http://127.0.0.1:{port}/debug/pprof/")
    return server


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == _LOOPBACK


def _contexts(config: sections.Tls, svids: SvidSource, *, require_pq_kem: bool) -> Callable[[], TlsContext]:
    """Gives the context for the next connection."""
    authorities = _certificates(config.client_ca_file) if config.client_ca_file else ()

    def make(identity: InProcessIdentity) -> TlsContext:
        return web_context(
            identity,
            ask_client=bool(config.authorized_spiffe_ids),
            client_authorities=authorities,
            require_pq_kem=require_pq_kem,
        )

    if not config.use_spire_svid:
        identity = _identity_of_files(config.cert_file, config.key_file)
        try:
            fixed = make(identity)
        except InvalidArgument as error:
            raise ConfigurationError(f"Prometheus.tls: {config.cert_file}, {config.key_file}: {error}") from error
        return lambda: fixed
    known: list[tuple[InProcessIdentity, TlsContext]] = []

    def current() -> TlsContext:
        identity = svids.identity()
        if not known or known[0][0] is not identity:
            known[:] = [(identity, make(identity))]
        return known[0][1]

    return current


def _only(allowed: frozenset[SpiffeId], svids: SvidSource) -> Authorize:
    """Lets those in whose X509-SVID verifies and is one of these."""

    async def authorize(peer: Peer) -> None:
        if not peer.certificates:
            raise Refused("it shows no X509-SVID")
        try:
            trust_domain = x509svid.leaf_id(peer.certificates[0]).trust_domain
            roots = {trust_domain: await svids.authorities(trust_domain)}
            found = x509svid.verify(peer.certificates, roots, datetime.now(UTC))
        except SpireError as error:
            raise Refused(str(error)) from error
        if found not in allowed:
            raise Refused(f'"{found}" is none of authorized_spiffe_ids')

    return authorize


def _spiffe_ids(texts: Sequence[str]) -> frozenset[SpiffeId]:
    found: set[SpiffeId] = set()
    for text in texts:
        try:
            found.add(SpiffeId.parse(text))
        except InvalidArgument as error:
            raise ConfigurationError(f'invalid authorized SPIFFE ID "{text}": {error}') from error
    return frozenset(found)


def _identity_of_files(cert_file: str, key_file: str) -> InProcessIdentity:
    chain = _certificates(cert_file)
    try:
        key = load_pem_private_key(_read(key_file), password=None)
        private_key = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"Prometheus.tls: key_file {key_file} holds no private key that can be used"
        ) from error
    return InProcessIdentity(tuple(chain), private_key)


def _certificates(path: str) -> list[bytes]:
    try:
        return [each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(_read(path))]
    except ValueError as error:
        raise ConfigurationError(f"Prometheus.tls: {path} holds no certificates in PEM") from error


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"Prometheus.tls: {path} cannot be read: {error.strerror}") from error
