"""Certificates of X.509 authorities: this server's own, the request for one, and those of servers below it.

X509-SVID 4 and 5: a CA, named by its trust domain, that signs certificates and CRLs and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from identity import der
from identity.spiffeid import TrustDomain
from operations.errors import PermanentlyUnusable
from plugins.keymanager import Key
from server.ca import signing
from server.ca.composing import CaContent
from server.ca.template import key_usage

BACKDATE = 10
"""Seconds by which certificates start early, for clocks that are behind."""


@dataclass(frozen=True, slots=True)
class Life:
    """From when, but for the backdating, until when; unix seconds."""

    issued_at: int
    not_after: int


@dataclass(frozen=True, slots=True)
class Issuer:
    """A DER CA certificate and its key."""

    certificate: bytes
    key: Key


async def self_signed(key: Key, trust_domain: TrustDomain, content: CaContent, serial: int, life: Life) -> bytes:
    """The DER certificate of a root.

    Raises what the key raises, and PermanentlyUnusable for a signature that does not verify.
    """
    builder = _builder(content, key.public_key, trust_domain, serial, life).issuer_name(content.subject)
    certificate = await signing.sign_certificate(builder, key)
    _verify(certificate, certificate, key)
    return certificate


async def below(issuer: Issuer, public_key: bytes, trust_domain: TrustDomain, content: CaContent, life: Life) -> bytes:
    """The DER certificate of an authority with this DER SubjectPublicKeyInfo. Raises as `self_signed` does."""
    parsed = der.certificate(issuer.certificate)
    key_id = x509.SubjectKeyIdentifier(signing.issuer_key_id(parsed))
    builder = (
        _builder(content, public_key, trust_domain, signing.new_serial(), life)
        .issuer_name(parsed.subject)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
    )
    certificate = await signing.sign_certificate(builder, issuer.key)
    _verify(certificate, issuer.certificate, issuer.key)
    return certificate


def forbids_authorities_below(certificate: bytes) -> bool:
    """Whether no CA may follow this DER certificate in a path (RFC 5280, 4.2.1.9: a path length of 0)."""
    try:
        constraints = der.certificate(certificate).extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return True
    return constraints.path_length == 0


async def signing_request(key: Key, trust_domain: TrustDomain, content: CaContent) -> bytes:
    """The DER request (RFC 2986) that an upstream authority is to sign; it says nothing of policies, as SPIRE's."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(content.subject)
    for extension in _extensions(content, _alternative_name(trust_domain)):
        builder = builder.add_extension(*extension)
    info, algorithm = signing.request_info(builder, key.key_type, key.public_key)
    scheme = signing.SCHEMES[key.key_type]
    return signing.certificate(info, algorithm, await key.sign(signing.digest(info, scheme), scheme))


Extensions = list[tuple[x509.ExtensionType, bool]]


def _builder(
    content: CaContent, public_key: bytes, trust_domain: TrustDomain, serial: int, life: Life
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(content.subject)
        .public_key(der.public_key(public_key))
        .serial_number(serial)
        .not_valid_before(signing.utc(life.issued_at - BACKDATE))
        .not_valid_after(signing.utc(life.not_after))
    )
    usual: Extensions = [
        (key_usage("key_cert_sign", "crl_sign"), True),
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (x509.SubjectKeyIdentifier(signing.subject_key_id(public_key)), False),
        *_alternative_name(trust_domain),
    ]
    if content.policies:
        policies = [x509.PolicyInformation(x509.ObjectIdentifier(oid), None) for oid in content.policies]
        usual.append((x509.CertificatePolicies(policies), False))
    for extension in _extensions(content, usual):
        builder = builder.add_extension(*extension)
    return builder


def _alternative_name(trust_domain: TrustDomain) -> Extensions:
    return [(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.id)]), False)]


def _extensions(content: CaContent, usual: Extensions) -> Extensions:
    """The usual ones, but for those that the content has its own of, then the content's."""
    further: Extensions = [
        (x509.UnrecognizedExtension(x509.ObjectIdentifier(each.oid), each.value), each.critical)
        for each in content.extensions
    ]
    replaced = {extension.oid for extension, _ in further}
    return [each for each in usual if each[0].oid not in replaced] + further


def _verify(certificate: bytes, issuer: bytes, key: Key) -> None:
    try:
        der.certificate(certificate).verify_directly_issued_by(der.certificate(issuer))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise PermanentlyUnusable(f"key {key.id!r} made a wrong signature: the CA certificate is not used") from error
