"""Where brokers connect: a Unix socket, a TCP address, or both, over TLS with X509-SVIDs at both ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from agent import metrics
from agent.broker.service import BrokerApi, check_call
from agent.cache import X509Cache
from agent.caller_limits import MOST_STREAMS
from agent.config.delegation import BrokerSettings
from agent.identity import AgentSvid
from agent.manager import Manager
from agent.reflection import Reflection
from agent.workload_attestation import WorkloadAttestation
from identity import x509svid
from identity.spiffeid import SpiffeId
from operations import logs
from operations.errors import ConfigurationError, Refused, SpireError
from plugins.tls_identity import client_identity
from transport.limits import SERVER_LIMITS
from transport.peer import Peer, address_text
from transport.router import Router
from transport.server import Server
from transport.tls import InProcessIdentity, TlsContext, server_context

SOCKET_MODE: Final = 0o770

LIMITS: Final = replace(SERVER_LIMITS, streams=MOST_STREAMS + 64, connections=1000)

_REFUSALS_APART: Final = 1.0

_log = logs.get("endpoints")


async def serve_broker(
    settings: BrokerSettings, manager: Manager, attestation: WorkloadAttestation, *, require_pq_kem: bool = False
) -> Server:
    """Listen; the socket's folder exists.

    Errors as of transport.server, and ConfigurationError where the agent's key cannot serve TLS.
    """
    contexts = _Contexts(manager, require_pq_kem=require_pq_kem)
    contexts()
    router = Router()
    router.before, router.after = metrics.hooks(check_call)
    BrokerApi(settings.brokers, attestation, manager.cache, manager.jwt_svids).add_to(router)
    Reflection(router).add_to(router)
    server = Server(router, limits=LIMITS, admit=_Gate(settings.brokers, manager.cache))
    try:
        if settings.socket_path is not None:
            # Its certificate tells who a broker is, in whatever container it is.
            await server.listen_unix(settings.socket_path, mode=SOCKET_MODE, strangers=True, tls=contexts)
            _log.info("Starting SPIFFE Broker Endpoint", network="unix", address=settings.socket_path)
        if settings.bind_address is not None:
            host, port = settings.bind_address
            bound = await server.listen_tcp(
                host or _everywhere(), port, contexts, settings="bind_address of experimental.broker"
            )
            _log.info("Starting SPIFFE Broker Endpoint", network="tcp", address=address_text(host, bound))
    except BaseException:
        await server.drain(0)
        raise
    return server


def _everywhere() -> str:
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - what an address without a host means


class _Contexts:
    """TLS for the next connection: by the SVID that the agent has then."""

    def __init__(self, manager: Manager, *, require_pq_kem: bool) -> None:
        self._manager = manager
        self._require_pq_kem = require_pq_kem
        self._made: tuple[AgentSvid, TlsContext] | None = None

    def __call__(self) -> TlsContext:
        svid = self._manager.svid
        if self._made is None or self._made[0] is not svid:
            identity = client_identity(svid.chain, svid.key)
            if not isinstance(identity, InProcessIdentity):
                raise ConfigurationError(
                    "experimental.broker needs an agent's key in this process, to serve TLS with: use KeyManager "
                    '"disk" or "memory", or remove the block'
                )
            self._made = svid, server_context(identity, require_pq_kem=self._require_pq_kem)
        return self._made[1]


class _Gate:
    """Lets those brokers in that are configured. Others are cut off, and the log says why, once a second."""

    def __init__(self, brokers: Collection[SpiffeId], cache: X509Cache) -> None:
        self._brokers = brokers
        self._cache = cache
        self._told_at = float("-inf")

    def __call__(self, peer: Peer) -> None:
        """Raises Refused and InvalidArgument."""
        try:
            self._check(peer)
        except SpireError as error:
            if time.monotonic() - self._told_at >= _REFUSALS_APART:
                self._told_at = time.monotonic()
                _log.warning("A caller of the SPIFFE Broker Endpoint was refused", address=peer.address, error=error)
            raise

    def _check(self, peer: Peer) -> None:
        if not peer.certificates:
            raise Refused("it shows no X509-SVID")
        trust_domain = x509svid.leaf_id(peer.certificates[0]).trust_domain
        bundle = self._cache.bundle_of(trust_domain)
        roots = {} if bundle is None else {trust_domain: [each.der for each in bundle.x509_authorities]}
        broker = x509svid.verify(peer.certificates, roots, datetime.now(UTC))
        if broker not in self._brokers:
            raise Refused(f'"{broker}" is none of the brokers of experimental.broker')
