"""What an HTTPS server shows: a certificate with its key that is renewed while the server runs."""

from __future__ import annotations

from typing import Protocol

from transport.tls import TlsContext


class ServingCertificate(Protocol):
    """One of the server's own SVID, of files, or of an ACME account."""

    async def start(self) -> None:
        """Have something to show, as far as that needs nobody else. Raises ConfigurationError for what never works."""
        ...

    def tls(self) -> TlsContext:
        """For the next connection. Raises TemporarilyUnavailable while there is nothing to show."""
        ...

    async def run(self) -> None:
        """Keep it fresh until cancelled. What fails is logged and tried again; what was shown stays meanwhile."""
        ...
