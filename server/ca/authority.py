"""Authorities: a key, how long it may sign, and what verifiers know it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from identity import der
from identity.bundles import JwtAuthority
from identity.spiffeid import TrustDomain
from operations.errors import PermanentlyUnusable
from plugins.keymanager import Key
from server.ca import names, signing
from server.ca.journal import JwtRecord, Status, X509Record
from server.ca.jwt import JwtEncoder
from server.ca.template import LeafTemplate, key_usage

BACKDATE = 10
"""Seconds by which certificates start early, for clocks that are behind."""


class Authority(Protocol):
    """What rotation needs of either kind. Times are unix seconds."""

    @property
    def slot(self) -> str: ...
    @property
    def authority_id(self) -> str: ...
    @property
    def issued_at(self) -> int: ...
    @property
    def not_after(self) -> int: ...


@dataclass(frozen=True, slots=True)
class X509Ca:
    """A key with its DER CA certificate; `template` makes its leaves. The id is the hex subject key identifier."""

    slot: str
    issued_at: int
    not_after: int
    authority_id: str
    key: Key
    certificate: bytes
    upstream_chain: tuple[bytes, ...]
    template: LeafTemplate

    @classmethod
    def of(
        cls, slot: str, issued_at: int, key: Key, certificate: bytes, upstream_chain: tuple[bytes, ...] = ()
    ) -> X509Ca:
        parsed = der.certificate(certificate)
        return cls(
            slot=slot,
            issued_at=issued_at,
            not_after=int(parsed.not_valid_after_utc.timestamp()),
            authority_id=signing.issuer_key_id(parsed).hex(),
            key=key,
            certificate=certificate,
            upstream_chain=upstream_chain,
            template=LeafTemplate(parsed, key.key_type),
        )

    def record(self, status: Status) -> X509Record:
        return X509Record(
            slot=self.slot,
            status=status,
            issued_at=self.issued_at,
            not_after=self.not_after,
            certificate=self.certificate,
            upstream_chain=self.upstream_chain,
        )


@dataclass(frozen=True, slots=True)
class JwtSigner:
    """A key with its key id; `encoder` makes its tokens."""

    slot: str
    issued_at: int
    not_after: int
    authority_id: str
    key: Key
    encoder: JwtEncoder

    def record(self, status: Status) -> JwtRecord:
        return JwtRecord(
            slot=self.slot,
            status=status,
            issued_at=self.issued_at,
            not_after=self.not_after,
            key_id=self.authority_id,
            public_key=self.key.public_key,
        )

    def bundle_entry(self) -> JwtAuthority:
        return JwtAuthority(self.authority_id, self.key.public_key, self.not_after)


async def self_signed_certificate(
    key: Key, trust_domain: TrustDomain, subject: names.Subject, issued_at: int, not_after: int
) -> bytes:
    """The DER certificate of a root (X509-SVID 4 and 5: a CA, named by its trust domain, signing certificates only).

    Raises what the key raises, and PermanentlyUnusable for a signature that does not verify.
    """
    public_key = der.public_key(key.public_key)
    key_id = x509.SubjectKeyIdentifier(signing.subject_key_id(key.public_key))
    serial = signing.new_serial()
    name = names.authority_name(subject, serial)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(signing.utc(issued_at - BACKDATE))
        .not_valid_after(signing.utc(not_after))
        .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_id, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.id)]), critical=False)
    )
    certificate = await signing.sign_certificate(builder, key)
    parsed = der.certificate(certificate)
    try:
        parsed.verify_directly_issued_by(parsed)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise PermanentlyUnusable(f"key {key.id!r} made a wrong signature: the CA certificate is not used") from error
    return certificate
