"""Which handler answers which method, and what a handler is given.

Handlers, by the kind of their method (any of them may answer with bytes: a message that is serialised already):

    unary          async def handler(request, peer, context) -> Response
    server stream  async def handler(request, peer, context) -> AsyncIterator[Response]   (an async generator)
    client stream  async def handler(requests: AsyncIterator[Request], peer, context) -> Response
    bidirectional  async def handler(requests, peer, context) -> AsyncIterator[Response]  (an async generator)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from transport.peer import Peer
from transport.status import Code, RpcError
from transport.wire import metadata_fields

Response = Message | bytes
# A handler's request type is its own business; the router knows it from the service's descriptor only.
Handler = Callable[[Any, Peer, "Context"], Awaitable[Response] | AsyncIterator[Response]]


@dataclass(frozen=True, slots=True)
class Method:
    """`path` is "/package.Service/Name", `service` "package.Service"; `largest` the bytes of a request, where those are
    to be fewer than the listener takes."""

    path: str
    service: str
    name: str
    request_type: type[Message]
    response_type: type[Message]
    client_streaming: bool
    server_streaming: bool
    largest: int | None = None


class Context:
    """One call as its handler sees it.

    `metadata` has lower-case keys; values of one key are joined by commas. `deadline` is in the event loop's time.
    `attributes` is for hooks to leave things for handlers. `request` is there before the handler is, where the router
    `shows_requests` and the call is unary.
    """

    __slots__ = ("attributes", "deadline", "headers", "metadata", "method", "request", "trailers")

    def __init__(self, method: Method, metadata: Mapping[str, str], deadline: float | None) -> None:
        self.method: Final = method
        self.metadata: Final = metadata
        self.deadline: Final = deadline
        self.attributes: Final[dict[str, Any]] = {}
        self.request: Message | None = None
        self.headers: dict[str, str] = _NO_METADATA
        self.trailers: dict[str, str] = _NO_METADATA

    def set_header(self, name: str, value: str) -> None:
        """A header of the response, before its first message; name in lower case, value in ASCII (base64 for -bin).

        Raises ValueError for what no header may hold.
        """
        self.headers = {**self.headers, **_checked(name, value)}

    def set_trailer(self, name: str, value: str) -> None:
        """As `set_header`, behind the last message."""
        self.trailers = {**self.trailers, **_checked(name, value)}


_NO_METADATA: Final[dict[str, str]] = {}


def _checked(name: str, value: str) -> dict[str, str]:
    made = {name: value}
    list(metadata_fields(made))
    return made


Before = Callable[[Method, Peer, Context], Awaitable[None]]
After = Callable[[Method, Peer, Context, RpcError | None, float], None]


class Router:
    """Methods by path. `before` may refuse a call by raising; `after` hears how it ended, and its seconds.

    With `shows_requests` a unary call's request is parsed for `before`, and else only once the call is admitted.
    """

    def __init__(self) -> None:
        self.before: Before | None = None
        self.after: After | None = None
        self.shows_requests = False
        self._methods: dict[str, tuple[Method, Handler]] = {}
        self._services: set[str] = set()

    def add(self, service: ServiceDescriptor, handlers: Mapping[str, Handler], *, largest: int | None = None) -> None:
        """Serves a service; its methods without a handler are answered with UNIMPLEMENTED.

        Requests of more than `largest` bytes are refused before they are parsed, which costs a multiple of them.
        Raises ValueError for a handler that belongs to no method and for a service added before.
        """
        if service.full_name in self._services:
            raise ValueError(f"service {service.full_name} is served already")
        unknown = sorted(set(handlers) - set(service.methods_by_name))
        if unknown:
            raise ValueError(f"service {service.full_name} has no method {', '.join(unknown)}")
        self._services.add(service.full_name)
        for name, handler in handlers.items():
            described = service.methods_by_name[name]
            path = f"/{service.full_name}/{name}"
            method = Method(
                path=path,
                service=service.full_name,
                name=name,
                request_type=GetMessageClass(described.input_type),
                response_type=GetMessageClass(described.output_type),
                client_streaming=described.client_streaming,
                server_streaming=described.server_streaming,
                largest=largest,
            )
            self._methods[path] = (method, handler)

    @property
    def services(self) -> list[str]:
        """The full names of what is served, in order."""
        return sorted(self._services)

    def find(self, path: str) -> tuple[Method, Handler]:
        """Raises RpcError, UNIMPLEMENTED, in grpc-go's words."""
        found = self._methods.get(path)
        if found is not None:
            return found
        service, slash, method = path.removeprefix("/").rpartition("/")
        if not slash:
            raise RpcError(Code.UNIMPLEMENTED, f'malformed method name: "{path}"')
        if service in self._services:
            raise RpcError(Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")
        raise RpcError(Code.UNIMPLEMENTED, f"unknown service {service}")
