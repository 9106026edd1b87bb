"""What an issuer publishes: its discovery document and its keys, over TLS and within limits."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import Final, TypeVar

import msgspec

from operations import documents
from operations.errors import ConfigurationError, Refused, SpireError, TemporarilyUnavailable
from operations.quoting import quote
from transport.limits import KIB
from transport.web.client import HttpClient
from transport.web.urls import Url

DISCOVERY: Final = "/.well-known/openid-configuration"
TIMEOUT: Final = 5.0
"""Seconds for discovery and keys together."""

_HEADERS = {"Accept": "application/json"}
_WELL = 200
_LARGEST = 256 * KIB

T = TypeVar("T", bound=msgspec.Struct)


class _Discovery(msgspec.Struct, frozen=True):
    """OpenID Connect Discovery 1.0, section 3, as far as it matters here."""

    issuer: str
    jwks_uri: str


class _Keys(msgspec.Struct, frozen=True):
    """A JWK Set (RFC 7517, section 5)."""

    keys: list[msgspec.Raw]


def tls_context(issuer: str, ca_path: str) -> ssl.SSLContext:
    """What trusts the CAs in the file and no others, or the system's without one. Raises ConfigurationError."""
    if not ca_path:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=ca_path)
    except OSError as error:
        reason = "no certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigurationError(f"issuers {quote(issuer)}: ca_path: {ca_path}: {reason}") from error


def client(issuer: str, ca_path: str) -> HttpClient:
    """Through the proxies that the environment names."""
    return HttpClient(os.environ, lambda: tls_context(issuer, ca_path))


async def fetch(issuer: str, jwks_url: str, http: HttpClient) -> list[msgspec.Raw]:
    """The issuer's keys, each one JSON. Raises TemporarilyUnavailable; Refused for what no issuer should publish."""
    try:
        async with asyncio.timeout(TIMEOUT):
            url = jwks_url or await _discovered(issuer, http)
            return (await _document(url, http, _Keys)).keys
    except TimeoutError as error:
        raise TemporarilyUnavailable(f"issuer {issuer} has not answered within {TIMEOUT:g} s") from error


async def _discovered(issuer: str, http: HttpClient) -> str:
    found = await _document(f"{issuer.removesuffix('/')}{DISCOVERY}", http, _Discovery)
    # Section 4.3: otherwise anybody who can have a document there speaks for others.
    if found.issuer != issuer:
        raise Refused(f"issuer {issuer}: its discovery document is of {quote(found.issuer)}")
    if not found.jwks_uri.startswith("https://"):
        raise Refused(f"issuer {issuer}: its jwks_uri {quote(found.jwks_uri)} is no https URL")
    return found.jwks_uri


async def _document(url: str, http: HttpClient, kind: type[T]) -> T:
    answer = await http.get(Url.parse(url), headers=_HEADERS, largest=_LARGEST)
    if answer.status != _WELL:
        raise TemporarilyUnavailable(f"{url}: {answer.status}")
    try:
        return documents.decode(answer.body, kind)
    except SpireError as error:
        raise TemporarilyUnavailable(f"{url}: {error}") from error
