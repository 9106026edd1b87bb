"""The bundle that an agent trusts its server by at first: from a file, over HTTP(S), from a Workload API, or none.

Each source is read anew whenever it is asked: somebody may have replaced what it gives.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from agent.storage import Bootstrapping, Use, rfc3339
from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, TemporarilyUnavailable

LARGEST = 4 << 20
"""Bytes of a document with a bundle that are looked at."""


@dataclass(frozen=True, slots=True)
class TrustBundleSource:
    """Where the bundle comes from: `path`, `url` or `workload_api`; none of them means insecure bootstrap.

    `format`, of the first two, is pem or spiffe. With `unix_socket` the URL is asked for over that socket, and told who
    asks. `workload_api` is the address of a SPIFFE Workload API, such as another agent's.
    """

    trust_domain: TrustDomain
    server_address: str
    server_port: int
    path: str = ""
    url: str = ""
    unix_socket: str = ""
    format: str = "pem"
    workload_api: str = ""

    @property
    def origin(self) -> str:
        """For people."""
        return self.workload_api or self.url or self.path or "whichever server answers"


async def bootstrap_bundle(source: TrustBundleSource, asking: Bootstrapping) -> tuple[bytes, ...] | None:
    """The X.509 authorities (DER), or None to trust the first server that answers. `asking` is told to who wants it.

    Raises InvalidArgument for content that is no bundle, TemporarilyUnavailable when there is none to be had.
    """
    if source.workload_api:
        from agent.bundle_source import workload_api_bundle

        return await workload_api_bundle(source.workload_api, source.trust_domain)
    if source.url:
        from agent.download import download  # an agent that has its SVID has no use for HTTP

        url = _asking(source, asking)
        document = await download(url, source.unix_socket, LARGEST)
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


def _asking(source: TrustBundleSource, asking: Bootstrapping) -> str:
    """The URL; over a Unix socket with what SPIRE's agents say of themselves, in the order of the names as theirs."""
    if not source.unix_socket:
        return source.url
    parts = urlsplit(source.url)
    parameters = {
        "spire-attest-mode": "rebootstrap" if asking.use is Use.REBOOTSTRAP else "bootstrap",
        "spire-attest-start-time": rfc3339(asking.started),
        "spire-connection-attempts": str(asking.attempts),
        "spire-server-address": source.server_address,
        "spire-server-port": str(source.server_port),
        "spiffe-trust-domain": source.trust_domain.name,
    }
    query = [*parse_qsl(parts.query, keep_blank_values=True), *parameters.items()]
    return urlunsplit(parts._replace(query=urlencode(sorted(query, key=lambda item: item[0]))))
