"""Trust bundles: what a trust domain's X509-SVIDs and JWT-SVIDs are verified with.

This module needs no cryptography, so that commands which only print bundles start quickly; what parses keys is in
identity.jwks and identity.der, imported where it is used.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from generated.spire.api.types import bundle_pb2
from identity import pem
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument

# No dash inside, so that a text of nothing but beginnings is read once and not once for each of them.
_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----([^-]*)-----END \1-----")


@dataclass(frozen=True, slots=True)
class X509Authority:
    """A root of X509-SVIDs: its DER certificate. A tainted one is distrusted for new SVIDs and on its way out."""

    der: bytes
    tainted: bool = False


@dataclass(frozen=True, slots=True)
class JwtAuthority:
    """A key that signs JWT-SVIDs: its id, DER SubjectPublicKeyInfo, and end in unix seconds (0: unknown)."""

    key_id: str
    public_key: bytes
    expires_at: int = 0
    tainted: bool = False


@dataclass(frozen=True, slots=True)
class WitAuthority:
    """A key that signs WIT-SVIDs: its id, DER SubjectPublicKeyInfo, and end in unix seconds (0: unknown)."""

    key_id: str
    public_key: bytes
    expires_at: int = 0
    tainted: bool = False


@dataclass(frozen=True, slots=True)
class Bundle:
    """A trust domain's authorities. `refresh_hint` is in seconds; 0 means none was given, as for the number."""

    trust_domain: TrustDomain
    x509_authorities: tuple[X509Authority, ...] = ()
    jwt_authorities: tuple[JwtAuthority, ...] = ()
    refresh_hint: int = 0
    sequence_number: int = 0
    wit_authorities: tuple[WitAuthority, ...] = ()

    def validate(self) -> None:
        """Raise InvalidArgument unless every certificate and key can be parsed and every key has an id."""
        from identity import der

        for x509_authority in self.x509_authorities:
            der.certificate(x509_authority.der)
        for jwt_authority in self.jwt_authorities:
            der.public_key(jwt_authority.public_key)
            if not jwt_authority.key_id:
                raise InvalidArgument("missing key ID")
        for wit_authority in self.wit_authorities:
            der.public_key(wit_authority.public_key)
            if not wit_authority.key_id:
                raise InvalidArgument("missing key ID")

    def to_proto(self) -> bundle_pb2.Bundle:
        return bundle_pb2.Bundle(
            trust_domain=self.trust_domain.name,
            x509_authorities=[
                bundle_pb2.X509Certificate(asn1=authority.der, tainted=authority.tainted)
                for authority in self.x509_authorities
            ],
            jwt_authorities=[
                bundle_pb2.JWTKey(
                    public_key=authority.public_key,
                    key_id=authority.key_id,
                    expires_at=authority.expires_at,
                    tainted=authority.tainted,
                )
                for authority in self.jwt_authorities
            ],
            refresh_hint=self.refresh_hint,
            sequence_number=self.sequence_number,
            wit_authorities=[
                bundle_pb2.WITKey(
                    public_key=authority.public_key,
                    key_id=authority.key_id,
                    expires_at=authority.expires_at,
                    tainted=authority.tainted,
                )
                for authority in self.wit_authorities
            ],
        )

    @classmethod
    def from_proto(cls, message: bundle_pb2.Bundle) -> Bundle:
        """Read types.Bundle. What comes from outside is then put through `validate`. Raises InvalidArgument."""
        return cls(
            trust_domain=TrustDomain.parse(message.trust_domain),
            x509_authorities=tuple(X509Authority(each.asn1, each.tainted) for each in message.x509_authorities),
            jwt_authorities=tuple(
                JwtAuthority(each.key_id, each.public_key, each.expires_at, each.tainted)
                for each in message.jwt_authorities
            ),
            refresh_hint=message.refresh_hint,
            sequence_number=message.sequence_number,
            wit_authorities=tuple(
                WitAuthority(each.key_id, each.public_key, each.expires_at, each.tainted)
                for each in message.wit_authorities
            ),
        )

    def to_jwks(self, *, x509: bool = True, jwt: bool = True, wit: bool = True, standard: bool = False) -> str:
        """The SPIFFE bundle document; `standard` leaves out what plain JWKS readers do not know. See identity.jwks."""
        from identity import jwks

        return jwks.dump(self, x509=x509, jwt=jwt, wit=wit, standard=standard)

    @classmethod
    def from_jwks(cls, trust_domain: TrustDomain, document: str | bytes) -> Bundle:
        """Read a SPIFFE bundle document, which does not name its trust domain. Raises InvalidArgument."""
        from identity import jwks

        return jwks.load(trust_domain, document)

    def to_pem(self) -> str:
        """The X.509 authorities as PEM certificates (RFC 7468)."""
        return to_pem([authority.der for authority in self.x509_authorities])

    @classmethod
    def from_pem(cls, trust_domain: TrustDomain, text: str | bytes) -> Bundle:
        """Read X.509 authorities from PEM certificates, of which there must be at least one. Raises InvalidArgument."""
        bundle = cls(trust_domain, tuple(dict.fromkeys(X509Authority(der) for der in from_pem(text))))
        bundle.validate()
        return bundle


def to_pem(certificates: Sequence[bytes]) -> str:
    """DER certificates as PEM, one after the other."""
    return "".join(pem.block("CERTIFICATE", der) for der in certificates)


def from_pem(text: str | bytes) -> list[bytes]:
    """The DER certificates of a PEM text; what stands between blocks is ignored. Raises InvalidArgument.

    The DER itself is not looked at.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    blocks = _PEM_BLOCK.findall(text)
    if not blocks or len(blocks) != text.count("-----BEGIN "):
        raise InvalidArgument("no PEM blocks" if not blocks else "a PEM block has no end; is the file cut short?")
    return [_block_content(label, content) for label, content in blocks]


def _block_content(label: str, content: str) -> bytes:
    if label != "CERTIFICATE":
        raise InvalidArgument(f'expected block type "CERTIFICATE"; got "{label}"')
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except binascii.Error as error:
        raise InvalidArgument("a PEM block is not valid base64") from error
