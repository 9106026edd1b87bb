"""The server's own X509-SVID, which its TCP listener shows: kept in memory, renewed at half of its life."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from identity import der
from identity.spiffeid import TrustDomain
from identity.tainting import is_signed_by
from operations import metrics
from operations.errors import SpireError, TemporarilyUnavailable
from operations.logs import Logger
from server.ca import checks
from server.ca.certificate_authority import CertificateAuthority
from transport.tls import InProcessIdentity, TlsContext, server_context

INTERVAL = 5.0
"""Seconds between two looks at the clock."""

RETRY = 1.0
"""Seconds that a failed renewal waits."""

REMEMBERED = 16
"""Tainted authorities, the latest: no more have signed what may be shown."""


class ServerSvid:
    """`tls()` gives the context for the next connection."""

    def __init__(
        self, authority: CertificateAuthority, trust_domain: TrustDomain, log: Logger, *, require_pq_kem: bool
    ) -> None:
        self._authority = authority
        self._trust_domain = trust_domain
        self._log = log
        self._require_pq_kem = require_pq_kem
        self._context: TlsContext | None = None
        self._identity: InProcessIdentity | None = None
        self._made_at = self._renew_at = 0.0
        self._chain: tuple[bytes, ...] = ()
        self._hurry = asyncio.Event()
        self._tainted: deque[bytes] = deque(maxlen=REMEMBERED)
        authority.authorities.on_tainted(self._distrust)

    def tls(self) -> TlsContext:
        if self._context is None:
            raise TemporarilyUnavailable("the server has no X509-SVID yet")
        return self._context

    def identity(self) -> InProcessIdentity:
        """The SVID with its key; the same object until it is renewed."""
        if self._identity is None:
            raise TemporarilyUnavailable("the server has no X509-SVID yet")
        return self._identity

    @metrics.timed("svid", "rotate")
    async def rotate(self) -> None:
        """A new key and SVID; connections that are open keep theirs. Raises SpireError."""
        self._log.debug("Rotating server SVID")
        key = ec.generate_private_key(ec.SECP256R1())
        public_key = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        approved = checks.approve_server(public_key, self._trust_domain)
        (issued,) = await self._authority.issue_x509([approved])
        private_key = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        identity = InProcessIdentity(tuple(issued.chain), private_key)
        self._identity = identity
        self._context = server_context(identity, require_pq_kem=self._require_pq_kem)
        leaf = der.certificate(issued.chain[0])
        begin, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        self._made_at, self._renew_at = begin, begin + (end - begin) / 2
        self._chain = issued.chain
        self._log.debug("Signed X509 SVID", spiffe_id=issued.spiffe_id, expiration=leaf.not_valid_after_utc)

    async def run(self) -> None:
        """Renew in time, until cancelled. By the wall clock, which jumps while the machine sleeps, or is put right."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(INTERVAL, max(self._renew_at - time.time(), RETRY))):
                    await self._hurry.wait()
            if self._made_at <= time.time() < self._renew_at and not self._hurry.is_set():
                continue
            self._hurry.clear()
            try:
                await self.rotate()
            except SpireError as error:
                self._log.error("Could not rotate server SVID", error=error)
                await asyncio.sleep(RETRY)
            # Also one that was under way when its authority was tainted, and one that could not be replaced just now.
            self._leave_tainted()

    def _distrust(self, authorities: Sequence[bytes]) -> None:
        """What signs now is no tainted authority any more: a renewal leads away from it."""
        self._tainted.extend(authorities)
        self._leave_tainted()

    def _leave_tainted(self) -> None:
        if is_signed_by(self._chain, self._tainted):
            self._log.info("Server SVID signed using a tainted authority, forcing rotation of the Server SVID")
            self._hurry.set()
