"""Calls over the system bus of D-Bus (dbus-daemon(1)): one connection, kept, and made anew when it broke."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from dbus_fast import BusType, Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.errors import DBusFastError

from operations.errors import Refused, SpireError, TemporarilyUnavailable

BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
"""The bus's own name, object and interface."""

SLOW: Final = 1.0
"""Seconds after which a connection is left to those who use it."""

# What it has to say comes as errors, too.
logging.getLogger("dbus_fast").addHandler(logging.NullHandler())
logging.getLogger("dbus_fast").propagate = False


class CallFailed(Refused):
    """An error that the other side answered with. `name` is D-Bus's, such as org.freedesktop.systemd1.NoSuchUnit."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


@dataclass(eq=False, slots=True)
class Connection:
    """`calls` is how many are under way; it is closed after the last once it is `retired`."""

    bus: MessageBus
    watch: asyncio.Task[None]
    calls: int = 0
    retired: bool = False

    @property
    def usable(self) -> bool:
        return not self.retired and not self.watch.done()

    @property
    def name(self) -> str:
        """The bus's name for us."""
        return self.bus.unique_name or ""

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        *,
        descriptors: Sequence[int] = (),
    ) -> list[Any]:
        """What a method returns. `body` names file descriptors by their place in `descriptors`.

        Raises CallFailed, and TemporarilyUnavailable when the connection is lost.
        """
        message = Message(
            destination,
            path,
            interface,
            member,
            flags=MessageFlag.NO_AUTOSTART,
            signature=signature,
            body=list(body),
            unix_fds=list(descriptors),
        )
        try:
            reply = await self.bus.call(message)
        except (OSError, EOFError, DBusFastError) as error:
            raise _lost(error) from error
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.signature.startswith("s") else ""
            raise CallFailed(reply.error_name or "", text)
        return reply.body

    def close(self) -> None:
        with suppress(OSError):
            self.bus.disconnect()


class SystemBus:
    """Where it is, DBUS_SYSTEM_BUS_ADDRESS says, or the standard does."""

    def __init__(self) -> None:
        self._current: Connection | None = None
        self._connecting = asyncio.Lock()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection, None]:
        """For some calls. When they are given up after a while, others get another connection.

        Raises TemporarilyUnavailable when the bus cannot be reached. Who waits sets the deadline.
        """
        connection = await self._usable()
        connection.calls += 1
        begun = time.monotonic()
        try:
            yield connection
        except asyncio.CancelledError:
            # The library remembers each question until it is answered.
            connection.retired |= time.monotonic() - begun >= SLOW
            raise
        finally:
            connection.calls -= 1
            if connection.retired and not connection.calls:
                connection.close()

    async def close(self) -> None:
        if self._current is not None:
            self._current.close()
            await asyncio.wait([self._current.watch])

    async def _usable(self) -> Connection:
        async with self._connecting:
            if self._current is None or not self._current.usable:
                self._current = await _connect()
            return self._current


async def _connect() -> Connection:
    try:
        bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    except (OSError, EOFError, DBusFastError) as error:
        raise TemporarilyUnavailable(f"the system bus cannot be reached: {_reason(error)}") from error
    return Connection(bus, asyncio.create_task(_watch(bus)))


async def _watch(bus: MessageBus) -> None:
    """Ends with the connection."""
    ended: Awaitable[None] = cast("Any", bus).wait_for_disconnect()  # untyped there
    with suppress(OSError, EOFError, DBusFastError):
        await ended


def _lost(error: Exception) -> SpireError:
    return TemporarilyUnavailable(f"the connection to the system bus was lost: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or "it was closed"
