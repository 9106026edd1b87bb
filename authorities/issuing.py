"""What upstream authorities with a key of their own do with a request: check it, and sign a CA certificate.

Of the request only its key, its subject and extensions that mean no harm are used: whether the certificate is a CA,
what its key may be used for and who it is are said here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from identity import der, unsigned, x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from identity.unsigned import Algorithm
from operations.errors import InvalidArgument, PermanentlyUnusable, Refused
from plugins.rootkey import RootKey

BACKDATE = 10
"""Seconds by which certificates start early, for clocks that are behind."""

DEFAULT_TTL = 3600
"""Seconds that an authority lives which has no wish of its own."""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

_MAX_CSR = 64 * 1024
_RSA_BITS = range(2048, 8192 + 1)
_HASHES: Mapping[int, hashes.SHA256 | hashes.SHA384 | hashes.SHA512] = {
    256: hashes.SHA256(),
    384: hashes.SHA384(),
    521: hashes.SHA512(),
}
_CURVES = {"secp256r1": Algorithm.ECDSA_SHA256, "secp384r1": Algorithm.ECDSA_SHA384}
_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
_OURS = frozenset(
    (
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.NAME_CONSTRAINTS,
    )
)


@dataclass(frozen=True, slots=True)
class Ca:
    """A CA certificate, with its key in this process."""

    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def of(cls, certificate: x509.Certificate, key: PrivateKey) -> Ca:
        """Raises InvalidArgument for a certificate of another key."""
        if certificate.public_key() != key.public_key():
            raise InvalidArgument("certificate and private key do not match")
        return cls(certificate, key)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a new CA may do. `path_length` is how many CAs may follow it (RFC 5280, 4.2.1.9), None for any number;
    `permitted_uris` are the hosts, or with a dot before them the domains, of the URIs below it (4.2.1.10)."""

    path_length: int | None = None
    permitted_uris: tuple[str, ...] = ()


_UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Request:
    """A DER PKCS #10 request for the trust domain's authority, to live `ttl` seconds from `now` (unix seconds)."""

    csr: bytes
    trust_domain: TrustDomain
    ttl: int
    now: int
    limits: Limits = _UNLIMITED


def parsed(certificate: bytes) -> x509.Certificate:
    """Of an authority whose key can be used. Raises InvalidArgument."""
    loaded = der.certificate(certificate)
    der.authority_key(certificate)
    return loaded


def ca_certificate(certificate: bytes) -> x509.Certificate:
    """The certificate in these bytes (DER). Raises InvalidArgument for one that is not that of a CA."""
    loaded = parsed(certificate)
    constraints = _extension(loaded, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise InvalidArgument("the certificate is not that of a CA (basic constraints)")
    return loaded


def is_self_signed(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def check_path(chain: Sequence[bytes], roots: Sequence[bytes], now: datetime) -> tuple[bytes, ...]:
    """Verify a chain of CAs (DER, the lowest first) up to one of the roots (DER), and return that path (DER).

    Raises InvalidArgument.
    """
    try:
        path = x509svid.find_path(chain, roots, now)
    except Refused as error:
        reason = str(error).removeprefix("could not verify leaf certificate: ")
        raise InvalidArgument(
            f"certificate cannot be validated with the provided bundle or is not self-signed ({reason})"
        ) from error
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in path)


def sign(ca: Ca, csr: bytes, trust_domain: TrustDomain, ttl: int, now: int) -> bytes:
    """The DER certificate of the trust domain's authority that a DER PKCS #10 request asks for.

    It lives `ttl` seconds from `now` (unix seconds), but not longer than the CA. Raises InvalidArgument.
    """
    builder = _builder(ca.certificate, Request(csr, trust_domain, ttl, now))
    try:
        return builder.sign(ca.key, _hash(ca.key)).public_bytes(Encoding.DER)
    except ValueError as error:
        raise InvalidArgument(f"unable to sign CSR: {error}") from error


async def sign_by(key: RootKey, issuer: x509.Certificate, request: Request) -> bytes:
    """As `sign`, with a key in a device, that of the issuer's certificate.

    Raises besides what the key raises, and PermanentlyUnusable for a signature that does not verify.
    """
    unsigned_certificate, identifier = await asyncio.to_thread(_unsigned, issuer, request)
    signature = await key.sign(unsigned_certificate)
    certificate = unsigned.signed(unsigned_certificate, identifier, signature)
    await asyncio.to_thread(_verify, certificate, issuer, key.name)
    return certificate


def _unsigned(issuer: x509.Certificate, request: Request) -> tuple[bytes, bytes]:
    algorithm = signature_algorithm(issuer)
    try:
        return unsigned.certificate(_builder(issuer, request), algorithm)
    except ValueError as error:
        raise InvalidArgument(f"unable to sign CSR: {error}") from error


def signature_algorithm(issuer: x509.Certificate) -> Algorithm:
    """How a device signs with the key of this certificate. Raises InvalidArgument for a key that none has."""
    key = issuer.public_key()
    if isinstance(key, ed25519.Ed25519PublicKey):
        return Algorithm.ED25519
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS:
        return Algorithm.RSA_SHA256
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    raise InvalidArgument("unsupported key: use ECDSA P-256 or P-384, RSA of 2048 bits and more, or Ed25519")


def _verify(certificate: bytes, issuer: x509.Certificate, name: str) -> None:
    try:
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise PermanentlyUnusable(f"{name} made a wrong signature: the CA certificate is not used") from error


def _builder(issuer: x509.Certificate, request: Request) -> x509.CertificateBuilder:
    csr = _checked(request.csr, request.trust_domain)
    key = _strong(csr.public_key())
    limits = request.limits
    end = datetime.fromtimestamp(request.now + (request.ttl or DEFAULT_TTL), UTC)
    alternative_name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(request.trust_domain.id)])
    try:
        builder = (
            x509.CertificateBuilder()
            .subject_name(csr.subject)
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(secrets.randbelow(2**128 - 1) + 1)
            .not_valid_before(datetime.fromtimestamp(request.now - BACKDATE, UTC))
            .not_valid_after(min(end, issuer.not_valid_after_utc))
            .add_extension(_USAGE, critical=True)
            .add_extension(x509.BasicConstraints(ca=True, path_length=limits.path_length), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_authority_key_id(issuer), critical=False)
            .add_extension(alternative_name, critical=False)
        )
        if limits.permitted_uris:
            permitted = [x509.UniformResourceIdentifier(host) for host in limits.permitted_uris]
            builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
        for extension in csr.extensions:
            if extension.oid not in _OURS:
                builder = builder.add_extension(extension.value, extension.critical)
    except ValueError as error:
        raise InvalidArgument(f"unable to sign CSR: {error}") from error
    return builder


def _checked(csr: bytes, trust_domain: TrustDomain) -> x509.CertificateSigningRequest:
    if len(csr) > _MAX_CSR:
        raise InvalidArgument(f"unable to parse CSR: longer than {_MAX_CSR} bytes")
    try:
        request = x509.load_der_x509_csr(csr)
        _strong(request.public_key())
        uris = _uris(request)
        proven = der.proves_possession(request, csr)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension) as error:
        raise InvalidArgument("unable to parse CSR: not a well-formed PKCS #10 request in DER") from error
    if not proven:
        raise InvalidArgument("CSR signature check failed")
    if len(uris) != 1:
        raise InvalidArgument("CSR must have exactly one URI SAN")
    try:
        found = SpiffeId.parse(uris[0])
    except InvalidArgument as error:
        raise InvalidArgument(f'CSR with SPIFFE ID "{uris[0]}" is invalid: {error}') from error
    if found != SpiffeId(trust_domain, ""):
        raise InvalidArgument(
            f'CSR with SPIFFE ID "{uris[0]}" is invalid: must use the trust domain ID for trust domain "{trust_domain}"'
        )
    return request


def _uris(request: x509.CertificateSigningRequest) -> list[str]:
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except x509.UnsupportedGeneralNameType as error:
        raise InvalidArgument("unable to parse CSR: its alternative names cannot be read") from error
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _strong(key: object) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1", "secp521r1"):
        return key
    raise InvalidArgument("unsupported public key: use ECDSA P-256, P-384 or P-521, or RSA of 2048 to 8192 bits")


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    key_id = _extension(issuer, x509.SubjectKeyIdentifier)
    if key_id is None:
        key = der.authority_key(issuer.public_bytes(Encoding.DER))
        key_id = x509.SubjectKeyIdentifier.from_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)


def _hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512:
    return _HASHES[key.key_size] if isinstance(key, ec.EllipticCurvePrivateKey) else hashes.SHA256()


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
