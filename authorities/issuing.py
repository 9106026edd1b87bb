"""What upstream authorities with a key of their own do with a request: check it, and sign a CA certificate.

Of the request only its key, its subject and extensions that mean no harm are used: whether the certificate is a CA,
what its key may be used for and who it is are said here.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from identity import der, x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, Refused

BACKDATE = 10
"""Seconds by which certificates start early, for clocks that are behind."""

DEFAULT_TTL = 3600
"""Seconds that an authority lives which has no wish of its own."""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_MAX_CSR = 64 * 1024
_RSA_BITS = range(2048, 8192 + 1)
_HASHES: Mapping[int, hashes.SHA256 | hashes.SHA384 | hashes.SHA512] = {
    256: hashes.SHA256(),
    384: hashes.SHA384(),
    521: hashes.SHA512(),
}
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
    def of(cls, certificate: bytes, key: PrivateKey) -> Ca:
        """Of a DER certificate. Raises InvalidArgument for one of another key, and for one that is no CA."""
        loaded = parsed(certificate)
        if loaded.public_key() != key.public_key():
            raise InvalidArgument("certificate and private key do not match")
        try:
            constraints = loaded.extensions.get_extension_for_class(x509.BasicConstraints).value
        except x509.ExtensionNotFound:
            constraints = x509.BasicConstraints(ca=False, path_length=None)
        if not constraints.ca:
            raise InvalidArgument("the certificate is not that of a CA (basic constraints)")
        return cls(loaded, key)


def parsed(certificate: bytes) -> x509.Certificate:
    """Raises InvalidArgument."""
    loaded = der.certificate(certificate)
    der.certificate_key(certificate)
    return loaded


def check_path(chain: Sequence[bytes], roots: Sequence[bytes], now: datetime) -> None:
    """Verify a chain of CAs (DER, the lowest first) up to one of the roots (DER). Raises InvalidArgument."""
    try:
        x509svid.find_path(chain, roots, now)
    except Refused as error:
        reason = str(error).removeprefix("could not verify leaf certificate: ")
        raise InvalidArgument(
            f"certificate cannot be validated with the provided bundle or is not self-signed ({reason})"
        ) from error


def sign(ca: Ca, csr: bytes, trust_domain: TrustDomain, ttl: int, now: int) -> bytes:
    """The DER certificate of the trust domain's authority that a DER PKCS #10 request asks for.

    It lives `ttl` seconds from `now` (unix seconds), but not longer than the CA. Raises InvalidArgument.
    """
    request = _checked(csr, trust_domain)
    end = min(datetime.fromtimestamp(now + (ttl or DEFAULT_TTL), UTC), ca.certificate.not_valid_after_utc)
    try:
        builder = (
            x509.CertificateBuilder()
            .subject_name(request.subject)
            .issuer_name(ca.certificate.subject)
            .public_key(_strong(request.public_key()))
            .serial_number(secrets.randbelow(2**128 - 1) + 1)
            .not_valid_before(datetime.fromtimestamp(now - BACKDATE, UTC))
            .not_valid_after(end)
            .add_extension(_USAGE, critical=True)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(_strong(request.public_key())), critical=False)
            .add_extension(_authority_key_id(ca.certificate), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.id)]), critical=False
            )
        )
        for extension in request.extensions:
            if extension.oid not in _OURS:
                builder = builder.add_extension(extension.value, extension.critical)
        return builder.sign(ca.key, _hash(ca.key)).public_bytes(Encoding.DER)
    except ValueError as error:
        raise InvalidArgument(f"unable to sign CSR: {error}") from error


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
    try:
        key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key_id = x509.SubjectKeyIdentifier.from_public_key(_strong(issuer.public_key()))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)


def _hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512:
    return _HASHES[key.key_size] if isinstance(key, ec.EllipticCurvePrivateKey) else hashes.SHA256()
