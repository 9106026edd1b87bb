"""What a signing certificate proves: its path to Fulcio's roots, its place in a CT log, whose it is. Pure.

Fulcio's extensions: https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.certificate_transparency import LogEntryType, SignedCertificateTimestamp, Version
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestors.sigstore.trust import TrustRoot
from attestors.x509pop.paths import Path, verified_paths
from operations.errors import InvalidArgument, Refused

_ISSUER: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_OTHER_NAME: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")
_LONGEST = 1 << 20
_MOST = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UTF8_STRING = 0x0C
_SIGNING = frozenset((ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE))

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


def load(pem: str) -> list[x509.Certificate]:
    """Certificates in PEM, their extensions known to be readable. Raises InvalidArgument."""
    if len(pem) > _LONGEST:
        raise InvalidArgument("a certificate is too long")
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
        if len(certificates) > _MOST:
            raise InvalidArgument(f"there are more than {_MOST} certificates")
        for certificate in certificates:
            _ = certificate.extensions  # parsed only when asked for
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion) as error:
        raise InvalidArgument("its certificate is malformed") from error
    return certificates


def require_trusted(
    certificate: x509.Certificate, others: Sequence[x509.Certificate], trust: TrustRoot, at: datetime
) -> Path:
    """The path to a root at the time of signing. `others` stand in for intermediates where the roots bring none.

    Raises Refused.
    """
    roots, intermediates = trust.authorities(at)
    paths = verified_paths(certificate, intermediates or others, roots, at)
    fault: Refused | None = None
    for path in paths:
        try:
            for each in path:
                _require_code_signing(each)
        except Refused as error:
            fault = error
        else:
            return path
    raise fault or Refused("certificate is not trusted")


def _require_code_signing(certificate: x509.Certificate) -> None:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # for every use (RFC 5280, 4.2.1.12)
    if _SIGNING.isdisjoint(usages):
        raise Refused("certificate is not for code signing")


def require_logged(path: Path, logs: Mapping[str, PublicKey]) -> None:
    """Raise Refused unless the leaf has embedded SCTs (RFC 6962, 3.3), each signed by a known log."""
    leaf = path[0]
    if len(path) < 2:
        raise Refused("certificate has no issuer whose CT log entry could be checked")
    try:
        embedded = leaf.extensions.get_extension_for_class(x509.PrecertificateSignedCertificateTimestamps).value
    except x509.ExtensionNotFound:
        raise Refused("certificate does not include required embedded SCT") from None
    if not 0 < len(embedded) <= _MOST:
        raise Refused("certificate does not include required embedded SCT")
    for timestamp in embedded:
        key = logs.get(timestamp.log_id.hex())
        if key is None:
            raise Refused("the CT log that the certificate is in is not known: see SIGSTORE_CT_LOG_PUBLIC_KEY_FILE")
        if timestamp.version is not Version.v1 or timestamp.entry_type is not LogEntryType.PRE_CERTIFICATE:
            raise Refused("the certificate's SCT is of an unknown kind")
        if not verifies(key, timestamp.signature, _signed(timestamp, leaf, path[1])):
            raise Refused("the certificate's SCT is not signed by the CT log")


def _signed(timestamp: SignedCertificateTimestamp, leaf: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """What a log signs (RFC 6962, 3.2), of a precertificate."""
    # Naive in some versions of the library, and always UTC.
    made = timestamp.timestamp.replace(tzinfo=UTC)
    issuer_key = issuer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    body = leaf.tbs_precertificate_bytes
    return b"".join((
        bytes((0, 0)),  # v1, certificate_timestamp
        ((made - _EPOCH) // timedelta(milliseconds=1)).to_bytes(8),
        (1).to_bytes(2),  # precert_entry
        hashlib.sha256(issuer_key).digest(),
        len(body).to_bytes(3),
        body,
        len(timestamp.extension_bytes).to_bytes(2),
        timestamp.extension_bytes,
    ))  # fmt: skip


def verifies(key: object, signature: bytes, data: bytes) -> bool:
    """Whether a key of a kind that Sigstore uses signed this, with SHA-256."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def key_of(certificate: x509.Certificate) -> object:
    """Raises Refused for a key that cannot be read."""
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused("the certificate's key cannot be read") from error


@lru_cache(maxsize=64)
def names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The subjects: DNS names, email addresses, IP addresses, URIs, then Fulcio's own kind; empty ones left out."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    plain = chain(
        san.get_values_for_type(x509.DNSName),
        san.get_values_for_type(x509.RFC822Name),
        map(str, san.get_values_for_type(x509.IPAddress)),
        san.get_values_for_type(x509.UniformResourceIdentifier),
    )
    others = [other for other in san.get_values_for_type(x509.OtherName) if other.type_id == _OTHER_NAME]
    own = [_utf8_string(others[0].value)] if len(others) == 1 else []
    return tuple(name for name in (*plain, *own) if name)


def issuer(certificate: x509.Certificate) -> str:
    """Who vouched for the subject; empty when the certificate does not say. Raises Refused when it says two things."""
    first = _extension(certificate, _ISSUER, lambda value: value.decode())
    second = _extension(certificate, _ISSUER_V2, _utf8_string)
    if first and second and first != second:
        raise Refused("certificate names two different OIDC issuers")
    return first or second


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier, read: Callable[[bytes], str]) -> str:
    try:
        extension = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return ""
    if not isinstance(extension, x509.UnrecognizedExtension):
        return ""
    try:
        return read(extension.value)
    except UnicodeDecodeError as error:
        raise Refused("certificate's OIDC issuer is malformed") from error


def _utf8_string(der: bytes) -> str:
    """A UTF8String (X.690, 8.23), its length in either form. Raises Refused."""
    octets = der[1] & 0x7F if len(der) > 1 and der[1] & 0x80 else 0
    begin = 2 + octets
    length = int.from_bytes(der[2:begin]) if octets else int.from_bytes(der[1:2])
    if not der or der[0] != _UTF8_STRING or octets > 2 or len(der) != begin + length:
        raise Refused("certificate has a malformed text")
    try:
        return der[begin:].decode()
    except UnicodeDecodeError as error:
        raise Refused("certificate has a malformed text") from error
