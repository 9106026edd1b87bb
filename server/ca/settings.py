"""What the certificate authority is given: its settings, and a place to keep its state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from identity.bundles import Bundle, JwtAuthority, WitAuthority
from identity.spiffeid import TrustDomain
from operations.errors import ConfigurationError
from plugins.keymanager import KeyType
from server.ca import names
from server.ca.names import Subject


@dataclass(frozen=True, kw_only=True, slots=True)
class CaSettings:
    """How authorities and SVIDs are made. TTLs are seconds; an `agent_ttl` of 0 is `x509_svid_ttl`.

    Without `wit_svids` there are no WIT authorities.

    Raises ConfigurationError for a subject that a certificate cannot hold.
    """

    trust_domain: TrustDomain
    ca_ttl: int = 24 * 3600
    ca_key_type: KeyType = KeyType.EC_P256
    jwt_key_type: KeyType = KeyType.EC_P256
    wit_key_type: KeyType = KeyType.EC_P256
    subject: Subject = field(default_factory=Subject)
    x509_svid_ttl: int = 3600
    jwt_svid_ttl: int = 300
    wit_svid_ttl: int = 3600
    agent_ttl: int = 0
    jwt_issuer: str = ""
    wit_issuer: str = ""
    disable_jwt_svids: bool = False
    wit_svids: bool = False

    def __post_init__(self) -> None:
        try:
            names.authority_name(self.subject, 1)
        except ValueError as error:
            raise ConfigurationError(f"ca_subject cannot stand in a certificate: {error}") from error


class AuthorityStore(Protocol):
    """Where the authorities' public halves are kept. What a call wrote is durable when it returns."""

    async def load_journal(self) -> bytes | None: ...

    async def save_journal(self, data: bytes) -> None: ...

    async def bundle(self) -> Bundle | None:
        """The trust domain's bundle as it is now."""
        ...

    async def edit(self, change: Callable[[Bundle], Bundle]) -> Bundle:
        """Replace the bundle by `change` of it, an empty one where there is none, and return it.

        `change` is pure and quick. What it raises is raised here, and nothing is changed.
        """
        ...

    async def append_x509_authority(self, der: bytes) -> None:
        """Add a root to the trust domain's bundle; one that is there already changes nothing."""
        ...

    async def append_jwt_authority(self, authority: JwtAuthority) -> None:
        """Add a JWT key to the trust domain's bundle; one that is there already changes nothing."""
        ...

    async def append_wit_authority(self, authority: WitAuthority) -> None:
        """Add a WIT key to the trust domain's bundle; one that is there already changes nothing."""
        ...

    async def prune(self, expires_before: int) -> None:
        """Take the authorities that ended before that unix second out of the bundle."""
        ...
