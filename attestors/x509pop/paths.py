"""Every path from a certificate to trust anchors (RFC 5280, section 6), within a limit of work.

identity.x509svid asks for one path of an X509-SVID. Here a node's certificate may be of any PKI, and the CAs of all
its paths become selectors. OpenSSL judges each path by itself; see identity/x509svid.py for why it and not
cryptography's verifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import SignatureAlgorithmOID
from OpenSSL import crypto

from operations.errors import Refused

MAX_STEPS = 100
"""A peer chooses the certificates: crossing ones could make very many paths. Each step may cost a signature check."""

_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_WITHOUT_HASH = (SignatureAlgorithmOID.ED25519, SignatureAlgorithmOID.ED448)

_UNKNOWN_AUTHORITY = "x509: certificate signed by unknown authority"
_NOT_SIGNED = frozenset((7, 20))
"""Of X509_STORE_CTX_get_error(3): another key, or an issuer of another name or key identifier."""

_openssl_library: Any = Binding().lib  # a cffi library, without types

Path = tuple[x509.Certificate, ...]
"""Leaf first, anchor last; the leaf alone when it is an anchor itself."""


def verified_paths(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
) -> list[Path]:
    """The valid paths, at least one. `now` is aware. Raises Refused."""
    _require_in_force(leaf, now)
    if leaf in anchors:
        candidates: Iterator[Path] = iter(((leaf,),))
    else:
        candidates = _Search(intermediates, anchors).paths((leaf,))
    valid: list[Path] = []
    fault: str | None = None
    for path in candidates:
        try:
            _judge(path, now)
        except Refused as error:
            fault = fault or str(error)
        else:
            valid.append(path)
    if not valid:
        raise Refused(fault or _UNKNOWN_AUTHORITY)
    return valid


def _require_in_force(leaf: x509.Certificate, now: datetime) -> None:
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    fault = f"is before {_text(begins)}" if now < begins else f"is after {_text(ends)}" if now > ends else None
    if fault is not None:
        raise Refused(f"x509: certificate has expired or is not yet valid: current time {_text(now)} {fault}")


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Search:
    """Depth first, by names alone: whether one signed the other is for `_judge`.

    As in Go, a CA stands on a path once, whichever of its certificates it is.
    """

    def __init__(self, intermediates: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]) -> None:
        self._intermediates = tuple(dict.fromkeys(intermediates))
        self._anchors = tuple(dict.fromkeys(anchors))
        self._steps = 0

    def paths(self, begun: Path) -> Iterator[Path]:
        for anchor in self._anchors:
            if self._continues(begun, anchor):
                yield (*begun, anchor)
        for intermediate in self._intermediates:
            if self._continues(begun, intermediate):
                yield from self.paths((*begun, intermediate))

    def _continues(self, begun: Path, issuer: x509.Certificate) -> bool:
        if begun[-1].issuer != issuer.subject:
            return False
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Refused("x509: signature check attempts limit reached while verifying certificate chain")
        try:
            return _holder(issuer) not in map(_holder, begun)
        except (UnsupportedAlgorithm, ValueError):
            return False


@lru_cache(maxsize=256)
def _holder(certificate: x509.Certificate) -> tuple[bytes, bytes, bytes | None]:
    """Whose certificate this is: subject, public key, alternative names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.public_bytes()
    except x509.ExtensionNotFound:
        names = None
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return certificate.subject.public_bytes(), key, names


def _judge(path: Path, now: datetime) -> None:
    """Raise Refused unless the path is valid: times, CA flags, path lengths, name constraints, critical extensions."""
    for issuer in path[1:]:
        if not _is_ca(issuer):
            raise Refused("x509: issuer is not a certificate authority by its basic constraints")
    for certificate in path[:-1]:
        if not _is_signed_well(certificate):
            raise Refused("x509: certificate is signed with a weak or unknown algorithm")
    try:
        store = crypto.X509Store()
        store.add_cert(_openssl(path[-1]))
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        store.set_time(now.astimezone(UTC))
        others = [_openssl(certificate) for certificate in path[1:-1]]
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(path[0]), others).verify_certificate()
    except crypto.X509StoreContextError as error:
        raise Refused(_UNKNOWN_AUTHORITY if error.errors[0] in _NOT_SIGNED else f"x509: {error}") from error
    except crypto.Error as error:
        raise Refused("x509: certificate cannot be read by OpenSSL") from error
    finally:
        # SSL_get_error(3) wants an empty queue, and the next TLS operation of this thread is somebody else's.
        _openssl_library.ERR_clear_error()


@lru_cache(maxsize=256)
def _openssl(certificate: x509.Certificate) -> crypto.X509:
    """Of CAs, which come again and again."""
    return crypto.X509.from_cryptography(certificate)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _is_signed_well(certificate: x509.Certificate) -> bool:
    if certificate.signature_algorithm_oid in _WITHOUT_HASH:
        return True
    try:
        return isinstance(certificate.signature_hash_algorithm, _HASHES)
    except UnsupportedAlgorithm:
        return False
