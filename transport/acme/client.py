"""Requests to an ACME server: signed, each with a fresh nonce. Answers are believed only as far as they parse."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol, TypeVar

from operations.documents import Malformed, decode
from operations.errors import InvalidArgument, Refused, TemporarilyUnavailable
from operations.quoting import quote
from transport.acme.jose import Signer
from transport.acme.messages import Directory, Document, Problem, retry_after
from transport.limits import KIB
from transport.web.client import Response
from transport.web.urls import Url

LARGEST = 64 * KIB
"""Bytes of any answer."""
STEP_SECONDS = 30.0
"""A request and its answer."""
MOST_NONCES = 10
"""Times that one request is sent anew since its nonce was refused."""

_JSON = "application/json"
_PROBLEM = "application/problem+json"
_SPARE_NONCES = 8

T = TypeVar("T")


class Web(Protocol):
    """transport.web.HttpClient, as far as it is needed."""

    async def request(
        self, method: str, url: Url, *, headers: dict[str, str], body: bytes = b"", largest: int
    ) -> Response: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """`location` is empty where the answer has none; `wait` is what Retry-After asks for, in seconds."""

    body: bytes
    location: str
    wait: float


class AcmeClient:
    """One account's requests. Each has a deadline of its own.

    All of it raises TemporarilyUnavailable without an answer, Problem for one that refuses, and Refused for one that is
    none of ACME's.
    """

    def __init__(self, web: Web, directory: Url, signer: Signer) -> None:
        self._web = web
        self._url = directory
        self._directory: Directory | None = None
        self._nonces: deque[str] = deque(maxlen=_SPARE_NONCES)
        self.signer = signer
        self.account = ""  # its URL, once it is known

    async def directory(self) -> Directory:
        if self._directory is None:
            what = f"the ACME directory {self._url}"
            response = await self._request("GET", self._url, what)
            _expect_success(response, what)
            self._directory = parse(response, Directory, what)
        return self._directory

    async def post(self, url: str, payload: object | None, doing: str, *, content: str = _JSON) -> Answer:
        """POST, or POST-as-GET with None. `doing` begins the text of errors."""
        place = place_of(url, doing)
        for _ in range(MOST_NONCES):
            response = await self._send(place, str(place), payload, doing, content)
            try:
                _expect_success(response, doing)
            except Problem as problem:
                if problem.kind != "badNonce":
                    raise
                continue
            _expect_content(response, content, doing)
            return Answer(response.body, response.header("location") or "", _wait(response))
        raise Refused(f"{doing}: the ACME server refused {MOST_NONCES} nonces one after the other")

    async def fetch(self, url: str, kind: type[T], doing: str, payload: object | None = None) -> tuple[T, Answer]:
        """An object, and the answer that it came in."""
        answer = await self.post(url, payload, doing)
        return _decode(answer.body, kind, doing), answer

    async def _send(self, place: Url, url: str, payload: object | None, doing: str, content: str) -> Response:
        protected: dict[str, object] = {"nonce": await self._nonce(), "url": url}
        protected |= {"kid": self.account} if self.account else {"jwk": self.signer.jwk}
        body = await self.signer.sign(protected, payload)
        return await self._request("POST", place, doing, body, content)

    async def _nonce(self) -> str:
        if not self._nonces:
            doing = "asking for a nonce"
            response = await self._request("HEAD", place_of((await self.directory()).new_nonce, doing), doing)
            if not self._nonces:
                raise Refused(f"{doing}: the ACME server gave none, with status {response.status}")
        return self._nonces.pop()

    async def _request(self, method: str, url: Url, doing: str, body: bytes = b"", content: str = _JSON) -> Response:
        headers = {"Accept": f"{content}, {_PROBLEM}"}
        if body:
            headers["Content-Type"] = "application/jose+json"
        try:
            async with asyncio.timeout(STEP_SECONDS):
                response = await self._web.request(method, url, headers=headers, body=body, largest=LARGEST)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"{doing}: {url.origin} gave no answer within {STEP_SECONDS:g} s") from error
        except TemporarilyUnavailable as error:
            raise TemporarilyUnavailable(f"{doing}: {error}") from error
        except Refused as error:
            raise Refused(f"{doing}: {error}") from error
        nonce = response.header("replay-nonce")
        if nonce is not None:
            self._nonces.append(nonce)
        return response


def place_of(url: str, doing: str) -> Url:
    """Where the server leads. Raises Refused for what is no URL of HTTPS."""
    try:
        place = Url.parse(url)
    except InvalidArgument as error:
        raise Refused(f"{doing}: the ACME server leads nowhere: {error}") from error
    if place.scheme != "https":
        raise Refused(f"{doing}: the ACME server leads to {quote(str(place)[:100])}, which is not https")
    return place


def parse(response: Response, kind: type[T], doing: str) -> T:
    """Raises Refused."""
    _expect_content(response, _JSON, doing)
    return _decode(response.body, kind, doing)


def _decode(body: bytes, kind: type[T], doing: str) -> T:
    try:
        return decode(body, kind)
    except Malformed as error:
        raise Refused(f"{doing}: the ACME server's answer cannot be read: {error}") from error


def _expect_success(response: Response, doing: str) -> None:
    if response.status in (200, 201):
        return
    if _content_of(response) != _PROBLEM:
        raise TemporarilyUnavailable(f"{doing}: the ACME server answers {response.status}, and no problem document")
    document = _decode(response.body, Document, doing)
    raise Problem(doing, document, retry_after=_wait(response))


def _expect_content(response: Response, wanted: str, doing: str) -> None:
    found = _content_of(response)
    if found != wanted:
        raise Refused(f"{doing}: the ACME server sends {quote(found[:100])} where {wanted} is due")


def _content_of(response: Response) -> str:
    return (response.header("content-type") or "").partition(";")[0].strip().lower()


def _wait(response: Response) -> float:
    return retry_after(response.header("retry-after"))
