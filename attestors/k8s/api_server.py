"""Requests to the cluster's API server, and what its refusals say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from urllib.parse import quote as quote_url

import msgspec

from attestors.k8s.access import Access
from operations.documents import Malformed, decode
from operations.errors import InvalidArgument, NotFound, TemporarilyUnavailable
from operations.quoting import quote
from transport.http_client import Incoming, Query, asking
from transport.limits import MIB

JSON = "application/json"
TIMEOUT = 10.0

_RELOAD_AFTER = 60.0
_AT_ONCE = 32
_LARGEST = 64 * MIB
_TOLD_OF_AN_ERROR = 4096
_NOT_FOUND = 404
_GONE = 410
_WELL = range(200, 300)


class Expired(TemporarilyUnavailable):
    """What was to be gone on with is no longer there: begin anew."""


class _Status(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a refusal (Kubernetes API, meta/v1 Status)."""

    message: str = ""


def segment(name: str) -> str:
    """A name as a segment of a path. Raises InvalidArgument for what would be another path."""
    if name in ("", ".", ".."):
        raise InvalidArgument(f"{quote(name)} is no name of Kubernetes")
    return quote_url(name, safe="")


class ApiServer:
    """Where it is and how it knows us is read when first needed, and again every minute."""

    def __init__(self, find: Callable[[], Access], workers: Executor) -> None:
        """`find` may block; raises InvalidArgument."""
        self._find = find
        self._workers = workers
        self._access: Access | None = None
        self._found_at = 0.0
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def get(self, path: str, accept: str = JSON) -> bytes:
        """The body of the answer. Raises InvalidArgument, NotFound, TemporarilyUnavailable."""
        return await self._ask(Query(path, headers={"Accept": accept}))

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of the answer. Raises as `get`."""
        return await self._ask(Query(path, "POST", {"Accept": JSON, "Content-Type": JSON}, body))

    @asynccontextmanager
    async def watching(self, path: str, accept: str) -> AsyncGenerator[Incoming, None]:
        """An answer that goes on as long as there is news. Raises as `get`, and Expired."""
        async with (
            asyncio.timeout(TIMEOUT) as deadline,
            self._asking(Query(path, headers={"Accept": accept})) as answer,
        ):
            await _require_well(answer)
            deadline.reschedule(None)
            yield answer

    async def _ask(self, query: Query) -> bytes:
        try:
            async with self._slots, asyncio.timeout(TIMEOUT), self._asking(query) as answer:
                await _require_well(answer)
                return await answer.body(_LARGEST)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"the API server has not answered within {TIMEOUT:g} s") from error

    @asynccontextmanager
    async def _asking(self, query: Query) -> AsyncGenerator[Incoming, None]:
        access = await self._known()
        target = f"{access.prefix}{query.target}"
        known = Query(target, query.method, {**access.headers, **query.headers}, query.body)
        async with asking(access.service, known) as answer:
            yield answer

    async def _known(self) -> Access:
        loop = asyncio.get_running_loop()
        known = self._access
        if known is None or loop.time() - self._found_at >= _RELOAD_AFTER:
            known = await loop.run_in_executor(self._workers, self._find)
            self._access, self._found_at = known, loop.time()
        return known


async def _require_well(answer: Incoming) -> None:
    """Raise NotFound, Expired or TemporarilyUnavailable for a refusal, with the API server's own words."""
    if answer.status in _WELL:
        return
    told = await answer.beginning(_TOLD_OF_AN_ERROR)
    try:
        reason = decode(told, _Status).message
    except Malformed:
        reason = quote(told.decode("utf-8", "replace").strip())
    text = f"{answer.status}: {' '.join(reason.split()) or 'without a reason'}"
    if answer.status == _NOT_FOUND:
        raise NotFound(text)
    if answer.status == _GONE:
        raise Expired(text)
    raise TemporarilyUnavailable(text)
