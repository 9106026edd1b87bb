"""X509-SVIDs: verification as the X509-SVID standard has it (sections 2 to 5), over RFC 5280 path validation.

The path is validated by OpenSSL, through pyOpenSSL, and not by cryptography's verifier: that one is made for the Web
PKI and refuses every chain with a URI name constraint, which is how an upstream authority holds a SPIRE server to its
trust domain. OpenSSL enforces URI name constraints and path lengths, and takes URI-only SANs and empty subjects. What
it is lenient about (issuers without basic constraints, SHA-1) is checked here on the path that it found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import SignatureAlgorithmOID
from OpenSSL import crypto

from identity import der
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, Refused

# Longer chains than any SPIRE topology has; each certificate costs a signature check.
MAX_CHAIN = 10

_openssl_library: Any = Binding().lib  # a cffi library, without types

_SIGNATURE_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def leaf_id(certificate: bytes) -> SpiffeId:
    """The SPIFFE ID of a DER certificate: its single URI SAN. Nothing is verified. Raises InvalidArgument."""
    return _leaf_id(der.certificate(certificate))


def verify(chain: Sequence[bytes], roots: Mapping[TrustDomain, Sequence[bytes]], now: datetime) -> SpiffeId:
    """Verify a chain of DER certificates, leaf first, against the roots of the leaf's own trust domain.

    `roots` are trust anchors whether self-signed or not. `now` is aware. Raises InvalidArgument for what is not an
    X509-SVID, Refused for one that does not verify.
    """
    return verify_until(chain, roots, now)[0]


def verify_until(
    chain: Sequence[bytes], roots: Mapping[TrustDomain, Sequence[bytes]], now: datetime
) -> tuple[SpiffeId, datetime]:
    """As `verify`; with the ID comes the time when the first certificate of the path ends."""
    spiffe_id, path = _verified(chain, roots, now)
    return spiffe_id, min(certificate.not_valid_after_utc for certificate in path)


def verified_path(
    chain: Sequence[bytes], roots: Mapping[TrustDomain, Sequence[bytes]], now: datetime
) -> tuple[bytes, ...]:
    """As `verify`; returns the path, DER, from the leaf to the root."""
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in _verified(chain, roots, now)[1])


def _verified(
    chain: Sequence[bytes], roots: Mapping[TrustDomain, Sequence[bytes]], now: datetime
) -> tuple[SpiffeId, list[x509.Certificate]]:
    if not chain:
        raise InvalidArgument("empty certificates chain")
    if len(chain) > MAX_CHAIN:
        raise InvalidArgument(f"certificate chain is longer than {MAX_CHAIN} certificates")
    leaf = der.certificate(chain[0])
    spiffe_id = _leaf_id(leaf)
    _check_leaf(leaf)
    anchors = roots.get(spiffe_id.trust_domain)
    if not anchors:
        raise Refused(f'no X.509 bundle for trust domain "{spiffe_id.trust_domain}"')
    path = find_path(chain, anchors, now)
    _check_path(path)
    return spiffe_id, path


def _leaf_id(leaf: x509.Certificate) -> SpiffeId:
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise InvalidArgument("certificate contains no URI SAN") from None
    uris = san.value.get_values_for_type(x509.UniformResourceIdentifier)
    if not uris:
        raise InvalidArgument("certificate contains no URI SAN")
    if len(uris) > 1:
        raise InvalidArgument("certificate contains more than one URI SAN")
    return SpiffeId.parse(uris[0])


def _check_leaf(leaf: x509.Certificate) -> None:
    """X509-SVID 4.1 and 4.3: a leaf is no CA, signs digitally, and signs neither certificates nor CRLs."""
    if _is_ca(leaf):
        raise InvalidArgument("leaf certificate with CA flag set to true")
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise InvalidArgument("leaf certificate without key usage") from None
    if usage.key_cert_sign:
        raise InvalidArgument("leaf certificate with KeyCertSign key usage")
    if usage.crl_sign:
        raise InvalidArgument("leaf certificate with KeyCrlSign key usage")
    if not usage.digital_signature:
        raise InvalidArgument("leaf certificate without digitalSignature key usage")


def find_path(chain: Sequence[bytes], anchors: Sequence[bytes], now: datetime) -> list[x509.Certificate]:
    """The path that OpenSSL finds and verifies from a chain (DER, leaf first) to an anchor (DER), leaf first.

    RFC 5280 only: what a SPIFFE leaf must be besides is the caller's to check. Raises InvalidArgument and Refused.
    """
    # Stores are made per call: they are cheap, and set_time on a shared one would race between threads.
    try:
        store = crypto.X509Store()
        for anchor in anchors:
            store.add_cert(_known(anchor))
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        store.set_time(now.astimezone(UTC))
        leaf, *above = chain
        intermediates = [_known(certificate) for certificate in above]
        path = crypto.X509StoreContext(store, _openssl(leaf), intermediates).get_verified_chain()
        return [certificate.to_cryptography() for certificate in path]
    except crypto.X509StoreContextError as error:
        raise Refused(f"could not verify leaf certificate: {error}") from error
    except crypto.Error as error:
        raise InvalidArgument("unable to parse certificate: OpenSSL cannot read it") from error
    finally:
        # A failed verification leaves entries in the thread's error queue, and SSL_get_error(3) asks for an empty one
        # before the next TLS operation of the thread, which is some other connection's.
        _openssl_library.ERR_clear_error()


def _check_path(path: Sequence[x509.Certificate]) -> None:
    for issuer in path[1:]:
        if not _is_ca(issuer):
            raise Refused("could not verify leaf certificate: an issuer is not a CA by its basic constraints")
    for certificate in path[:-1]:
        if not _is_strong(certificate):
            raise Refused("could not verify leaf certificate: signed with a weak or unknown hash algorithm")


def _is_strong(certificate: x509.Certificate) -> bool:
    if certificate.signature_algorithm_oid == SignatureAlgorithmOID.ED25519:
        return True  # which hashes by itself (RFC 8032)
    return isinstance(certificate.signature_hash_algorithm, _SIGNATURE_HASHES)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _openssl(certificate: bytes) -> crypto.X509:
    return crypto.X509.from_cryptography(der.certificate(certificate))


_known = lru_cache(maxsize=1024)(_openssl)
"""For authorities. Leaves are verified once a connection, and would fill it with what never comes again."""
