"""Authorities: a key, how long it may sign, and what verifiers know it by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from identity import der, tainting
from identity.bundles import Bundle, JwtAuthority, WitAuthority
from plugins.keymanager import Key
from server.ca import signing
from server.ca.journal import Status, TokenRecord, X509Record
from server.ca.jwt import TokenEncoder
from server.ca.template import LeafTemplate


class Authority(Protocol):
    """What rotation needs of each kind. Times are unix seconds."""

    @property
    def slot(self) -> str: ...
    @property
    def authority_id(self) -> str: ...
    @property
    def issued_at(self) -> int: ...
    @property
    def not_after(self) -> int: ...

    def log_fields(self) -> Mapping[str, object]:
        """What a log line says of it, by SPIRE's names."""
        ...


@dataclass(frozen=True, slots=True)
class X509Ca:
    """A key with its DER CA certificate; `template` makes its leaves. The id is the hex subject key identifier.

    `upstream_id` is that of who signed it, "" for a self-signed one; `upstream_chain`, its own certificate first, is
    what leaves bring along for verifiers that know the upstream's roots.
    """

    slot: str
    issued_at: int
    not_after: int
    authority_id: str
    upstream_id: str
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
            upstream_id=tainting.authority_key_id(certificate) if upstream_chain else "",
            key=key,
            certificate=certificate,
            upstream_chain=upstream_chain,
            template=LeafTemplate(parsed, key.key_type),
        )

    @property
    def chain(self) -> tuple[bytes, ...]:
        """Its certificate and what stands above it below the roots, DER."""
        return self.upstream_chain or (self.certificate,)

    def log_fields(self) -> Mapping[str, object]:
        return {
            **_log_fields(self),
            "self_signed": not self.upstream_chain,
            "upstream_authority_id": self.upstream_id,
        }

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
class TokenKind:
    """What differs between the authorities of JWT-SVIDs and those of WIT-SVIDs.

    `name` is what log lines call one, `title` what people do, `metric` is a word of its metrics; `signer` begins the id
    of its key, and `header_type` is its tokens' `typ`. `field` is their place in a bundle.
    """

    name: str
    title: str
    metric: str
    signer: str
    header_type: str
    field: Literal["jwt_authorities", "wit_authorities"]
    taint: Callable[[Bundle, str], Bundle]
    revoke: Callable[[Bundle, str], Bundle]

    def key_id(self, slot: str) -> str:
        """The key manager's id of the key in that slot, as SPIRE names it."""
        return f"{self.signer}-{slot}"

    def published(self, bundle: Bundle | None) -> Sequence[JwtAuthority | WitAuthority]:
        found: Sequence[JwtAuthority | WitAuthority] = getattr(bundle, self.field) if bundle is not None else ()
        return found


JWT = TokenKind(
    "JWT key", "JWT", "jwt_key", "JWT-Signer", "JWT", "jwt_authorities", tainting.taint_jwt, tainting.revoke_jwt
)
WIT = TokenKind(
    "WIT key", "WIT", "wit_key", "WIT-Signer", "wit+jwt", "wit_authorities", tainting.taint_wit, tainting.revoke_wit
)


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """A key with its key id; `encoder` makes its tokens."""

    slot: str
    issued_at: int
    not_after: int
    authority_id: str
    key: Key
    encoder: TokenEncoder

    def log_fields(self) -> Mapping[str, object]:
        return _log_fields(self)

    def record(self, status: Status) -> TokenRecord:
        return TokenRecord(
            slot=self.slot,
            status=status,
            issued_at=self.issued_at,
            not_after=self.not_after,
            key_id=self.authority_id,
            public_key=self.key.public_key,
        )

    def jwt_authority(self) -> JwtAuthority:
        return JwtAuthority(self.authority_id, self.key.public_key, self.not_after)

    def wit_authority(self) -> WitAuthority:
        return WitAuthority(self.authority_id, self.key.public_key, self.not_after)


def _log_fields(authority: Authority) -> Mapping[str, object]:
    return {
        "slot": authority.slot,
        "issued_at": signing.utc(authority.issued_at),
        "expiration": signing.utc(authority.not_after),
        "local_authority_id": authority.authority_id,
    }
