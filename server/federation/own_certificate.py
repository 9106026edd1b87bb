"""The server's own X509-SVID as a serving certificate: the https_spiffe profile (SPIFFE Federation, section 5.2.2)."""

from __future__ import annotations

import asyncio

from server.own_svid import ServerSvid
from transport.tls import InProcessIdentity, TlsContext, web_context


class OwnCertificate:
    """A ServingCertificate. The SVID is renewed elsewhere; this follows it."""

    def __init__(self, svid: ServerSvid, *, require_pq_kem: bool) -> None:
        self._svid = svid
        self._require_pq_kem = require_pq_kem
        self._shown: tuple[InProcessIdentity, TlsContext] | None = None

    async def start(self) -> None:
        self.tls()

    def tls(self) -> TlsContext:
        identity = self._svid.identity()
        if self._shown is None or self._shown[0] is not identity:
            self._shown = identity, web_context(identity, require_pq_kem=self._require_pq_kem)
        return self._shown[1]

    async def run(self) -> None:
        await asyncio.Event().wait()  # nothing to do, until cancelled
