"""A serving certificate that is ordered from an ACME CA, and renewed in time."""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from operations.errors import Corrupt, SpireError
from operations.logs import Logger
from transport.acme import challenge
from transport.acme.cache import Cache, Pending
from transport.acme.checks import judged
from transport.acme.client import AcmeClient
from transport.acme.jose import AccountKeys, Signer
from transport.acme.messages import Problem
from transport.acme.ordering import Ordering, Patience, TooManyOrders
from transport.acme.settings import AcmeSettings
from transport.acme.showing import AcmeContext
from transport.tls import InProcessIdentity, TlsContext
from transport.web.client import HttpClient

BEFORE_END = timedelta(days=30)
"""When a certificate is renewed; one that lives less than three times that, in the last third of its life."""

_HOUR = 3600.0
_DAY = 24 * _HOUR


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: `look` between two looks at the clock, `retry` to `longest` before a failed order is tried again."""

    look: float = 5.0
    retry: float = 60.0
    longest: float = 3600.0
    patience: Patience = field(default_factory=Patience)


class AcmeCertificate:
    """A ServingCertificate. `keys` gives the account's key; the certificate's, a fresh P-256 one, is in `folder`."""

    def __init__(
        self,
        settings: AcmeSettings,
        keys: AccountKeys,
        folder: Path,
        log: Logger,
        *,
        times: Times | None = None,
        require_pq_kem: bool = False,
    ) -> None:
        self._settings = settings
        self._require_pq_kem = require_pq_kem
        self._keys = keys
        self._cache = Cache(folder, settings.name)
        self._log = log.bind(domain_name=settings.name, directory_url=str(settings.directory))
        self._times = times or Times()
        self._shown: InProcessIdentity | None = None
        self._proof: InProcessIdentity | None = None
        self._context = AcmeContext(settings.name, None, None, require_pq_kem=require_pq_kem)
        self.renew_at = self._ends_at = 0.0
        """Unix seconds; 0 while there is no certificate."""
        self._told_end = False

    async def start(self) -> None:
        """Shows what an earlier run left, as far as it can be shown still. Raises ConfigurationError."""
        if not self._settings.tos_accepted:
            self._log.warning("The ACME terms of service have not been accepted: read them, and set tos_accepted")
        await asyncio.to_thread(self._cache.open)
        try:
            kept = await asyncio.to_thread(self._cache.certificate)
            if kept is not None:
                self._show(judged(*kept, self._settings.name, _now()))
        except SpireError as error:
            self._log.warning("The kept certificate cannot be shown; another one is ordered", error=error)

    def tls(self) -> TlsContext:
        """Ends the handshake with an alert for clients of another name, or while there is no certificate."""
        return self._context

    async def run(self) -> None:
        web = HttpClient(os.environ)
        clock = asyncio.get_running_loop().time
        failures, try_at = 0, clock()
        try:
            while True:
                # By the wall clock, which jumps while the machine sleeps, or is put right.
                if time.time() >= self.renew_at and clock() >= try_at:
                    failures, wait = await self._try(web, failures)
                    try_at = clock() + wait
                self._tell_end()
                await asyncio.sleep(self._times.look)
        finally:
            web.close()

    async def _try(self, web: HttpClient, failures: int) -> tuple[int, float]:
        """Order once. Returns how often that failed by now, and for how many seconds it is not tried again."""
        try:
            await self._order(web)
        except TooManyOrders as error:
            self._log.warning("No certificate is ordered for now", error=error)
            return failures, error.wait
        except SpireError as error:
            wait = min(self._times.retry * 2 ** min(failures, 16), self._times.longest)
            wait *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter
            if isinstance(error, Problem):
                wait = max(wait, min(error.retry_after, _DAY))
            self._log.error("Could not get a certificate by ACME", error=error, retry_in=f"{wait:.0f}s")
            return failures + 1, wait
        return 0, self._times.retry

    async def _order(self, web: HttpClient) -> None:
        """Raises SpireError; what was shown stays."""
        client = AcmeClient(web, self._settings.directory, Signer(await self._keys()))
        ordering = Ordering(client, self._settings, self._keep, self.prove, self._times.patience)
        pending = await self._pending()
        chain, key = await ordering.certificate(pending)
        try:
            identity = judged(chain, key, self._settings.name, _now())
        except SpireError:
            # Or it would be taken up again; it still counts as one of the hour's.
            await self._keep(Pending(began=(await self._pending()).began))
            raise
        await asyncio.to_thread(self._cache.keep_certificate, chain, key)
        self._show(identity)
        await self._keep(Pending())
        self._log.info("Certificate obtained by ACME", expiration=_moment(self._ends_at), path=self._cache.place)

    async def _pending(self) -> Pending:
        try:
            pending = await asyncio.to_thread(self._cache.pending)
            if pending.url:
                pending.private_key()
        except Corrupt as error:
            self._log.warning("The pending order cannot be taken up; another one begins", error=error)
            return Pending()
        return pending

    async def _keep(self, pending: Pending) -> None:
        await asyncio.to_thread(self._cache.keep_pending, pending)

    def _show(self, identity: InProcessIdentity) -> None:
        leaf = x509.load_der_x509_certificate(identity.chain[0])
        begin, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        before = min(BEFORE_END.total_seconds(), (end - begin) / 3)
        # Those who began together do not ask together.
        self.renew_at = end - before - random.uniform(0.0, min(_HOUR, before / 30))  # noqa: S311
        self._ends_at = end
        self._told_end = False
        self._shown = identity
        self._context = AcmeContext(self._settings.name, identity, self._proof, require_pq_kem=self._require_pq_kem)

    def prove(self, authorization: str | None) -> None:
        """Shows validators the proof of a key authorization, until None ends that."""
        name = self._settings.name
        self._proof = None if authorization is None else challenge.answer(name, authorization)
        self._context = AcmeContext(name, self._shown, self._proof, require_pq_kem=self._require_pq_kem)

    def _tell_end(self) -> None:
        if self._shown is not None and not self._told_end and time.time() >= self._ends_at:
            self._told_end = True
            self._log.error("The certificate has expired, and clients refuse it", expiration=_moment(self._ends_at))


def _now() -> datetime:
    return datetime.now(UTC)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
