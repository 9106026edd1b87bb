"""Manifests and blobs of a repository, by the OCI distribution protocol: bearer tokens, redirects, bounded sizes.

https://github.com/opencontainers/distribution-spec and distribution's specification of token authentication.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

import msgspec

from attestors.sigstore.credentials import Credential, Keychain
from attestors.sigstore.references import Repository
from operations.documents import Malformed, decode
from operations.errors import InvalidArgument, NotFound, Refused, SpireError, TemporarilyUnavailable
from transport.web.client import HttpClient, Response
from transport.web.urls import Url, is_internal, is_loopback

MANIFEST_BYTES: Final = 16 << 20

_TOKEN_BYTES = 64 * 1024
_REDIRECTS = 5
_MOVED = frozenset((301, 302, 303, 307, 308))
_TLS_SECONDS = 5.0
"""How long a registry that may be without TLS is tried with it."""
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
)
_CHALLENGE = re.compile(r"([A-Za-z]+)(?:\s+(.*))?", re.DOTALL)
_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Registry:
    """What is asked of one repository: for one image, by one task."""

    def __init__(self, repository: Repository, http: HttpClient, keychain: Keychain) -> None:
        self._repository = repository
        self._http = http
        self._keychain = keychain
        self._origin: Url | None = None
        self._authorization: str | None = None

    async def manifest(self, identifier: str) -> bytes:
        """A manifest by tag or digest. A digest is held.

        Raises NotFound when there is none, Refused and TemporarilyUnavailable.
        """
        data = await self._get(f"manifests/{identifier}", MANIFEST_BYTES, accept=_MANIFESTS)
        _require_digest(data, identifier)
        return data

    async def blob(self, digest: str, largest: int) -> bytes:
        """A blob of at most `largest` bytes that has this digest. Raises as `manifest` does."""
        data = await self._get(f"blobs/{digest}", largest, accept="*/*")
        if not digest.startswith("sha256:"):
            raise Refused(f"digest {digest[:100]} is not of SHA-256")
        _require_digest(data, digest)
        return data

    async def _get(self, what: str, largest: int, *, accept: str) -> bytes:
        origin = self._origin or await self._begin()
        url = origin.join(f"/v2/{self._repository.name}/{what}")
        response = await self._follow(url, {"Accept": accept}, largest)
        if response.status == 401 and (challenge := _bearer(response)) is not None:
            # A token does not last, and registries may want another for another scope.
            await self._log_in(origin, challenge)
            response = await self._follow(url, {"Accept": accept}, largest)
        _require_ok(response, url)
        return response.body

    async def _follow(self, url: Url, headers: Mapping[str, str], largest: int) -> Response:
        """Redirects may lead to where a registry has its blobs. What proves who we are goes to the registry only."""
        here = url
        for _ in range(_REDIRECTS):
            own = here.origin == url.origin and self._authorization is not None
            sent = {**headers, "Authorization": self._authorization or ""} if own else headers
            response = await self._http.get(here, headers=sent, largest=largest)
            location = response.header("location")
            if response.status not in _MOVED or location is None:
                if response.status == 401 and here.origin != url.origin:
                    raise Refused(f"{url.origin} leads to {here.origin}, which refuses access")
                return response
            here = _next(url, here, location)
        raise Refused(f"{url.origin} redirects too often")

    async def _begin(self) -> Url:
        """Ask how the registry wants to be asked."""
        response, origin = await self._ping()
        credential = await self._keychain.find(self._repository)
        if response.status == 401:
            challenge = _bearer(response)
            if challenge is not None:
                await self._log_in(origin, challenge, credential)
            elif credential is not None and credential.basic is not None:
                _require_privacy(origin)
                self._authorization = credential.basic
        elif response.status != 200:
            _require_ok(response, origin)
        self._origin = origin
        return origin

    async def _ping(self) -> tuple[Response, Url]:
        secure = Url.parse(f"https://{self._repository.registry}/v2/")
        if not self._repository.may_be_plain:
            return await self._follow(secure, {}, _TOKEN_BYTES), secure
        try:
            async with asyncio.timeout(_TLS_SECONDS):
                return await self._follow(secure, {}, _TOKEN_BYTES), secure
        except (TemporarilyUnavailable, TimeoutError):
            plain = Url.parse(f"http://{self._repository.registry}/v2/")
            return await self._follow(plain, {}, _TOKEN_BYTES), plain

    async def _log_in(self, origin: Url, challenge: Mapping[str, str], credential: Credential | None = None) -> None:
        """Get a token (distribution's "Token Authentication Specification")."""
        if credential is None:
            credential = await self._keychain.find(self._repository)
        realm = _realm(origin, challenge)
        if credential is not None:
            _require_privacy(origin)
            _require_privacy(realm)
            if credential.registry_token:
                self._authorization = f"Bearer {credential.registry_token}"
                return
        scope = f"repository:{self._repository.name}:pull"
        self._authorization = f"Bearer {await self._token(realm, challenge.get('service', ''), scope, credential)}"

    async def _token(self, realm: Url, service: str, scope: str, credential: Credential | None) -> str:
        asked = {"service": service, "scope": scope} if service else {"scope": scope}
        if credential is not None and credential.identity_token:
            form = {**asked, "client_id": "spire-agent", "grant_type": "refresh_token"}
            body = urlencode({**form, "refresh_token": credential.identity_token}).encode()
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = await self._http.request("POST", realm, headers=headers, body=body, largest=_TOKEN_BYTES)
        else:
            basic = None if credential is None else credential.basic
            headers = {"Authorization": basic} if basic is not None else {}
            separator = "&" if "?" in realm.target else "?"
            url = Url(realm.scheme, realm.host, realm.port, f"{realm.target}{separator}{urlencode(asked)}")
            response = await self._http.get(url, headers=headers, largest=_TOKEN_BYTES)
        _require_ok(response, realm)
        try:
            answer = decode(response.body, _TokenAnswer)
        except Malformed as error:
            raise TemporarilyUnavailable(f"{realm.origin} gave no proper token") from error
        token = answer.access_token or answer.token
        if not token or not token.isascii() or not token.isprintable():
            raise TemporarilyUnavailable(f"{realm.origin} gave no proper token")
        return token


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


def _next(first: Url, here: Url, location: str) -> Url:
    """Where a redirect leads, if it may: never from TLS to none, and not into a network that the sender cannot see."""
    try:
        target = here.join(location)
    except InvalidArgument as error:
        raise Refused(f"{first.origin} redirects to what is no URL") from error
    if here.scheme == "https" and target.scheme != "https":
        raise Refused(f"{first.origin} leads to {target.origin}, without TLS")
    if target.host != first.host and is_internal(target.host):
        raise Refused(f"{first.origin} leads to {target.origin}, which is an internal address")
    return target


def _realm(origin: Url, challenge: Mapping[str, str]) -> Url:
    """Where tokens are given out. A registry may name a server of others, but no internal one."""
    try:
        realm = Url.parse(challenge.get("realm", ""))
    except InvalidArgument as error:
        raise Refused(f"{origin.origin} names no place to log in") from error
    if realm.scheme != "https" and origin.scheme == "https":
        raise Refused(f"{origin.origin} wants a log-in at {realm.origin}, without TLS")
    if realm.host != origin.host and is_internal(realm.host):
        raise Refused(f"{origin.origin} wants a log-in at {realm.origin}, which is an internal address")
    return realm


def _require_privacy(url: Url) -> None:
    if url.scheme != "https" and not is_loopback(url.host):
        raise Refused(f"credentials are not sent to {url.origin}, without TLS: give that registry a certificate")


def _bearer(response: Response) -> Mapping[str, str] | None:
    """The parameters of a challenge (RFC 9110, 11.6.1) to show a bearer token."""
    for value in response.headers.get("www-authenticate", []):
        match = _CHALLENGE.match(value.strip())
        if match is not None and match[1].lower() == "bearer":
            return {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(match[2] or "")}
    return None


def _require_ok(response: Response, url: Url) -> None:
    if response.status == 200:
        return
    where = f"{url.origin}{url.target.partition('?')[0]}"
    raise _error_of(response.status)(f"{where}: {_words(response.status)}")


def _error_of(status: int) -> type[SpireError]:
    if status == 404:
        return NotFound
    return Refused if status in (400, 401, 403) else TemporarilyUnavailable


def _words(status: int) -> str:
    if status in (401, 403):
        return f"access is refused ({status}): set registry_credentials"
    return "there is none (404)" if status == 404 else f"status {status}"


def _require_digest(data: bytes, identifier: str) -> None:
    if identifier.startswith("sha256:") and hashlib.sha256(data).hexdigest() != identifier.removeprefix("sha256:"):
        raise Refused(f"the registry sent something else for {identifier}")
