"""Requests that are refused: for their size, by a service of its own measure, and without traces in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from tests.simulators.echo import CHAT, SERVICE, UNARY, Echo, echo, text_of
from transport.client import Channel
from transport.peer import Peer
from transport.router import Context, Handler, Router
from transport.server import Server
from transport.status import Code, RpcError

PATIENCE = 30.0


async def unary(request: Message, peer: Peer, context: Context) -> Message:
    del peer, context
    return request


async def chat(requests: AsyncIterator[Message], peer: Peer, context: Context) -> AsyncIterator[Message]:
    del peer, context
    async for request in requests:
        yield request


async def serving(folder: Path, handlers: dict[str, Handler], largest: int | None = None) -> tuple[Server, Channel]:
    router = Router()
    router.add(SERVICE, handlers, largest=largest)
    server = Server(router)
    path = str(folder / "api.sock")
    await server.listen_unix(path, mode=0o700)
    return server, Channel.unix(path)


async def test_a_service_may_take_less_than_its_listener(tmp_path: Path) -> None:
    server, channel = await serving(tmp_path, {"Unary": unary, "Chat": chat}, largest=1000)
    async with channel:
        assert text_of(await channel.unary(UNARY, echo("x" * 900), Echo, timeout=PATIENCE))
        with pytest.raises(RpcError, match="larger than max") as caught:
            await channel.unary(UNARY, echo("x" * 1000), Echo, timeout=PATIENCE)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        async with channel.bidi(CHAT, Echo, timeout=PATIENCE) as stream:
            await stream.send(echo("x" * 900))
            assert await stream.recv() is not None
            await stream.send(echo("x" * 1000))
            with pytest.raises(RpcError, match="larger than max"):
                await stream.recv()
    await server.drain(1)


class Held:
    """What a handler has in its hands."""


async def test_a_call_that_failed_leaves_nothing_to_the_collector(tmp_path: Path) -> None:
    held: list[weakref.ref[Held]] = []

    async def failing(request: Message, peer: Peer, context: Context) -> Message:
        del request, peer, context
        mine = Held()
        held.append(weakref.ref(mine))
        raise RpcError(Code.INVALID_ARGUMENT, "no")

    server, channel = await serving(tmp_path, {"Unary": failing})
    gc.disable()
    try:
        async with channel:
            with pytest.raises(RpcError, match="no"):
                await channel.unary(UNARY, echo(), Echo, timeout=PATIENCE)
            async with asyncio.timeout(PATIENCE):
                while held[0]() is not None:  # noqa: ASYNC110 - nobody tells when it is gone
                    await asyncio.sleep(0.01)
    finally:
        gc.enable()
    await server.drain(1)
