"""The certificate authority, as the rest of the server sees it: start, run, issue, tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from identity import der
from identity.spiffeid import SpiffeId
from operations import metrics
from operations.errors import Refused, TemporarilyUnavailable, Unsupported
from plugins.credentialcomposer import CredentialComposer
from plugins.keymanager import KeyManager
from plugins.upstreamauthority import UpstreamAuthority
from server.ca import ca_certificate, checks, conformance, names, signing
from server.ca.authorities import Authorities
from server.ca.authority import Authority, X509Ca
from server.ca.ca_certificate import BACKDATE
from server.ca.checks import ApprovedDownstream, ApprovedJwt, ApprovedWit, ApprovedX509, Kind, X509Request
from server.ca.composing import Composers, SvidContent
from server.ca.journal import Status
from server.ca.names import Subject
from server.ca.operating import AuthorityInfo, infos
from server.ca.rotation import Rotation
from server.ca.settings import AuthorityStore, CaSettings
from server.ca.template import Leaf

__all__ = [
    "ApprovedDownstream",
    "ApprovedJwt",
    "ApprovedWit",
    "ApprovedX509",
    "Authorities",
    "AuthorityInfo",
    "AuthorityStore",
    "CaSettings",
    "CertificateAuthority",
    "IssuedCa",
    "IssuedToken",
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
class IssuedToken:
    """A JWT-SVID or WIT-SVID. Times are unix seconds."""

    token: str
    spiffe_id: SpiffeId
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class IssuedCa:
    """An X.509 authority of a downstream server: DER certificates, its own first; as in IssuedX509."""

    chain: tuple[bytes, ...]
    expires_at: int


class CertificateAuthority:
    """Call `start` once, keep `run` running, and issue. `now` gives unix seconds."""

    def __init__(
        self,
        settings: CaSettings,
        key_manager: KeyManager,
        store: AuthorityStore,
        *,
        upstream: UpstreamAuthority | None = None,
        composers: Sequence[CredentialComposer] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """Without `upstream`, X.509 authorities are self-signed. `composers` are asked in their order."""
        self._settings = settings
        self._composers = Composers(composers)
        self._authorities = Authorities(settings, key_manager, store, now, upstream, self._composers)
        self._now = now

    @property
    def authorities(self) -> Authorities:
        """For operators: prepare, activate, taint, revoke."""
        return self._authorities

    async def start(self) -> None:
        """Go on with the keys of the journal, and make what is missing; afterwards SVIDs can be issued.

        Raises Corrupt for a damaged journal, and what the key manager and the store raise.
        """
        await self._authorities.start()

    async def run(self) -> NoReturn:
        """Rotate the authorities, prune the bundle and listen to the upstream authority until cancelled."""
        await self._authorities.run()

    async def close(self) -> None:
        """Stop listening to the upstream authority."""
        await self._authorities.close()

    @property
    def failed_rotations(self) -> int:
        """How often in a row the authorities could not be rotated."""
        return self._authorities.failed_rotations

    @property
    def overdue(self) -> bool:
        """Whether an authority that signs should have been replaced by now."""
        return self._authorities.overdue

    async def probe(self) -> None:
        """Let the X.509 authority's key sign what is no certificate, to see whether it can. Raises as `issue_x509`."""
        authority = self._x509(self._now())
        scheme = signing.SCHEMES[authority.key.key_type]
        await authority.key.sign(signing.digest(b"spire-server health check", scheme), scheme)

    async def issue_x509(self, approved: Sequence[ApprovedX509]) -> list[IssuedX509]:
        """Issue an X509-SVID for each approval, in order, all or none. Lifetimes end with the authority's at most.

        Raises Refused for an approval that was used or is of another trust domain, TemporarilyUnavailable while there
        is no authority, and what the key raises.
        """
        now = int(self._now())
        authority = self._x509(now)
        requests = [each.take() for each in approved]
        for request in requests:
            self._require_own(request.spiffe_id)
        leaves = await self._leaves(requests, authority, now)
        scheme = signing.SCHEMES[authority.key.key_type]

        def prepare(request_and_leaf: tuple[X509Request, Leaf]) -> tuple[bytes, bytes]:
            request, leaf = request_and_leaf
            tbs = authority.template.tbs(leaf)
            if self._composers:
                unsigned = signing.certificate(tbs, authority.template.algorithm, b"")
                conformance.check_x509_svid(unsigned, request.spiffe_id, signing.utc(now))
            return tbs, signing.digest(tbs, scheme)

        prepared = await checks.in_chunks(prepare, list(zip(requests, leaves, strict=True)))
        with metrics.call("server_key_manager", "sign"):
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

    async def issue_downstream(self, approved: ApprovedDownstream) -> IssuedCa:
        """Issue an X.509 authority for a server below this one. Raises as `issue_x509` does."""
        now = int(self._now())
        authority = self._x509(now)
        request = approved.take()
        if ca_certificate.forbids_authorities_below(authority.certificate):
            raise Refused("the upstream authority allows no further authority below this server's own (path length 0)")
        issuer = der.certificate(authority.certificate)
        content = await self._composers.x509_ca(names.downstream_name(issuer.subject, len(authority.chain)))
        not_after = min(now + (request.ttl or self._settings.ca_ttl), authority.not_after)
        certificate = await ca_certificate.below(
            ca_certificate.Issuer(authority.certificate, authority.key),
            request.public_key,
            self._settings.trust_domain,
            content,
            ca_certificate.Life(now, not_after),
        )
        conformance.check_x509_ca(certificate, self._settings.trust_domain, signing.utc(now))
        metrics.count("server_ca", "sign", "x509_ca_svid")
        return IssuedCa((certificate, *authority.upstream_chain), not_after)

    async def issue_jwt(self, approved: ApprovedJwt) -> IssuedToken:
        """Issue a JWT-SVID. Raises as `issue_x509` does, and Unsupported when JWT-SVIDs are turned off."""
        if self._settings.disable_jwt_svids:
            raise Unsupported("JWT functionality is disabled")
        now = int(self._now())
        authority = self._active(self._authorities.jwt.rotation, now, "JWT key is not available for signing")
        request = approved.take()
        self._require_own(request.spiffe_id)
        expires_at = min(now + (request.ttl or self._settings.jwt_svid_ttl), authority.not_after)
        claims: Mapping[str, Any] = authority.encoder.claims(request, now, expires_at)
        if self._composers:
            claims = await self._composers.jwt_svid(request.spiffe_id, claims)
            conformance.check_jwt_claims(claims, request.spiffe_id, now)
        token = await authority.encoder.encode(claims)
        metrics.count("server_ca", "sign", "jwt_svid")
        return IssuedToken(token, request.spiffe_id, int(claims["iat"]), int(claims["exp"]))

    async def issue_wits(self, approved: Sequence[ApprovedWit]) -> list[IssuedToken]:
        """Issue a WIT-SVID for each approval, in order, all or none. Composers are not asked, as in SPIRE.

        Raises as `issue_x509` does, and Unsupported where WIT-SVIDs are not turned on.
        """
        if not self._settings.wit_svids:
            raise Unsupported("WIT functionality is disabled")
        now = int(self._now())
        authority = self._active(self._authorities.wit.rotation, now, "WIT key is not available for signing")
        requests = [each.take() for each in approved]
        for request in requests:
            self._require_own(request.spiffe_id)
        ends = [min(now + (each.ttl or self._settings.wit_svid_ttl), authority.not_after) for each in requests]
        claims = [authority.encoder.wit_claims(each, now, end) for each, end in zip(requests, ends, strict=True)]
        tokens = await authority.encoder.encode_batch(claims)
        return [
            IssuedToken(token, request.spiffe_id, now, end)
            for token, request, end in zip(tokens, requests, ends, strict=True)
        ]

    def x509_authority(self) -> AuthorityInfo:
        """The X.509 authority that signs now. Raises TemporarilyUnavailable while there is none."""
        self._x509(self._now())
        return infos(self._authorities.x509)[0]

    def x509_authorities(self) -> list[AuthorityInfo]:
        """The active X.509 authority, then the prepared and the old one where there are any."""
        return infos(self._authorities.x509)

    def jwt_authorities(self) -> list[AuthorityInfo]:
        """The active JWT authority, then the prepared and the old one where there are any."""
        return self._authorities.jwt.infos()

    def wit_authorities(self) -> list[AuthorityInfo]:
        """The active WIT authority, then the prepared and the old one where there are any."""
        return self._authorities.wit.infos()

    def _active(self, rotation: Rotation[_A], now: float, reason: str) -> _A:
        authority = rotation.slots.current
        if authority is None or authority.not_after <= now:
            raise TemporarilyUnavailable(reason)
        return authority

    def _x509(self, now: float) -> X509Ca:
        return self._active(self._authorities.x509, now, "X509 CA is not available for signing")

    async def _leaves(self, requests: Sequence[X509Request], authority: X509Ca, now: int) -> list[Leaf]:
        if not self._composers:
            return [
                self._leaf(request, SvidContent(request.subject, request.dns_names), authority, now)
                for request in requests
            ]
        contents = await asyncio.gather(*map(self._composers.x509_svid, requests))
        return [self._leaf(*each, authority, now) for each in zip(requests, contents, strict=True)]

    def _leaf(self, request: X509Request, content: SvidContent, authority: X509Ca, now: int) -> Leaf:
        agent = request.kind is Kind.AGENT
        ttl = request.ttl or (agent and self._settings.agent_ttl) or self._settings.x509_svid_ttl
        return Leaf(
            serial=signing.new_serial(),
            not_before=now - BACKDATE,
            not_after=min(now + ttl, authority.not_after),
            subject=content.subject,
            spiffe_id=str(request.spiffe_id),
            dns_names=content.dns_names,
            public_key=request.public_key,
            extensions=content.extensions,
        )

    def _require_own(self, spiffe_id: SpiffeId) -> None:
        if spiffe_id.trust_domain != self._settings.trust_domain:
            raise Refused(f'"{spiffe_id}" is not a member of trust domain "{self._settings.trust_domain}"')
