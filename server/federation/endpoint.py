"""The bundle endpoint (SPIFFE Federation, section 5): this trust domain's bundle over HTTPS, for anybody."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from identity import jwks
from identity.bundles import Bundle
from keystores.inspection import Use
from operations import duration, logs
from operations.errors import ConfigurationError, InvalidArgument, SpireError
from operations.http import JSON, Request, Response
from operations.logs import Logger
from server.config.federation import BundleEndpoint
from transport.http import HttpServer, Times
from transport.limits import Limits
from transport.serving import ServingCertificate

SETTINGS: Final = "address and port of federation.bundle_endpoint"

LIMITS: Final = Limits(connections=512, handshake=10.0)
TIMES: Final = Times(idle=15.0)

GetBundle = Callable[[], Awaitable[Bundle | None]]


class Documents:
    """Answers requests. The document is made once for as long as the bundle stays the same."""

    def __init__(self, bundle: GetBundle, refresh_hint: timedelta, log: Logger) -> None:
        self._bundle = bundle
        self._refresh_hint = int(refresh_hint.total_seconds())
        self._log = log
        self._made: tuple[Bundle, Response] | None = None

    async def respond(self, request: Request) -> Response:
        """GET / has the document; texts and statuses are SPIRE's."""
        if request.method != "GET":
            return Response(405, b"405 method not allowed\n")
        if request.path != "/":
            return Response(404, b"404 page not found\n")
        try:
            bundle = await self._bundle()
        except SpireError as error:
            self._log.error("Unable to retrieve local bundle", error=error)
            return Response(500, b"500 unable to retrieve local bundle\n")
        if bundle is None:
            self._log.error("Unable to retrieve local bundle", error="trust domain bundle not found")
            return Response(500, b"500 unable to retrieve local bundle\n")
        try:
            return self._document(bundle)
        except InvalidArgument as error:
            self._log.error("Unable to marshal local bundle", error=error)
            return Response(500, b"500 unable to marshal local bundle\n")

    def _document(self, bundle: Bundle) -> Response:
        if self._made is None or self._made[0] != bundle:
            text = jwks.dump(replace(bundle, refresh_hint=self._refresh_hint))
            self._made = bundle, Response(200, text.encode(), JSON)
        return self._made[1]


class Endpoint:
    """The HTTPS server."""

    def __init__(
        self,
        settings: BundleEndpoint,
        certificate: ServingCertificate,
        bundle: GetBundle,
        log: Logger,
        uses: Callable[[], Sequence[Use]] = tuple,
    ) -> None:
        self._settings = settings
        self._certificate = certificate
        self.uses = uses
        """What it uses keys of the key manager for."""
        self._server = HttpServer(Documents(bundle, settings.refresh_hint, log).respond, limits=LIMITS, times=TIMES)

    async def listen(self) -> int:
        """Returns the port. Raises SpireError for an address or a certificate that cannot be used."""
        try:
            await self._certificate.start()
        except ConfigurationError as error:
            raise ConfigurationError(f"federation.bundle_endpoint: {error}") from error
        host = self._settings.address
        port = await self._server.listen_tcp(host, self._settings.port, SETTINGS, tls=self._certificate.tls)
        shown = f"[{host}]" if ":" in host else host
        hint = duration.text(self._settings.refresh_hint)
        logs.get("endpoints").info("Serving bundle endpoint", addr=f"{shown}:{port}", refresh_hint=hint)
        return port

    async def run(self) -> None:
        """Keep the certificate fresh until cancelled."""
        await self._certificate.run()

    async def drain(self, grace: float) -> None:
        await self._server.drain(grace)
