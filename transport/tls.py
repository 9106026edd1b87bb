"""TLS for SPIFFE peers, on the OpenSSL that `cryptography` brings, over non-blocking sockets.

Neither end checks the other's certificate here: the handshake proves that the peer has its private key, and whoever
uses the connection judges the chain (a client before the first byte of a call, a server before each call). TLS 1.2 or
later, no session resumption, so that every connection shows its certificates; ALPN must be h2. OpenSSL 4 prefers
X25519MLKEM768 by itself.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key
from OpenSSL import SSL, crypto

from operations.errors import InvalidArgument, Unsupported
from transport.sockets import Link, WantRead, WantWrite

_ALPN: Final = b"h2"
_WEB_ALPN: Final = b"http/1.1"
_PQ_GROUPS: Final = frozenset({"X25519MLKEM768", "SECP256R1MLKEM768", "SECP384R1MLKEM1024"})


class TlsContext(Protocol):
    """Makes links. One context serves any number of connections; a new identity is a new context."""

    def link(self, sock: socket.socket, *, server: bool) -> Link: ...


@dataclass(frozen=True, slots=True)
class InProcessIdentity:
    """An X509-SVID whose private key this process holds: `chain` DER, leaf first; `private_key` PKCS #8 DER."""

    chain: tuple[bytes, ...]
    private_key: bytes = field(repr=False)


Sign = Callable[[bytes, str, bool], Awaitable[bytes]]
"""Signs a digest: the digest, its hash's `hashlib` name, and whether RSA pads with PSS. DER for ECDSA."""


@dataclass(frozen=True, slots=True)
class ExternalIdentity:
    """An X509-SVID whose key is elsewhere: `chain` DER, leaf first; `public_key` DER SubjectPublicKeyInfo."""

    chain: tuple[bytes, ...]
    public_key: bytes
    sign: Sign = field(repr=False)


Identity = InProcessIdentity


class OpenSslContext:
    """A TlsContext on pyOpenSSL."""

    def __init__(self, context: SSL.Context, *, require_pq_kem: bool, web: bool = False) -> None:
        self._context = context
        self._require_pq_kem = require_pq_kem
        self._web = web

    def link(self, sock: socket.socket, *, server: bool) -> Link:
        connection = SSL.Connection(self._context, sock)
        return OpenSslLink(connection, server=server, require_pq_kem=self._require_pq_kem, web=self._web)

    def detached(self, host: str) -> tuple[SSL.Connection, OpenSslLink]:
        """A client's link without a socket, whose bytes the caller moves: by `bio_read` and `bio_write`.

        `host`, a name, is what the server is told that it is asked for; empty for none.
        """
        connection = SSL.Connection(self._context, None)
        if host:
            connection.set_tlsext_host_name(host.encode())
        return connection, OpenSslLink(connection, server=False, require_pq_kem=self._require_pq_kem, web=self._web)


class OpenSslLink:
    """A Link over TLS."""

    __slots__ = ("_connection", "_require_pq_kem", "_server", "_web", "peer_certificates")

    def __init__(self, connection: SSL.Connection, *, server: bool, require_pq_kem: bool, web: bool = False) -> None:
        self._connection = connection
        self._server = server
        self._web = web
        self._require_pq_kem = require_pq_kem
        self.peer_certificates: tuple[bytes, ...] = ()
        if server:
            connection.set_accept_state()
        else:
            connection.set_connect_state()

    @property
    def group(self) -> str | None:
        """The key exchange that was agreed on, for example X25519MLKEM768."""
        return self._connection.get_group_name()

    def handshake(self) -> None:
        connection = self._connection
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            raise WantRead from None
        except SSL.WantWriteError:
            raise WantWrite from None
        except SSL.Error as error:
            raise _as_os_error(error) from error
        self.peer_certificates = self._chain()
        if not self._web and connection.get_alpn_proto_negotiated() != _ALPN:
            raise ConnectionError("the peer does not offer HTTP/2 by ALPN")
        if self._require_pq_kem and self.group not in _PQ_GROUPS:
            raise ConnectionError(f"the peer agreed to {self.group}, which is no post-quantum key exchange")
        if (
            self._server
            and not self._web
            and not self.peer_certificates
            and connection.get_protocol_version_name() != "TLSv1.3"
        ):
            # SPIRE asks for TLS 1.3 where it cannot know the caller yet.
            raise ConnectionError("a client without a certificate needs TLS 1.3")

    def receive(self, size: int) -> bytes:
        try:
            return self._connection.recv(size)
        except SSL.WantReadError:
            raise WantRead from None
        except SSL.WantWriteError:
            raise WantWrite from None
        except SSL.ZeroReturnError:
            return b""
        except SSL.Error as error:
            raise _as_os_error(error) from error

    def buffered(self) -> bool:
        return self._connection.pending() > 0

    def send(self, data: memoryview) -> int:
        try:
            return self._connection.send(data)
        except SSL.WantReadError:
            raise WantRead from None
        except SSL.WantWriteError:
            raise WantWrite from None
        except SSL.Error as error:
            raise _as_os_error(error) from error

    def shutdown(self) -> None:
        try:
            self._connection.shutdown()
        except SSL.Error:
            return  # the peer is gone, or the handshake never ended

    def _chain(self) -> tuple[bytes, ...]:
        leaf = self._connection.get_peer_certificate(as_cryptography=True)
        if leaf is None:
            return ()
        first = leaf.public_bytes(Encoding.DER)
        # OpenSSL leaves the leaf out of the chain on the server's side (SSL_get_peer_cert_chain(3)).
        chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        rest = [certificate.public_bytes(Encoding.DER) for certificate in chain]
        return tuple(rest) if rest[:1] == [first] else (first, *rest)


def server_context(identity: Identity, *, require_pq_kem: bool = False) -> TlsContext:
    """For a server: asks for a client certificate and lets clients in that have none.

    Raises InvalidArgument for an identity that cannot be used.
    """
    context = openssl_context(identity, require_pq_kem=require_pq_kem)
    context.set_alpn_select_callback(lambda _, offered: _ALPN if _ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS)
    return OpenSslContext(context, require_pq_kem=require_pq_kem)


def web_context(
    identity: Identity,
    *,
    ask_client: bool = False,
    client_authorities: Sequence[bytes] = (),
    require_pq_kem: bool = False,
) -> TlsContext:
    """For a server of HTTP/1.1, whose clients need no ALPN.

    Clients are asked for a certificate with `ask_client`, and let in as by `server_context`; with
    `client_authorities`, DER, they need one that those issued for clients. Raises InvalidArgument for an identity or
    authorities that cannot be used.
    """
    context = openssl_context(identity, require_pq_kem=require_pq_kem)
    context.set_alpn_select_callback(
        lambda _, offered: _WEB_ALPN if _WEB_ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS
    )
    if client_authorities:
        _require_client(context, client_authorities)
    elif not ask_client:
        context.set_verify(SSL.VERIFY_NONE)
    return OpenSslContext(context, require_pq_kem=require_pq_kem, web=True)


def _require_client(context: SSL.Context, authorities: Sequence[bytes]) -> None:
    store = context.get_cert_store()
    if store is None:  # pyOpenSSL's stub allows for it
        raise InvalidArgument("OpenSSL has no store for client certificates' authorities")
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)  # each of them is trusted, self-signed or not
    try:
        for authority in authorities:
            certificate = x509.load_der_x509_certificate(authority)
            store.add_cert(crypto.X509.from_cryptography(certificate))
            context.add_client_ca(certificate)
    except (ValueError, crypto.Error) as error:
        raise InvalidArgument(f"the clients' authorities cannot be read: {error}") from error
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)


def client_context(identity: Identity | ExternalIdentity | None, *, require_pq_kem: bool = False) -> TlsContext:
    """For a client; None shows no certificate.

    Raises InvalidArgument for an identity that cannot be used, Unsupported for an external one that is to agree on a
    post-quantum key exchange.
    """
    if isinstance(identity, ExternalIdentity):
        # Imported where it is needed: GnuTLS is not loaded for keys of this process.
        from transport.external_key import ExternalKeyContext

        if require_pq_kem:
            raise Unsupported("GnuTLS, which serves keys outside this process, has no post-quantum key exchange")
        return ExternalKeyContext(identity)
    context = openssl_context(identity, require_pq_kem=require_pq_kem)
    context.set_alpn_protos([_ALPN])
    return OpenSslContext(context, require_pq_kem=require_pq_kem)


def web_client_context(*, require_pq_kem: bool = False) -> OpenSslContext:
    """For a client of HTTP/1.1 that shows no certificate."""
    context = openssl_context(None, require_pq_kem=require_pq_kem)
    context.set_alpn_protos([_WEB_ALPN])
    return OpenSslContext(context, require_pq_kem=require_pq_kem, web=True)


def openssl_context(identity: Identity | None, *, require_pq_kem: bool) -> SSL.Context:
    """What all contexts here have in common, for those that are made elsewhere. Raises InvalidArgument."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION if require_pq_kem else SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_PEER, _leave_judging_to_the_caller)
    if identity is not None:
        try:
            _use(context, identity)
        except (SSL.Error, ValueError, TypeError) as error:
            raise InvalidArgument(f"the certificate and key cannot be used for TLS: {error}") from error
    return context


def _use(context: SSL.Context, identity: InProcessIdentity) -> None:
    if not identity.chain:
        raise ValueError("there is no certificate")
    leaf, *rest = (x509.load_der_x509_certificate(each) for each in identity.chain)
    key = load_der_private_key(identity.private_key, password=None)
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise TypeError(f"a key of type {type(key).__name__} is not for X509-SVIDs")
    context.use_certificate(leaf)
    for certificate in rest:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(key)
    context.check_privatekey()


def _leave_judging_to_the_caller(*_: object) -> bool:
    return True


def _as_os_error(error: SSL.Error) -> OSError:
    """One readable line of OpenSSL's error stack, or the system call's error."""
    if isinstance(error, SSL.SysCallError):
        number = error.args[0] if isinstance(error.args[0], int) and error.args[0] > 0 else errno.ECONNRESET
        return ConnectionError(number, os.strerror(number).lower())
    stack: list[tuple[str, str, str]] = error.args[0] if error.args else []  # (library, function, reason)
    reasons = "; ".join(reason for _, _, reason in stack)
    return ConnectionError(f"tls: {reasons or 'unknown error'}")
