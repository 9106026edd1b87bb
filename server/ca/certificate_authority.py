"""The certificate authority, as the rest of the server sees it: start, run, issue, tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from identity.spiffeid import SpiffeId
from operations import metrics
from operations.errors import Refused, TemporarilyUnavailable, Unsupported
from plugins.keymanager import KeyManager
from server.ca import checks, signing
from server.ca.authorities import Authorities
from server.ca.authority import BACKDATE, Authority, X509Ca
from server.ca.checks import ApprovedJwt, ApprovedX509, X509Request
from server.ca.journal import Status
from server.ca.names import Subject
from server.ca.rotation import Rotation
from server.ca.settings import AuthorityStore, CaSettings
from server.ca.template import Leaf

__all__ = [
    "ApprovedJwt",
    "ApprovedX509",
    "AuthorityInfo",
    "AuthorityStore",
    "CaSettings",
    "CertificateAuthority",
    "IssuedJwt",
    "IssuedX509",
    "Status",
    "Subject",
]

_A = TypeVar("_A", bound=Authority)


@dataclass(frozen=True, slots=True)
class IssuedX509:
    """An X509-SVID: DER certificates, leaf first, then the upstream chain. `expires_at` is in unix seconds."""

    chain: tuple[bytes, ...]
    spiffe_id: SpiffeId
    expires_at: int
    serial: int


@dataclass(frozen=True, slots=True)
class IssuedJwt:
    """A JWT-SVID. Times are unix seconds."""

    token: str
    spiffe_id: SpiffeId
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class AuthorityInfo:
    """An authority by its id: the hex subject key identifier, or the JWT key id. `expires_at` is in unix seconds."""

    authority_id: str
    status: Status
    expires_at: int


class CertificateAuthority:
    """Call `start` once, keep `run` running, and issue. `now` gives unix seconds."""

    def __init__(
        self,
        settings: CaSettings,
        key_manager: KeyManager,
        store: AuthorityStore,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._authorities = Authorities(settings, key_manager, store, now)
        self._now = now

    async def start(self) -> None:
        """Go on with the keys of the journal, and make what is missing; afterwards SVIDs can be issued.

        Raises Corrupt for a damaged journal, and what the key manager and the store raise.
        """
        await self._authorities.start()

    async def run(self) -> NoReturn:
        """Rotate the authorities and prune the bundle until cancelled."""
        await self._authorities.run()

    @property
    def failed_rotations(self) -> int:
        """How often in a row the authorities could not be rotated."""
        return self._authorities.failed_rotations

    async def probe(self) -> None:
        """Let the X.509 authority's key sign what is no certificate, to see whether it can. Raises as `issue_x509`."""
        authority = self._active(self._authorities.x509, self._now(), "X509 CA is not available for signing")
        scheme = signing.SCHEMES[authority.key.key_type]
        await authority.key.sign(signing.digest(b"spire-server health check", scheme), scheme)

    async def issue_x509(self, approved: Sequence[ApprovedX509]) -> list[IssuedX509]:
        """Issue an X509-SVID for each approval, in order, all or none. Lifetimes end with the authority's at most.

        Raises Refused for an approval that was used or is of another trust domain, TemporarilyUnavailable while there
        is no authority, and what the key raises.
        """
        now = int(self._now())
        authority = self._active(self._authorities.x509, now, "X509 CA is not available for signing")
        requests = [each.take() for each in approved]
        leaves = [self._leaf(request, authority, now) for request in requests]
        scheme = signing.SCHEMES[authority.key.key_type]

        def prepare(leaf: Leaf) -> tuple[bytes, bytes]:
            tbs = authority.template.tbs(leaf)
            return tbs, signing.digest(tbs, scheme)

        prepared = await checks.in_chunks(prepare, leaves)
        signatures = await authority.key.sign_batch([digest for _, digest in prepared], scheme)
        metrics.count("server_ca", "sign", "x509_svid", by=len(signatures))
        algorithm = authority.template.algorithm
        return [
            IssuedX509(
                chain=(signing.certificate(tbs, algorithm, signature), *authority.upstream_chain),
                spiffe_id=request.spiffe_id,
                expires_at=leaf.not_after,
                serial=leaf.serial,
            )
            for request, leaf, (tbs, _), signature in zip(requests, leaves, prepared, signatures, strict=True)
        ]

    async def issue_jwt(self, approved: ApprovedJwt) -> IssuedJwt:
        """Issue a JWT-SVID. Raises as `issue_x509` does, and Unsupported when JWT-SVIDs are turned off."""
        if self._settings.disable_jwt_svids:
            raise Unsupported("JWT functionality is disabled")
        now = int(self._now())
        authority = self._active(self._authorities.jwt, now, "JWT key is not available for signing")
        request = approved.take()
        self._require_own(request.spiffe_id)
        expires_at = min(now + (request.ttl or self._settings.jwt_svid_ttl), authority.not_after)
        token = await authority.encoder.encode(request, now, expires_at)
        metrics.count("server_ca", "sign", "jwt_svid")
        return IssuedJwt(token, request.spiffe_id, now, expires_at)

    def x509_authority(self) -> AuthorityInfo:
        """The X.509 authority that signs now. Raises TemporarilyUnavailable while there is none."""
        authority = self._active(self._authorities.x509, self._now(), "X509 CA is not available for signing")
        return AuthorityInfo(authority.authority_id, Status.ACTIVE, authority.not_after)

    def x509_authorities(self) -> list[AuthorityInfo]:
        """The active X.509 authority, then the prepared and the old one where there are any."""
        return _infos(self._authorities.x509)

    def jwt_authorities(self) -> list[AuthorityInfo]:
        """The active JWT authority, then the prepared and the old one where there are any."""
        return _infos(self._authorities.jwt)

    def _active(self, rotation: Rotation[_A], now: float, reason: str) -> _A:
        authority = rotation.slots.current
        if authority is None or authority.not_after <= now:
            raise TemporarilyUnavailable(reason)
        return authority

    def _leaf(self, request: X509Request, authority: X509Ca, now: int) -> Leaf:
        self._require_own(request.spiffe_id)
        ttl = request.ttl or (request.agent and self._settings.agent_ttl) or self._settings.x509_svid_ttl
        return Leaf(
            serial=signing.new_serial(),
            not_before=now - BACKDATE,
            not_after=min(now + ttl, authority.not_after),
            subject=request.subject,
            spiffe_id=str(request.spiffe_id),
            dns_names=request.dns_names,
            public_key=request.public_key,
        )

    def _require_own(self, spiffe_id: SpiffeId) -> None:
        if spiffe_id.trust_domain != self._settings.trust_domain:
            raise Refused(f'"{spiffe_id}" is not a member of trust domain "{self._settings.trust_domain}"')


def _infos(rotation: Rotation[_A]) -> list[AuthorityInfo]:
    return [
        AuthorityInfo(authority.authority_id, status, authority.not_after)
        for authority, status in rotation.slots.with_status()
    ]
