"""Which certificate a client sees: by the name that it asks for, and by whether it wants a proof or a server.

pyOpenSSL has no way to say no to a name, so a connection begins with a context that has no certificate: it ends with an
alert unless the name is ours. ALPN is settled after that and before a certificate is chosen, where a validator's
connection is given the one of its challenge.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key
from OpenSSL import SSL

from transport.acme import challenge
from transport.acme.settings import normal
from transport.sockets import Link
from transport.tls import InProcessIdentity, OpenSslLink, openssl_context

_WEB = b"http/1.1"


class AcmeContext:
    """A TlsContext: `shown` for clients of `name`, `proof` for the validators of a challenge that is pending."""

    def __init__(
        self, name: str, shown: InProcessIdentity | None, proof: InProcessIdentity | None, *, require_pq_kem: bool
    ) -> None:
        self._name = name
        self._require_pq_kem = require_pq_kem
        self._shown = None if shown is None else self._context(shown)
        self._proof = None if proof is None else self._context(proof)
        self._proven_by = proof
        self._first = self._context(None)
        self._first.set_tlsext_servername_callback(self._named)

    def link(self, sock: socket.socket, *, server: bool) -> Link:
        connection = SSL.Connection(self._first, sock)
        return _AcmeLink(connection, self._proof, server=server, require_pq_kem=self._require_pq_kem)

    def _context(self, identity: InProcessIdentity | None) -> SSL.Context:
        context = openssl_context(identity, require_pq_kem=self._require_pq_kem)
        context.set_verify(SSL.VERIFY_NONE)
        context.set_alpn_select_callback(
            lambda connection, offered: self._chosen(connection, offered) or SSL.NO_OVERLAPPING_PROTOCOLS
        )
        return context

    def _named(self, connection: SSL.Connection) -> None:
        # TLS 1.2 wants a certificate before ALPN: without one to show it is the proof, and the link cuts others off.
        context = self._shown or self._proof
        if context is not None and self._is_ours(connection):
            connection.set_context(context)

    def _chosen(self, connection: SSL.Connection, offered: Sequence[bytes]) -> bytes | None:
        """The protocol, None for whatever there is without one."""
        if challenge.ALPN in offered:
            # A validator offers nothing else (RFC 8737, 3).
            if self._proven_by is None or len(offered) != 1 or not self._is_ours(connection):
                raise ConnectionError("there is no challenge to answer")  # an alert for the peer
            if connection.get_context() is not self._proof:
                _replace(connection, self._proven_by)
            return challenge.ALPN
        return _WEB if _WEB in offered else None

    def _is_ours(self, connection: SSL.Connection) -> bool:
        asked = connection.get_servername()
        return asked is not None and normal(asked.decode("latin-1")) == self._name


def _replace(connection: SSL.Connection, identity: InProcessIdentity) -> None:
    """In place, both being P-256: TLS 1.2 has chosen the certificate by now, and a new context would free it."""
    key = load_der_private_key(identity.private_key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("a challenge is answered with an EC key")
    connection.use_certificate(x509.load_der_x509_certificate(identity.chain[0]))
    connection.use_privatekey(key)


class _AcmeLink(OpenSslLink):
    """A connection for a challenge ends with the handshake: nothing is said over it (RFC 8737, 3)."""

    __slots__ = ("_proof",)

    def __init__(
        self, connection: SSL.Connection, proof: SSL.Context | None, *, server: bool, require_pq_kem: bool
    ) -> None:
        super().__init__(connection, server=server, require_pq_kem=require_pq_kem, web=True)
        self._proof = proof

    def handshake(self) -> None:
        super().handshake()
        alpn = self._connection.get_alpn_proto_negotiated()
        if alpn == challenge.ALPN or (self._proof is not None and self._connection.get_context() is self._proof):
            raise ConnectionError("it was for an ACME challenge")
