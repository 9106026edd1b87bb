"""TLS for a client whose private key is not in this process: GnuTLS, with signatures from elsewhere.

pyOpenSSL takes only keys that it can hold, and cryptography's OpenSSL offers no way in (docs/adr/0003). GnuTLS asks a
callback for the signature of the handshake, and waits for it; so the handshake has a thread of its own, in which the
event loop's answer is awaited. Everything after the handshake happens on the loop, as with OpenSSL. It is TLS 1.3, or
1.2, without resumption; ALPN must be h2. As in transport.tls nothing of the peer is judged here but that it has its
key: that is for whoever uses the connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from operations.errors import InvalidArgument, SpireError
from transport._gnutls import ffi, lib
from transport.sockets import WantRead, WantTime, WantWrite
from transport.tls import ExternalIdentity, Sign

if TYPE_CHECKING:
    from transport._gnutls import Pointer

SIGN_PATIENCE: Final = 25.0
"""Seconds for a signature: a key manager's own deadline is shorter."""
_POLL_MILLISECONDS: Final = 1000
_SHUT_WRITE: Final = 1


@dataclass(frozen=True, slots=True)
class _Algorithm:
    hash: str
    rsa: bool = False
    pss: bool = False


_ALGORITHMS: Final = {
    lib.GNUTLS_SIGN_RSA_SHA256: _Algorithm("sha256", rsa=True),
    lib.GNUTLS_SIGN_RSA_SHA384: _Algorithm("sha384", rsa=True),
    lib.GNUTLS_SIGN_RSA_SHA512: _Algorithm("sha512", rsa=True),
    lib.GNUTLS_SIGN_RSA_PSS_RSAE_SHA256: _Algorithm("sha256", rsa=True, pss=True),
    lib.GNUTLS_SIGN_RSA_PSS_RSAE_SHA384: _Algorithm("sha384", rsa=True, pss=True),
    lib.GNUTLS_SIGN_RSA_PSS_RSAE_SHA512: _Algorithm("sha512", rsa=True, pss=True),
    lib.GNUTLS_SIGN_ECDSA_SHA256: _Algorithm("sha256"),
    lib.GNUTLS_SIGN_ECDSA_SHA384: _Algorithm("sha384"),
    lib.GNUTLS_SIGN_ECDSA_SHA512: _Algorithm("sha512"),
    lib.GNUTLS_SIGN_ECDSA_SECP256R1_SHA256: _Algorithm("sha256"),
    lib.GNUTLS_SIGN_ECDSA_SECP384R1_SHA384: _Algorithm("sha384"),
}


class ExternalKeyContext:
    """A TlsContext for clients. Raises InvalidArgument for an identity whose certificate and key do not match."""

    def __init__(self, identity: ExternalIdentity) -> None:
        if not identity.chain:
            raise InvalidArgument("the certificate and key cannot be used for TLS: there is no certificate")
        try:
            leaf = x509.load_der_x509_certificate(identity.chain[0]).public_key()
            key = load_der_public_key(identity.public_key)
        except ValueError as error:
            raise InvalidArgument(f"the certificate and key cannot be used for TLS: {error}") from error
        if leaf.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != identity.public_key:
            raise InvalidArgument("the certificate and key cannot be used for TLS: the certificate is for another key")
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise InvalidArgument("the certificate and key cannot be used for TLS: the key is neither EC nor RSA")
        self._identity = identity
        self._rsa = isinstance(key, rsa.RSAPublicKey)
        self._bits = key.key_size

    def link(self, sock: socket.socket, *, server: bool) -> ExternalKeyLink:
        if server:
            raise InvalidArgument("a server needs a key that is in this process")
        return ExternalKeyLink(sock, _Credentials(self._identity, rsa_key=self._rsa, bits=self._bits))


class _Credentials:
    """The chain and the way to the key, for one handshake. Callbacks find the signer by its handle."""

    def __init__(self, identity: ExternalIdentity, *, rsa_key: bool, bits: int) -> None:
        self.signer = _Signer(identity.sign, rsa_key=rsa_key)
        self._handle = ffi.new_handle(self.signer)
        self._key = ffi.new("tls_key *", (self._handle, int(rsa_key), bits))
        buffers = [ffi.from_buffer(certificate) for certificate in identity.chain]
        chain = ffi.new(
            "gnutls_datum_t[]",
            [(buffer, len(certificate)) for buffer, certificate in zip(buffers, identity.chain, strict=True)],
        )
        made = ffi.new("gnutls_certificate_credentials_t *")
        code = lib.tls_credentials(made, chain, len(identity.chain), self._key)
        if code < 0:
            raise InvalidArgument(f"the certificate and key cannot be used for TLS: {_text(code)}")
        self.pointer = ffi.gc(made[0], lib.gnutls_certificate_free_credentials)


class _Signer:
    """Takes GnuTLS's question to the event loop, and waits for the answer in the handshake's thread.

    `cancel` runs on the loop, and so does `_ask`: whichever is second sees the first.
    """

    def __init__(self, sign: Sign, *, rsa_key: bool) -> None:
        self._sign = sign
        self._rsa = rsa_key
        self._asked: Future[bytes] | None = None
        self._cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.error: Exception | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def knows(self, number: int) -> bool:
        algorithm = _ALGORITHMS.get(number)
        return algorithm is not None and algorithm.rsa is self._rsa

    def sign(self, number: int, data: bytes, *, hashed: bool) -> bytes:
        """Raises whatever the key raises, KeyError for an algorithm that was not offered."""
        if self._loop is None or self._cancelled:
            raise ConnectionError("the connection is closed")
        algorithm = _ALGORITHMS[number]
        digest = data if hashed else hashlib.new(algorithm.hash, data).digest()
        self._asked = asyncio.run_coroutine_threadsafe(self._ask(digest, algorithm), self._loop)
        return self._asked.result(SIGN_PATIENCE)

    async def _ask(self, digest: bytes, algorithm: _Algorithm) -> bytes:
        if self._cancelled:
            raise ConnectionError("the connection is closed")
        return await self._sign(digest, algorithm.hash, algorithm.pss)

    def cancel(self) -> None:
        self._cancelled = True
        if self._asked is not None:
            self._asked.cancel()


@ffi.def_extern(error=lib.GNUTLS_E_PK_SIGN_FAILED)
def tls_sign(handle: Pointer, algorithm: int, data: Pointer, length: int, hashed: int, signature: Pointer) -> int:
    """GnuTLS asks for a signature. Whatever goes wrong is an error code: the handshake fails."""
    signer: _Signer = ffi.from_handle(handle)
    try:
        made = signer.sign(algorithm, ffi.buffer(data, length)[:], hashed=bool(hashed))
    except Exception as error:  # noqa: BLE001 - kept for whoever waits for the handshake
        signer.error = error
        return lib.GNUTLS_E_PK_SIGN_FAILED
    return lib.tls_set(signature, made, len(made))


@ffi.def_extern(error=0)
def tls_knows(handle: Pointer, algorithm: int) -> int:
    signer: _Signer = ffi.from_handle(handle)
    return int(signer.knows(algorithm))


class ExternalKeyLink:
    """A Link over GnuTLS.

    It has its own duplicate of the socket's descriptor: the stream may close its socket while the handshake's thread
    is still at work. The session is freed by whoever is last, the thread or `shutdown`.
    """

    def __init__(self, sock: socket.socket, credentials: _Credentials) -> None:
        self.peer_certificates: tuple[bytes, ...] = ()
        self._socket = sock
        self._credentials = credentials
        self._lock = threading.Lock()
        self._shaking = self._closed = False
        self._done: asyncio.Future[None] | None = None
        self._unsent = 0
        self._descriptor = os.dup(sock.fileno())
        made = ffi.new("gnutls_session_t *")
        code = lib.tls_client(made, credentials.pointer, self._descriptor)
        if code < 0:
            os.close(self._descriptor)
            raise InvalidArgument(f"GnuTLS makes no session: {_text(code)}")
        self._session: Pointer | None = made[0]

    @property
    def version(self) -> str:
        """The protocol agreed on, for example TLS1.3."""
        return ffi.string(lib.gnutls_protocol_get_name(lib.gnutls_protocol_get_version(self._live()))).decode()

    @property
    def group(self) -> str | None:
        """The key exchange that was agreed on, for example SECP256R1."""
        return ffi.string(lib.gnutls_group_get_name(lib.gnutls_group_get(self._live()))).decode()

    def handshake(self) -> None:
        if self._done is None:
            loop = asyncio.get_running_loop()
            self._done = loop.create_future()
            self._credentials.signer.start(loop)
            self._shaking = True
            threading.Thread(target=self._shake_hands, args=(loop, self._live()), name="tls", daemon=True).start()
        if not self._done.done():
            raise WantTime(self._done)
        self._done.result()

    def _shake_hands(self, loop: asyncio.AbstractEventLoop, session: Pointer) -> None:
        """The thread: GnuTLS, the socket, and the answers of the event loop."""
        error: OSError | None = None
        try:
            self._step_until_done(session)
        except OSError as failure:
            error = failure
        finally:
            with self._lock:
                self._shaking = False
                if self._closed:
                    self._free()
            # A loop that ended meanwhile has nobody left who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: OSError | None) -> None:
        if self._done is None or self._done.done() or self._closed:
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    def _step_until_done(self, session: Pointer) -> None:
        waiting = select.poll()
        while (code := lib.gnutls_handshake(session)) != 0:
            if self._closed:
                raise ConnectionError("the connection is closed")
            if lib.gnutls_error_is_fatal(code):
                raise self._failure(code)
            waiting.register(self._descriptor, select.POLLOUT if _wants_to_write(session) else select.POLLIN)
            waiting.poll(_POLL_MILLISECONDS)
        if not lib.tls_speaks_h2(session):
            raise ConnectionError("the peer does not offer HTTP/2 by ALPN")
        count = ffi.new("unsigned int *")
        chain = lib.gnutls_certificate_get_peers(session, count)
        self.peer_certificates = tuple(ffi.buffer(chain[n].data, chain[n].size)[:] for n in range(count[0]))

    def _failure(self, code: int) -> ConnectionError:
        reason = self._credentials.signer.error
        if reason is None:
            return ConnectionError(f"tls: {_text(code)}")
        text = str(reason) if isinstance(reason, SpireError | OSError) else type(reason).__name__
        failure = ConnectionError(f"tls: the key did not sign: {text}")
        failure.__cause__ = reason
        return failure

    def receive(self, size: int) -> bytes:
        session = self._live()
        data = bytearray(size)
        while True:
            code = lib.gnutls_record_recv(session, ffi.from_buffer(data), size)
            if code >= 0:
                return bytes(memoryview(data)[:code])
            self._check(session, code)

    def buffered(self) -> bool:
        return True

    def send(self, data: memoryview) -> int:
        session = self._live()
        while True:
            # After GNUTLS_E_AGAIN the record is made: a null send goes on with it; the caller offers its bytes again.
            buffer, size = (ffi.NULL, 0) if self._unsent else (ffi.from_buffer(data), len(data))
            code = lib.gnutls_record_send(session, buffer, size)
            if code >= 0:
                self._unsent = 0
                return code
            if code in (lib.GNUTLS_E_AGAIN, lib.GNUTLS_E_INTERRUPTED):
                self._unsent = self._unsent or size
            self._check(session, code)

    def _check(self, session: Pointer, code: int) -> None:
        """Raises for a code of a record function that is not to be tried again at once."""
        if code == lib.GNUTLS_E_AGAIN:
            raise (WantWrite if _wants_to_write(session) else WantRead)
        if code != lib.GNUTLS_E_INTERRUPTED:
            raise ConnectionError(f"tls: {_text(code)}")

    def shutdown(self) -> None:
        self._credentials.signer.cancel()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._shaking:
                # Wakes the thread, which frees the session.
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                return
            if self._session is not None and self.peer_certificates:
                lib.gnutls_bye(self._session, _SHUT_WRITE)
            self._free()

    def _live(self) -> Pointer:
        if self._session is None:
            raise ConnectionError("the connection is closed")
        return self._session

    def _free(self) -> None:
        """Needs the lock."""
        session, self._session = self._session, None
        if session is not None:
            lib.gnutls_deinit(session)
            os.close(self._descriptor)


def _wants_to_write(session: Pointer) -> bool:
    return lib.gnutls_record_get_direction(session) == 1


def _text(code: int) -> str:
    return ffi.string(lib.gnutls_strerror(code)).decode("utf-8", "replace")
