"""UpstreamAuthority "spire": another SPIRE server of the same trust domain signs this one's authority.

The server is a workload of an agent of the upstream server, with a downstream entry: it shows the SVID that the
Workload API gives it. The upstream's bundle is asked for again and again, since new and tainted authorities come in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import msgspec
from google.protobuf.message import Message

from generated.spiffe.workload import workload_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2 as types
from identity import der, x509svid
from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.spiffeid import TrustDomain, server_id
from operations.errors import (
    InvalidArgument,
    PermanentlyUnusable,
    Refused,
    SpireError,
    TemporarilyUnavailable,
    Unsupported,
)
from operations.logs import Logger
from plugins.upstreamauthority import LocalBundle, MintedX509Ca, PublishedJwtKeys, no_updates
from transport.client import Channel
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity, client_context

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "spire"
POLL_INTERVAL = 5.0
TIMEOUT = 20.0
RETRY = 1.0
PATIENCE = 30.0
"""Seconds."""

_HEADER = {"workload.spiffe.io": "true"}
_PASSING = frozenset((Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.CANCELLED))

R = TypeVar("R", bound=Message)
Told = tuple[Sequence[X509Authority], Sequence[JwtAuthority]]


class Experimental(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    workload_api_named_pipe_name: str = ""
    require_pq_kem: bool = False

    def __post_init__(self) -> None:
        if self.workload_api_named_pipe_name:
            raise ValueError(
                "workload_api_named_pipe_name is not supported on this platform; please use workload_api_socket instead"
            )


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The upstream server, and the socket of the Workload API where this one gets its identity."""

    server_address: str = ""
    server_port: int = 0
    workload_api_socket: str = ""
    experimental: Experimental = Experimental()

    def __post_init__(self) -> None:
        for name in ("server_address", "server_port", "workload_api_socket"):
            if not getattr(self, name):
                raise ValueError(f"{name} is required")
        if not 0 < self.server_port < 65536:
            raise ValueError(f"server_port {self.server_port} is no port: use 1 to 65535")


@dataclass(frozen=True, slots=True)
class _Credentials:
    """What the Workload API gave: an X509-SVID with its key, and the roots that the upstream server is known by."""

    identity: InProcessIdentity
    roots: Sequence[bytes]
    renew_at: float


class SpireAuthority:
    def __init__(self, configuration: Configuration, trust_domain: TrustDomain, log: Logger) -> None:
        self._configuration = configuration
        self._trust_domain = trust_domain
        self._log = log
        self._credentials: _Credentials | None = None

    @property
    def name(self) -> str:
        return NAME

    async def mint_x509_ca(self, csr: bytes, preferred_ttl: int) -> MintedX509Ca:
        """Tries until it gets through: an agent may be about to learn of this server's entry."""
        request = svid_pb2.NewDownstreamX509CARequest(csr=csr, preferred_ttl=preferred_ttl)
        minted = await self._trying(
            lambda: self._ask("svid.v1.SVID/NewDownstreamX509CA", request, svid_pb2.NewDownstreamX509CAResponse),
            "unable to request a new Downstream X509CA",
        )
        # The answer's own authorities do not say which of them are tainted.
        bundle = await self._bundle()
        return MintedX509Ca(tuple(minted.ca_cert_chain), bundle.x509_authorities, no_updates())

    async def publish_jwt_key(self, key: JwtAuthority) -> PublishedJwtKeys:
        request = bundle_pb2.PublishJWTAuthorityRequest()
        request.jwt_authority.key_id = key.key_id
        request.jwt_authority.public_key = key.public_key
        request.jwt_authority.expires_at = key.expires_at
        with _telling("failed to push JWT authority"):
            response = await self._ask(
                "bundle.v1.Bundle/PublishJWTAuthority", request, bundle_pb2.PublishJWTAuthorityResponse
            )
        published = types.Bundle(trust_domain=self._trust_domain.name, jwt_authorities=response.jwt_authorities)
        return PublishedJwtKeys(self._read(published).jwt_authorities, no_updates())

    async def subscribe_to_local_bundle(self) -> LocalBundle:
        bundle = await self._bundle()
        told: Told = (bundle.x509_authorities, bundle.jwt_authorities)
        return LocalBundle(*told, _Polled(self._bundle, told, self._log))

    async def close(self) -> None:
        self._credentials = None

    async def _bundle(self) -> Bundle:
        with _telling("failed to fetch bundle from upstream server"):
            message = await self._ask("bundle.v1.Bundle/GetBundle", bundle_pb2.GetBundleRequest(), types.Bundle)
        return self._read(message)

    def _read(self, message: types.Bundle) -> Bundle:
        bundle = Bundle.from_proto(message)
        if bundle.trust_domain != self._trust_domain:
            raise Refused(
                f'the upstream server is of trust domain "{bundle.trust_domain}", not of "{self._trust_domain}"'
            )
        bundle.validate()
        return bundle

    async def _trying(self, call: Callable[[], Awaitable[R]], what: str) -> R:
        """Until it succeeds, is refused for good, or has failed for long enough: then the last failure is raised."""
        end = time.monotonic() + PATIENCE
        told = ""
        while True:
            try:
                with _telling(what):
                    return await call()
            except TemporarilyUnavailable as error:
                if time.monotonic() > end:
                    raise
                if str(error) != told:
                    told = str(error)
                    self._log.warning("The upstream server cannot be asked yet; trying again", error=error)
            await asyncio.sleep(RETRY)

    async def _ask(self, method: str, request: Message, response: type[R]) -> R:
        """One call, over a connection of its own: so it always shows the current SVID, and calls are rare.

        A failure may come from credentials that are not current any more, such as after a revocation: once more then.
        """
        known = self._credentials
        if known is not None and time.time() < known.renew_at:
            try:
                return await self._call(known, method, request, response)
            except SpireError as error:
                self._log.debug("A call of the upstream server failed; trying with fresh credentials", error=error)
        self._credentials = None
        fresh = await self._fetch()
        answer = await self._call(fresh, method, request, response)
        self._credentials = fresh
        return answer

    async def _call(self, credentials: _Credentials, method: str, request: Message, response: type[R]) -> R:
        configuration = self._configuration
        channel = Channel.tcp(
            configuration.server_address,
            configuration.server_port,
            lambda: client_context(credentials.identity, require_pq_kem=configuration.experimental.require_pq_kem),
            lambda chain: self._verify(chain, credentials.roots),
        )
        async with channel:
            return await channel.unary(f"/spire.api.server.{method}", request, response, timeout=TIMEOUT)

    def _verify(self, chain: Sequence[bytes], roots: Sequence[bytes]) -> None:
        found = x509svid.verify(chain, {self._trust_domain: roots}, datetime.now(UTC))
        if found != server_id(self._trust_domain):
            raise Refused(f'unexpected upstream server: its SPIFFE ID is "{found}"')

    async def _fetch(self) -> _Credentials:
        """From the Workload API. Raises SpireError."""
        path = self._configuration.workload_api_socket.removeprefix("unix:")
        async with Channel.unix(path) as channel:
            stream = channel.server_stream(
                "/SpiffeWorkloadAPI/FetchX509SVID",
                workload_pb2.X509SVIDRequest(),
                workload_pb2.X509SVIDResponse,
                timeout=TIMEOUT,
                metadata=_HEADER,
            )
            async with aclosing(stream):
                async for response in stream:
                    return _credentials(response)
        raise TemporarilyUnavailable("the Workload API ended its stream before it gave an X509-SVID")


class _Polled:
    """The bundle whenever it is another. There is nothing to close: no connection is held."""

    def __init__(self, fetch: Callable[[], Awaitable[Bundle]], known: Told, log: Logger) -> None:
        self._fetch = fetch
        self._known = known
        self._log = log

    async def __aiter__(self) -> AsyncIterator[Told]:
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            try:
                bundle = await self._fetch()
            except SpireError as error:
                self._log.warning("Failed to fetch bundle while polling", error=error)
                continue
            told: Told = (bundle.x509_authorities, bundle.jwt_authorities)
            if told != self._known:
                self._known = told
                yield told

    async def aclose(self) -> None:
        """Nothing is held."""


def _credentials(response: workload_pb2.X509SVIDResponse) -> _Credentials:
    """The default SVID, which is the first (SPIFFE Workload API, 5.3)."""
    if not response.svids:
        raise TemporarilyUnavailable("the Workload API has no X509-SVID for this server")
    svid = response.svids[0]
    chain, roots = der.split(svid.x509_svid), der.split(svid.bundle)
    if not chain or not roots:
        raise InvalidArgument("the Workload API gave an X509-SVID without certificates")
    leaf = der.certificate(chain[0])
    begins, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    identity = InProcessIdentity(tuple(chain), svid.x509_svid_key)
    return _Credentials(identity, tuple(roots), begins + (ends - begins) / 2)


@contextmanager
def _telling(what: str) -> Generator[None]:
    """Turn the status of a call into an error of this boundary."""
    try:
        yield
    except RpcError as error:
        text = f"{what}: {error}"
        if error.code is Code.UNIMPLEMENTED:
            raise Unsupported(text) from error
        if error.code in _PASSING or error.code is Code.PERMISSION_DENIED:
            # Denied is also what stands before its entry has come around.
            raise TemporarilyUnavailable(text) from error
        raise PermanentlyUnusable(text) from error


async def load(configuration: Configuration, context: PluginContext) -> SpireAuthority:
    return SpireAuthority(configuration, TrustDomain(context.trust_domain), context.log)
