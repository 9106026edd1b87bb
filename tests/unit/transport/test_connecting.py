"""Unix sockets that many connect to at once."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from transport.connecting import connect_unix


async def test_a_listener_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        clients = [asyncio.ensure_future(connect_unix(path)) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert not all(client.done() for client in clients)
        listener.setblocking(False)
        for _ in clients:
            accepted, _address = await asyncio.get_running_loop().sock_accept(listener)
            accepted.close()
        for each in await asyncio.gather(*clients):
            assert each.getpeername() == path
            each.close()


async def test_who_gives_up_waiting_leaves_nothing_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        first = await connect_unix(path)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await connect_unix(path)
        first.close()
    with pytest.raises(ConnectionRefusedError):
        await connect_unix(path)
