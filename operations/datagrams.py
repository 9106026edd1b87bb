"""Lines of text to a collector over UDP or a Unix socket, gathered into packets.

Nothing here waits for a collector. One that is gone, or whose name has no address, is told of once and tried again
every few seconds; what is measured meanwhile is lost, as it would be on the way.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from operations import logs
from operations.errors import InvalidArgument, TemporarilyUnavailable
from operations.quoting import quote

FLUSH: Final = 0.1
"""Seconds that a line waits for others."""

RETRY: Final = 5.0
RESOLVE: Final = 5.0
REFRESH: Final = 60.0
"""Seconds after which a collector's name is looked up again."""

MOST_LINES: Final = 16_384
"""Lines that may wait at a time; more are lost."""

_UNIX: Final = "unix://"
_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[^\[\]]+\]|[^\[\]:]*)(?::(?P<port>[^:]*))?", re.ASCII)
_PASSING: Final = (errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE)
"""Of these a packet is lost, and the next one may pass."""

_log = logs.get("telemetry")

_Target = str | tuple[Any, ...]
"""A socket's address, by its family."""


@dataclass(frozen=True, slots=True)
class Address:
    """A collector's: a host and a port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str, *, default_port: int = 0, unix: bool = False) -> Address:
        """`host:port`, `[::1]:8125`, `:8125` for this machine's, and `unix:///path` where `unix` allows it.

        Raises InvalidArgument.
        """
        if text.startswith(_UNIX):
            path = text.removeprefix(_UNIX)
            if not unix:
                raise InvalidArgument(f"{quote(text)} is a Unix socket, and StatsD is reached by UDP: use host:port")
            if not path.startswith("/") or len(path.encode()) > 107:
                raise InvalidArgument(f"{quote(text)} names no Unix socket: use unix:/// and up to 107 bytes of path")
            return cls(path=path)
        found = _HOST_AND_PORT.fullmatch(text)
        port = str(default_port or "") if found is None or found["port"] is None else found["port"]
        if found is None or not port:
            raise InvalidArgument(f"{quote(text)} has no host and port: use host:port, such as localhost:8125")
        if not (port.isdecimal() and 0 < int(port) < 65536):
            raise InvalidArgument(f"{quote(text)}: {quote(port)} is no UDP port: use 1 to 65535")
        return cls(found["host"].strip("[]") or "localhost", int(port))

    def __str__(self) -> str:
        if self.path:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Datagrams:
    """What takes lines to one collector, from `run` on."""

    def __init__(self, kind: str, address: Address, most_bytes: int) -> None:
        """`kind` is what the collector is called in the log; a packet has `most_bytes`, or a single longer line."""
        self._log = _log.bind(sink=kind, address=str(address))
        self._address = address
        self._most_bytes = most_bytes
        self._waiting: list[bytes] = []
        self._lost = 0
        self._socket: socket.socket | None = None
        self._connected = 0.0
        self._gone = False

    @property
    def gone(self) -> bool:
        """Whether the collector was not to be had the last time."""
        return self._gone

    @property
    def waiting(self) -> int:
        """Lines that are not sent yet."""
        return len(self._waiting)

    def put(self, line: bytes) -> None:
        if len(self._waiting) < MOST_LINES:
            self._waiting.append(line)
        else:
            self._lost += 1

    async def run(self) -> None:
        """Send what is put, until cancelled; then what is left."""
        try:
            while True:
                if self._socket is None or self._is_old():
                    await self._connect()
                await asyncio.sleep(FLUSH if self._socket is not None else RETRY)
                self._flush()
        finally:
            self._flush()
            self._close()

    def _is_old(self) -> bool:
        return bool(self._address.host) and asyncio.get_running_loop().time() - self._connected > REFRESH

    async def _connect(self) -> None:
        """Keeps the socket that it has where a name cannot be looked up this time."""
        try:
            connected: socket.socket | None = await _connected(self._address)
        except (OSError, TemporarilyUnavailable) as error:
            if self._socket is None:
                self._tell_gone(error)
            connected = self._socket
        if connected is not self._socket:
            self._close()
        self._socket = connected
        self._connected = asyncio.get_running_loop().time()

    def _flush(self) -> None:
        lines, self._waiting = self._waiting, []
        if self._socket is None:
            self._lost += len(lines)
            return
        for count, packet in _packets(lines, self._most_bytes):
            if not self._send(packet):
                self._lost += count

    def _send(self, packet: bytes) -> bool:
        """Whether it is on its way."""
        if self._socket is None:
            return False
        try:
            self._socket.send(packet)
        except OSError as error:
            self._tell_gone(error)
            if error.errno not in _PASSING:
                self._close()
            return False
        if self._gone and asyncio.get_running_loop().time() - self._connected > 2 * FLUSH:
            # A refusal comes back at the next packet: the first one after a connect proves nothing.
            self._gone = False
            self._log.info("Metrics are taken again", lost=self._lost)
            self._lost = 0
        return True

    def _tell_gone(self, error: Exception) -> None:
        if not self._gone:
            self._gone = True
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._log.warning("Metrics do not reach their collector; it is tried again every 5 s", error=reason)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _packets(lines: Sequence[bytes], most_bytes: int) -> Iterator[tuple[int, bytes]]:
    """How many lines are in each, and the packet."""
    packet: list[bytes] = []
    size = 0
    for line in lines:
        if packet and size + len(line) > most_bytes:
            yield len(packet), b"".join(packet)
            packet, size = [], 0
        packet.append(line)
        size += len(line)
    if packet:
        yield len(packet), b"".join(packet)


async def _connected(address: Address) -> socket.socket:
    """Raises OSError, TemporarilyUnavailable."""
    if address.path:
        return _open(socket.AF_UNIX, address.path)
    first: OSError | None = None
    for family, target in await _resolved(address.host, address.port):
        try:
            return _open(family, target)
        except OSError as error:
            first = first or error
    raise first or TemporarilyUnavailable(f"{address.host} has no address")


def _open(family: int, target: _Target) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        made.connect(target)
    except OSError:
        made.close()
        raise
    return made


async def _resolved(host: str, port: int) -> Sequence[tuple[int, _Target]]:
    """Families and socket addresses, looked up in a thread that nobody waits for longer than RESOLVE.

    Raises TemporarilyUnavailable.
    """
    try:
        known = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [(socket.AF_INET if known.version == 4 else socket.AF_INET6, (host, port))]
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Sequence[tuple[int, _Target]] | OSError] = loop.create_future()

    def tell(result: Sequence[tuple[int, _Target]] | OSError) -> None:
        if not future.done():
            future.set_result(result)

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            result: Sequence[tuple[int, _Target]] | OSError = [(each[0], each[4]) for each in found]
        except OSError as error:
            result = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result)

    threading.Thread(target=look_up, name="statsd-resolver", daemon=True).start()
    try:
        result = await asyncio.wait_for(future, RESOLVE)
    except TimeoutError:
        raise TemporarilyUnavailable(f"looking up {host} takes too long") from None
    if isinstance(result, OSError):
        raise TemporarilyUnavailable(f"{host} has no address: {result.strerror or result}")
    return result
