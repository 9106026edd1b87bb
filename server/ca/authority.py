"""Authorities: a key, how long it may sign, and what verifiers know it by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from identity import der, tainting
from identity.bundles import JwtAuthority
from plugins.keymanager import Key
from server.ca import signing
from server.ca.journal import JwtRecord, Status, X509Record
from server.ca.jwt import JwtEncoder
from server.ca.template import LeafTemplate


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
class JwtSigner:
    """A key with its key id; `encoder` makes its tokens."""

    slot: str
    issued_at: int
    not_after: int
    authority_id: str
    key: Key
    encoder: JwtEncoder

    def log_fields(self) -> Mapping[str, object]:
        return _log_fields(self)

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


def _log_fields(authority: Authority) -> Mapping[str, object]:
    return {
        "slot": authority.slot,
        "issued_at": signing.utc(authority.issued_at),
        "expiration": signing.utc(authority.not_after),
        "local_authority_id": authority.authority_id,
    }
