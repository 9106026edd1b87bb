"""The bundle of another trust domain, as its endpoint gives it now (SPIFFE Federation, 5.2).

Under https_web the endpoint is known by its host's name and the CAs that this host trusts; under https_spiffe by the
SPIFFE ID that it must have, and by the bundle of that ID's trust domain, before a byte of HTTP is sent.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from identity import der, x509svid
from identity.bundles import Bundle
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, Refused, SpireError, TemporarilyUnavailable
from operations.quoting import quote
from server.config.federation import Federated
from transport.web.client import HttpClient, Response, Secure
from transport.web.spiffe import SpiffeTls
from transport.web.urls import Url

TIMEOUT = 30.0
"""Seconds for all of it: connections, redirects, the last byte."""

LARGEST = 4 * 1024 * 1024
"""Bytes of a document."""

_REDIRECTS = 10  # as Go's client
_MOVED = frozenset((301, 302, 303, 307, 308))
_OK = 200
_SHOWN = 200


class BundleFetcher:
    """`environment` may name proxies; `trusting` is that of HttpClient, and `clock` gives Unix seconds."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        require_pq_kem: bool = False,
        trusting: Callable[[], ssl.SSLContext] | None = None,
        clock: Callable[[], float] = time.time,
        timeout: float = TIMEOUT,
    ) -> None:
        self._http = HttpClient(environment, trusting)
        self._require_pq_kem = require_pq_kem
        self._clock = clock
        self._timeout = timeout

    def close(self) -> None:
        self._http.close()

    async def fetch(self, federated: Federated, endpoint_roots: Sequence[bytes] = ()) -> Bundle:
        """What the endpoint says, well-formed and no more; `endpoint_roots` are those of the endpoint's own ID, DER.

        Raises TemporarilyUnavailable when there is no answer, Refused for an endpoint that is not the one meant and for
        an answer that is none, InvalidArgument for what is no bundle.
        """
        url = Url.parse(federated.url)
        try:
            async with asyncio.timeout(self._timeout):
                secure = self._secure(federated.endpoint_id, endpoint_roots) if federated.endpoint_id else None
                response = await self._follow(url, secure)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"{url} has not answered in full within {self._timeout:g} s") from error
        _check(response, url)
        # A large one takes a while.
        return await asyncio.to_thread(_parse, federated.trust_domain, response.body)

    async def _follow(self, url: Url, secure: Secure | None) -> Response:
        """Each place that a redirect names has to prove what the first one had to (5.2.1.4, 5.2.2.4)."""
        for _ in range(_REDIRECTS + 1):
            if url.scheme != "https":
                raise Refused(f"a bundle endpoint redirects to {quote(str(url))}, without TLS: have it stay at https")
            response = await self._get(url, secure)
            location = response.header("location") if response.status in _MOVED else None
            if location is None:
                return response
            url = url.join(location)
        raise Refused(f"a bundle endpoint redirects more than {_REDIRECTS} times, at last to {quote(str(url))}")

    async def _get(self, url: Url, secure: Secure | None) -> Response:
        try:
            return await self._http.get(url, largest=LARGEST, secure=secure)
        except TemporarilyUnavailable as error:
            if secure is None and isinstance(error.__cause__, ssl.SSLCertVerificationError):
                found = await self._spiffe_id(url)
                if found is not None:
                    raise Refused(
                        "failed to authenticate bundle endpoint using web authentication but the server certificate "
                        f'contains SPIFFE ID "{found}": maybe use https_spiffe instead of https_web: {error}'
                    ) from error
            raise

    async def _spiffe_id(self, url: Url) -> SpiffeId | None:
        """That of a server which no CA of the web vouches for: to tell people, and proof of nothing."""
        seen: list[tuple[bytes, ...]] = []
        try:
            await self._http.connecting(url, SpiffeTls(seen.append, require_pq_kem=False))
            return x509svid.leaf_id(seen[0][0])
        except SpireError:
            return None

    def _secure(self, endpoint_id: SpiffeId, roots: Sequence[bytes]) -> Secure:
        now = datetime.fromtimestamp(self._clock(), UTC)
        _check_roots(endpoint_id.trust_domain, roots, now)
        return SpiffeTls(lambda chain: _verify(chain, endpoint_id, roots, now), require_pq_kem=self._require_pq_kem)


def _check_roots(trust_domain: TrustDomain, roots: Sequence[bytes], now: datetime) -> None:
    """No connection is made that nothing could come of."""
    remedy = f"give it to the server by `spire-server bundle set -id {trust_domain.id}`"
    if not roots:
        raise Refused(
            "can't perform SPIFFE Authentication: local copy of bundle not found: the endpoint is known by the bundle "
            f"of {quote(trust_domain.id)}: {remedy}"
        )
    ends = max(der.certificate(root).not_valid_after_utc for root in roots)
    if ends < now:
        raise Refused(
            f"can't perform SPIFFE Authentication: the last X.509 authority known of {quote(trust_domain.id)} expired "
            f"at {ends:%Y-%m-%dT%H:%M:%SZ}, so that its bundle does not come by itself any more: {remedy}"
        )


def _verify(chain: Sequence[bytes], endpoint_id: SpiffeId, roots: Sequence[bytes], now: datetime) -> None:
    """X509-SVID, section 5, for the one ID that the endpoint may have."""
    if not chain:
        raise Refused("the bundle endpoint shows no certificate")
    try:
        shown = x509svid.leaf_id(chain[0])
    except InvalidArgument as error:
        raise Refused(f"the bundle endpoint shows no X509-SVID: {error}: maybe it is for https_web") from error
    if shown != endpoint_id:
        raise Refused(f'the bundle endpoint shows an X509-SVID of "{shown}", and has to be "{endpoint_id}"')
    try:
        x509svid.verify(chain, {endpoint_id.trust_domain: roots}, now)
    except (InvalidArgument, Refused) as error:
        raise Refused(f'the bundle endpoint does not prove that it is "{endpoint_id}": {error}') from error


def _check(response: Response, url: Url) -> None:
    if response.status != _OK:
        said = response.body[: _SHOWN * 4].decode("utf-8", "replace").strip()
        raise Refused(f"unexpected status {response.status} fetching bundle from {url}: {quote(said[:_SHOWN])}")
    encoding = response.header("content-encoding")
    if encoding is not None and encoding.strip().lower() != "identity":
        raise Refused(f"{url} gives the bundle as {quote(encoding[:_SHOWN])}, which was not asked for")


def _parse(trust_domain: TrustDomain, document: bytes) -> Bundle:
    try:
        return Bundle.from_jwks(trust_domain, document)
    except InvalidArgument as error:
        raise InvalidArgument(f"failed to decode bundle: {error}") from error
