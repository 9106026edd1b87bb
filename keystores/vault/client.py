"""A Vault's HTTP API: logged in for as long as it takes, errors as one line each, answers within limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import quote as in_path

from keystores import errors
from keystores.vault.configuration import Vault, read_jwt
from operations.errors import InvalidArgument, Refused, SpireError, TemporarilyUnavailable
from operations.logs import Logger
from transport.web.client import HttpClient, Response
from transport.web.urls import Url

TIMEOUT: Final = 30.0
TRIES: Final = 3
PAUSE: Final = 0.5
"""Seconds of one call with all its tries, how many there are while the Vault is away, and the first of the waits."""

LARGEST: Final = 8 << 20
LONGEST_TEXT: Final = 300

_SHORTEST_LEASE: Final = 10.0
_RENEW_AFTER: Final = 2 / 3

Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Session:
    """`ends` and `renew` are of time.monotonic(); None for a token that never ends, or is not renewed."""

    token: str = field(repr=False)
    ends: float | None = None
    renew: float | None = None
    lease: float = 0.0

    @property
    def over(self) -> bool:
        return self.ends is not None and time.monotonic() >= self.ends


class VaultClient:
    """Logs in at the first call, renews what it got, and logs in again when that has ended or is not taken any more."""

    def __init__(self, vault: Vault, environment: Mapping[str, str], log: Logger) -> None:
        self._vault = vault
        self._log = log
        self._http = HttpClient(environment, vault.context)
        self._session: _Session | None = None
        self._entering = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        self._http.close()

    async def read(self, path: str) -> Data:
        """The `data` of an answer. `path` is below /v1/. Raises keystores.errors, NotFound among them."""
        return _data(await self._ask("GET", path, None))

    async def write(self, path: str, body: Data) -> Data:
        """The `data` of the answer, empty where there is none. Raises keystores.errors."""
        return _data(await self._ask("POST", path, body))

    async def delete(self, path: str) -> None:
        """Raises keystores.errors."""
        await self._ask("DELETE", path, None)

    async def _ask(self, method: str, path: str, body: Data | None) -> Data:
        try:
            async with asyncio.timeout(TIMEOUT):
                session = await self._logged_in()
                try:
                    return await self._call(method, path, body, session.token)
                except errors.Refused:
                    # A token that was revoked, or has ended by another's clock, is refused like a lack of permission.
                    fresh = await self._logged_in(instead_of=session)
                    return await self._call(method, path, body, fresh.token)
        except TimeoutError as error:
            raise self._away(f"no answer within {TIMEOUT:g} s") from error

    async def _logged_in(self, instead_of: _Session | None = None) -> _Session:
        async with self._entering:
            known = self._session
            if known is not None and not known.over and known is not instead_of:
                return known
            self._session = None
            self._session = made = await self._log_in()
            if self._renewing is None or self._renewing.done():
                self._renewing = asyncio.create_task(self._keep())
            return made

    async def _log_in(self) -> _Session:
        login = self._vault.login
        if not login.path:
            found = _data(await self._call("GET", "auth/token/lookup-self", None, login.token))
            return self._made(login.token, found.get("ttl"), found.get("renewable"))
        body = dict(login.body)
        if login.token_path:
            try:
                body["jwt"] = await asyncio.to_thread(read_jwt, login.token_path)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it is no text"
                raise errors.TemporarilyUnavailable(
                    f"failed to read k8s service account token {login.token_path}: {reason}"
                ) from error
        return self._session_of(await self._call("POST", login.path, body, None))

    def _session_of(self, answer: Data) -> _Session:
        auth = answer.get("auth")
        if not isinstance(auth, dict):
            raise self._away("it let us in without a token")
        found = cast("Data", auth)
        token = found.get("client_token")
        if not isinstance(token, str) or not token:
            raise self._away("it let us in without a token")
        return self._made(token, found.get("lease_duration"), found.get("renewable"))

    def _made(self, token: str, lease: object, renewable: object) -> _Session:
        if not isinstance(lease, int | float) or lease <= 0:
            return _Session(token)
        now = time.monotonic()
        renew = now + lease * _RENEW_AFTER if renewable is True else None
        return _Session(token, now + lease, renew, float(lease))

    async def _keep(self) -> None:
        """Renew the token of the session in time, for as long as it can be."""
        while (session := self._session) is not None and session.renew is not None and session.ends is not None:
            await asyncio.sleep(max(0.0, session.renew - time.monotonic()))
            if session is not self._session:
                continue
            try:
                async with asyncio.timeout(TIMEOUT):
                    answer = await self._call("POST", "auth/token/renew-self", {}, session.token)
                renewed = self._session_of(answer)
            except (SpireError, TimeoutError) as error:
                self._log.warning("Failed to renew the Vault token", error=error)
                await asyncio.sleep(max(1.0, (session.ends - time.monotonic()) / 4))
                if session.over or isinstance(error, errors.Refused):
                    break
                continue
            if renewed.lease < min(_SHORTEST_LEASE, session.lease) and self._vault.login.path:
                break  # its longest life is nearly over: the next call logs in
            if session is self._session:
                self._session = renewed
                self._log.debug("Renewed the Vault token", lease_duration=int(renewed.lease))

    async def _call(self, method: str, path: str, body: Data | None, token: str | None) -> Data:
        """Again after a moment while the Vault is away."""
        pause = PAUSE
        for rest in reversed(range(TRIES)):
            try:
                return await self._once(method, path, body, token)
            except errors.TemporarilyUnavailable:
                if not rest:
                    raise
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError

    async def _once(self, method: str, path: str, body: Data | None, token: str | None) -> Data:
        headers = {"X-Vault-Request": "true", "Content-Type": "application/json"}
        if token is not None:
            headers["X-Vault-Token"] = token
        if self._vault.namespace:
            headers["X-Vault-Namespace"] = self._vault.namespace
        base = self._vault.url.target.partition("?")[0].rstrip("/")
        url = self._vault.url.join(f"{base}/v1/{path}")
        content = b"" if body is None else json.dumps(body).encode()
        try:
            answer = await self._http.request(method, url, headers=headers, body=content, largest=LARGEST)
            if answer.status in (301, 302, 307, 308):  # a standby names the one that is active
                answer = await self._http.request(
                    method, self._elsewhere(url, answer), headers=headers, body=content, largest=LARGEST
                )
        except TemporarilyUnavailable as error:
            raise errors.TemporarilyUnavailable(f"Vault: {error}") from error
        except (Refused, InvalidArgument) as error:
            raise errors.Refused(f"Vault: {error}") from error
        return self._judged(path, answer)

    def _elsewhere(self, url: Url, answer: Response) -> Url:
        found = url.join(answer.header("location") or "")
        if found.scheme != url.scheme:
            raise errors.Refused(f"Vault: {url.origin} leads to {found.origin}: set vault_addr to where it is")
        return found

    def _judged(self, path: str, answer: Response) -> Data:
        found = _json(answer.body)
        status, text = answer.status, _told(found)
        if 200 <= status < 300:
            if answer.body and found is None:
                raise self._away("it answered something else than JSON: is there a proxy, or is vault_addr another's?")
            return found or {}
        what = f"Vault at {self._vault.url.origin}: {path}: {text or f'HTTP status {status}'}"
        if status == 404 and (found is not None):
            raise errors.NotFound(what)
        if status == 403:
            raise errors.Refused(f"{what} (permission denied: check the token, and its policy for this path)")
        if status in (429, 412) or status >= 470:
            hint = " (sealed: unseal it)" if status == 503 and "sealed" in text else ""
            raise errors.TemporarilyUnavailable(f"{what}{hint}")
        if status == 400 and found is not None:
            raise errors.InvalidArgument(what)
        raise errors.Refused(f"{what} (HTTP status {status})")

    def _away(self, reason: str) -> errors.TemporarilyUnavailable:
        return errors.TemporarilyUnavailable(f"Vault at {self._vault.url.origin}: {reason}")


def below(mount: str, *parts: str) -> str:
    """A path of an engine, each part as itself."""
    return "/".join([mount.strip("/"), *(in_path(part, safe="") for part in parts)])


def _data(answer: Data) -> Data:
    data = answer.get("data")
    return cast("Data", data) if isinstance(data, dict) else {}


def _json(body: bytes) -> Data | None:
    try:
        found = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return None
    return cast("Data", found) if isinstance(found, dict) else None


def _told(answer: Data | None) -> str:
    """Its errors in one line."""
    if answer is None:
        return ""
    told = answer.get("errors")
    texts = [str(each) for each in cast("list[object]", told)] if isinstance(told, list) else []
    return " ".join("; ".join(texts).split())[:LONGEST_TEXT]
