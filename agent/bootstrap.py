"""The bundle that a new agent trusts its server by: from a file, over HTTP(S), or none at all."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from agent.tasks import in_own_thread
from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, TemporarilyUnavailable

LARGEST = 4 << 20
"""Bytes of a document with a bundle that are looked at."""


@dataclass(frozen=True, slots=True)
class TrustBundleSource:
    """Where the bundle comes from: `path` or `url`; none of them means insecure bootstrap. `format` is pem or spiffe.

    With `unix_socket` the URL is asked for over that socket, and told who asks.
    """

    trust_domain: TrustDomain
    server_address: str
    server_port: int
    path: str = ""
    url: str = ""
    unix_socket: str = ""
    format: str = "pem"


async def bootstrap_bundle(source: TrustBundleSource) -> tuple[bytes, ...] | None:
    """The X.509 authorities (DER), or None to trust the first server that answers.

    Raises InvalidArgument for content that is no bundle, TemporarilyUnavailable when there is none to be had.
    """
    if source.url:
        from agent.download import download  # an agent that has its SVID has no use for HTTP

        document = await in_own_thread(lambda: download(_asking(source), source.unix_socket, LARGEST))
        return _parse(source, document, source.url)
    if source.path:
        return _parse(source, await asyncio.to_thread(_read, source.path), source.path)
    return None


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        # It may be on its way: agents and their bundles are often delivered at the same time.
        raise TemporarilyUnavailable(
            f"{path}: could not read the trust bundle: {error.strerror}; check trust_bundle_path"
        ) from error


def _parse(source: TrustBundleSource, document: bytes, origin: str) -> tuple[bytes, ...]:
    try:
        if source.format == "spiffe":
            bundle = Bundle.from_jwks(source.trust_domain, document)
        else:
            bundle = Bundle.from_pem(source.trust_domain, document)
    except InvalidArgument as error:
        raise InvalidArgument(f"could not parse trust bundle {origin}: {error}") from error
    if not bundle.x509_authorities:
        raise InvalidArgument(f"no certificates found in trust bundle {origin}")
    return tuple(each.der for each in bundle.x509_authorities)


def _asking(source: TrustBundleSource) -> str:
    if not source.unix_socket:
        return source.url
    parameters = {
        "spire-attest-mode": "bootstrap",
        "spire-server-address": source.server_address,
        "spire-server-port": str(source.server_port),
        "spiffe-trust-domain": source.trust_domain.name,
    }
    separator = "&" if urlsplit(source.url).query else "?"
    return f"{source.url}{separator}{urlencode(parameters)}"
