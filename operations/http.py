"""HTTP as its handlers see it: a request in, a response out. transport.http moves them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """`path` is without the query, what stands behind the first `?`."""

    method: str
    path: str
    query: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    content_type: str = TEXT


Handler = Callable[[Request], Awaitable[Response]]


def json_response(status: int, value: object) -> Response:
    """The value on one line, objects by their sorted names, as Go's encoder writes it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Response(status, f"{text}\n".encode(), JSON)


def routes(handlers: Mapping[str, Handler]) -> Handler:
    """A handler that picks another by the path."""

    async def handle(request: Request) -> Response:
        handler = handlers.get(request.path)
        if handler is None:
            return Response(404, b"404 page not found\n")
        return await handler(request)

    return handle
