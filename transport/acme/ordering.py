"""One certificate, from the account to the chain (RFC 8555, 7.3 to 7.4): a loop over what the order says it is.

The order and its key are kept before anything depends on them, so whoever is killed goes on with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from operations.errors import Refused, TemporarilyUnavailable
from transport.acme import challenge
from transport.acme.cache import Pending
from transport.acme.challenge import private_bytes
from transport.acme.client import AcmeClient
from transport.acme.jose import base64url
from transport.acme.messages import Authorization, Document, Identifier, Order, Problem, reasons
from transport.acme.settings import AcmeSettings

MOST_ORDERS = 4
"""New orders within an hour: CAs let a name fail five times in one."""
HOUR = 3600
_CHAIN = "application/pem-certificate-chain"
_MOST_AUTHORIZATIONS = 4

Prove = Callable[[str | None], None]
"""Shows validators the proof of a key authorization; None ends that."""


class TooManyOrders(TemporarilyUnavailable):
    """As many as an hour may have. `wait` is until the next may begin, in seconds."""

    def __init__(self, wait: float) -> None:
        self.wait = wait
        super().__init__(f"{MOST_ORDERS} orders were begun within an hour: the next may begin in {wait:.0f} s")


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds between two looks at an object that is to change, growing to `longest`; and for all of them."""

    first: float = 1.0
    longest: float = 10.0
    whole: float = 300.0


class Ordering:
    """`keep` makes a pending order durable; `prove` is told of challenges. Raises as AcmeClient does."""

    def __init__(
        self,
        client: AcmeClient,
        settings: AcmeSettings,
        keep: Callable[[Pending], Awaitable[None]],
        prove: Prove,
        patience: Patience,
    ) -> None:
        self._client = client
        self._settings = settings
        self._keep = keep
        self._prove = prove
        self._patience = patience

    async def certificate(self, pending: Pending) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
        """The chain, PEM, and its key, of the pending order or of a new one. Raises TooManyOrders too."""
        await self._account()
        pending, order = await self._taken_up(pending) or await self._begun(pending)
        key = pending.private_key()
        deadline = time.monotonic() + self._patience.whole
        wait, asked = self._patience.first, 0.0
        while order.status != "valid":
            if order.status == "invalid":
                raise Problem("ordering a certificate", order.error or Document("about:blank", "the order is invalid"))
            if order.status == "pending":
                await self._authorize(order, deadline)
            if order.status == "ready":
                order = await self._finalize(order, key)
                continue
            wait = await self._pause(wait, asked, deadline, f"the order is {order.status} still")
            order, answer = await self._client.fetch(pending.url, Order, "looking at the order")
            asked = answer.wait
        chain = await self._client.post(order.certificate, None, "fetching the certificate", content=_CHAIN)
        return chain.body, key

    async def _account(self) -> None:
        """The account of the key, made where there is none: asking is the same request (RFC 8555, 7.3)."""
        client, settings = self._client, self._settings
        directory = await client.directory()
        terms = directory.meta.terms_of_service
        if terms and not settings.tos_accepted:
            raise Refused(
                f"the ACME server's terms of service, {terms[:200]}, are not accepted: read them, and set tos_accepted"
            )
        wanted: dict[str, object] = {"termsOfServiceAgreed": settings.tos_accepted}
        if settings.email:
            wanted["contact"] = [f"mailto:{settings.email}"]
        doing = "asking for an account"
        answer = await client.post(directory.new_account, wanted, doing)
        if not answer.location:
            raise Refused(f"{doing}: the ACME server names no account")
        client.account = answer.location

    async def _taken_up(self, pending: Pending) -> tuple[Pending, Order] | None:
        """The order that is under way, from before a restart say; None for none, and for one that is over."""
        if not pending.url or pending.directory != str(self._settings.directory):
            return None
        try:
            order, _ = await self._client.fetch(pending.url, Order, "taking up the pending order")
        except Problem as problem:
            if problem.kind in ("rateLimited", "serverInternal"):
                raise
            return None
        return None if order.status == "invalid" else (pending, order)

    async def _begun(self, pending: Pending) -> tuple[Pending, Order]:
        now = int(time.time())
        began = tuple(each for each in pending.began if now - HOUR < each <= now)
        if len(began) >= MOST_ORDERS:
            raise TooManyOrders(began[-MOST_ORDERS] + HOUR - now)
        key = ec.generate_private_key(ec.SECP256R1())
        pending = Pending(str(self._settings.directory), "", private_bytes(key), (*began, now))
        await self._keep(pending)
        doing = "ordering a certificate"
        directory = await self._client.directory()
        wanted = {"identifiers": [Identifier("dns", self._settings.name)]}
        order, answer = await self._client.fetch(directory.new_order, Order, doing, wanted)
        if not answer.location:
            raise Refused(f"{doing}: the ACME server names no order")
        pending = msgspec.structs.replace(pending, url=answer.location)
        await self._keep(pending)
        return pending, order

    async def _authorize(self, order: Order, deadline: float) -> None:
        if len(order.authorizations) > _MOST_AUTHORIZATIONS:
            raise Refused(f"the ACME server wants {len(order.authorizations)} authorizations for one name")
        for url in order.authorizations:
            authorization, _ = await self._look(url)
            if authorization.status == "pending":
                await self._answer(authorization, url, deadline)
            elif authorization.status != "valid":
                raise Problem("proving the domain", reasons(authorization))

    async def _look(self, url: str) -> tuple[Authorization, float]:
        """What has become of it, and for how long the server asks to wait before the next look."""
        found, answer = await self._client.fetch(url, Authorization, "looking at the authorization")
        if found.identifier != Identifier("dns", self._settings.name):
            raise Refused("proving the domain: the ACME server wants a proof for another name than was ordered")
        return found, answer.wait

    async def _answer(self, authorization: Authorization, url: str, deadline: float) -> None:
        """Answer the challenge and wait for the verdict."""
        offered = [each for each in authorization.challenges if each.type == challenge.TYPE]
        if not offered:
            raise Refused(
                f"proving the domain: the ACME server offers no {challenge.TYPE}, and nothing else is done here"
            )
        self._prove(challenge.key_authorization(offered[0].token, self._client.signer.thumbprint))
        try:
            if offered[0].status == "pending":
                await self._client.post(offered[0].url, {}, "answering the challenge")
            wait, asked = self._patience.first, 0.0
            while authorization.status == "pending":
                wait = await self._pause(wait, asked, deadline, "the ACME server has not looked at the proof")
                authorization, asked = await self._look(url)
        finally:
            self._prove(None)
        if authorization.status != "valid":
            raise Problem("proving the domain", reasons(authorization))

    async def _finalize(self, order: Order, key: ec.EllipticCurvePrivateKey) -> Order:
        names = x509.SubjectAlternativeName([x509.DNSName(self._settings.name)])
        request = (
            x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
        )
        csr = base64url(request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
        finalized, _ = await self._client.fetch(order.finalize, Order, "asking for the certificate", {"csr": csr})
        return finalized

    async def _pause(self, wait: float, asked: float, deadline: float, found: str) -> float:
        """Sleep, for as long as the server asks within bounds. Returns the next wait."""
        patience = self._patience
        seconds = max(wait, min(asked, patience.longest))
        if time.monotonic() + seconds > deadline:
            raise TemporarilyUnavailable(f"{found}, after {patience.whole:g} s; it is looked at again later")
        await asyncio.sleep(seconds)
        return min(wait * 2, patience.longest)
