"""HTTP/1.1 for what is asked with a browser or a scraper: health and metrics. Parsed by h11, within limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11

from operations.errors import Refused
from operations.http import Handler, Request, Response
from transport.limits import KIB, Limits
from transport.listener import Listener, Served, bind_tcp, tcp_opener
from transport.peer import Peer
from transport.sockets import SocketStream

if TYPE_CHECKING:
    from transport.tls import TlsContext

_log: Final = logging.getLogger("transport")

HEAD_BYTES: Final = 16 * KIB
REFUSALS_APART: Final = 10.0
"""Seconds between two lines in the log about peers that may not ask: any number of them may try."""
_SERVER_LIMITS: Final = Limits(connections=64, handshake=10.0)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: `head` for a request to arrive, `answer` to make and to send the response, `idle` between requests."""

    head: float = 10.0
    answer: float = 30.0
    idle: float = 60.0


Authorize = Callable[[Peer], Awaitable[None]]
"""Raises Refused for a peer that may not ask. Awaited once for each connection."""


class HttpServer:
    """Serves one handler."""

    def __init__(
        self,
        handler: Handler,
        *,
        authorize: Authorize | None = None,
        limits: Limits = _SERVER_LIMITS,
        times: Times | None = None,
    ) -> None:
        self._handler = handler
        self._authorize = authorize
        self._limits = limits
        self._times = times or Times()
        self._listener: Listener | None = None
        self._told_at = float("-inf")

    async def listen_tcp(
        self, host: str, port: int, settings: str, *, tls: Callable[[], TlsContext] | None = None
    ) -> int:
        """Returns the port. `settings` names what to change when there is none; errors as of bind_tcp."""
        sock = await bind_tcp(host, port, settings)
        self._listener = Listener(sock, tcp_opener(tls), self._serve, self._limits)
        bound: int = sock.getsockname()[1]
        return bound

    async def close(self) -> None:
        await self.drain(0.0)

    async def drain(self, grace: float) -> None:
        """Take nothing new, and cut off after `grace` seconds what is not answered by then."""
        if self._listener is not None:
            await self._listener.drain(grace)

    def _serve(self, stream: SocketStream, peer: Peer, ended: Callable[[Served], None]) -> HttpConnection:
        authorize = None if self._authorize is None else self._may_ask
        return HttpConnection(stream, peer, self._handler, authorize, self._times, ended)

    async def _may_ask(self, peer: Peer) -> None:
        try:
            if self._authorize is not None:
                await self._authorize(peer)
        except Refused as error:
            now = asyncio.get_running_loop().time()
            if now - self._told_at >= REFUSALS_APART:
                self._told_at = now
                _log.warning("%s may not ask here: %s", peer.address, error)
            raise


class HttpConnection:
    """One connection: a request, its response, the next request. What comes with a request's body is not read."""

    def __init__(
        self,
        stream: SocketStream,
        peer: Peer,
        handler: Handler,
        authorize: Authorize | None,
        times: Times,
        ended: Callable[[Served], None],
    ) -> None:
        self._stream = stream
        self._peer = peer
        self._handler = handler
        self._authorize = authorize
        self._times = times
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._task: asyncio.Task[None] | None = None
        self._fresh = False  # bytes of the next request have come
        self._draining = self._paused = False
        self._timer = self._loop.call_later(times.head, self._time_out)

    def data_received(self, data: bytes) -> None:
        self._http.receive_data(data)
        if self._task is None and not self._paused:
            self._go_on()
        elif len(self._http.trailing_data[0]) > HEAD_BYTES:
            self.abort("more came than a request's head, before the answer")

    def pause_writing(self) -> None:
        """The next request waits until the answers to those before have been taken."""
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._go_on()

    def connection_lost(self, error: OSError | None) -> None:
        del error
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._ended(self)

    def drain(self) -> None:
        self._draining = True
        if self._task is None:
            self._stream.close()

    def abort(self, reason: str) -> None:
        _log.debug("an HTTP connection of %s is cut off: %s", self._peer.address, reason)
        self._stream.abort()

    def _wait(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._time_out)

    def _time_out(self) -> None:
        self.abort("it took too long")

    def _go_on(self) -> None:
        if self._task is not None or self._paused or not self._http.trailing_data[0]:
            return
        if not self._fresh:
            self._fresh = True
            self._wait(self._times.head)
        self._next()

    def _next(self) -> None:
        """Begin with the next request, when its head is here."""
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self._send(Response(error.error_status_hint, f"{error}\n".encode()), head_only=False, close=True)
            return
        if isinstance(event, h11.Request) and event.http_version not in (b"1.0", b"1.1"):
            self._send(Response(505, b"use HTTP/1.1\n"), head_only=False, close=True)
        elif isinstance(event, h11.Request):
            self._wait(self._times.answer)
            self._task = self._loop.create_task(self._answer(event))
        elif event is not h11.NEED_DATA:
            self._stream.close()  # the peer has said that it is done

    async def _answer(self, request: h11.Request) -> None:
        try:
            if self._authorize is not None:
                await self._authorize(self._peer)
                self._authorize = None
            path, _, query = request.target.decode("latin-1").partition("?")
            response = await self._handler(Request(request.method.decode("latin-1"), path, query))
        except Refused:
            self.abort("it may not ask here")
            return
        except Exception:  # noqa: BLE001 - the one place where a handler's failure becomes a response
            _log.exception("an HTTP request failed unexpectedly")
            response = Response(500, b"internal error; the log tells more\n")
        self._task = None
        # A body is not read, so nothing that follows it is either.
        bodiless = isinstance(self._http.next_event(), h11.EndOfMessage)
        self._send(response, head_only=request.method == b"HEAD", close=self._draining or not bodiless)

    def _send(self, response: Response, *, head_only: bool, close: bool) -> None:
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if close:
            headers.append(("Connection", "close"))
        head = h11.Response(status_code=response.status, reason=_reason(response.status), headers=headers)
        sent = [self._http.send(head)]
        if not head_only:
            sent.append(self._http.send(h11.Data(data=response.body)))
        sent.append(self._http.send(h11.EndOfMessage()))
        self._stream.write(b"".join(part for part in sent if part))
        if self._http.our_state is h11.MUST_CLOSE or close:
            self._stream.close()
            return
        self._http.start_next_cycle()
        self._fresh = False
        self._wait(self._times.idle)
        if self._http.trailing_data[0]:
            self._loop.call_soon(self._go_on)


def _reason(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()
