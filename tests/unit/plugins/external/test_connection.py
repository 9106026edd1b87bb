"""Whom a host takes for its plugin, and what a program loads that has none."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from plugins.external.connection import PluginDialer, check_owner
from plugins.external.handshake import Address
from plugins.external.process import PluginProcess
from tests.simulators.spire import free_port
from transport.status import Code, RpcError

ROOT = Path(__file__).parents[4]


@dataclass
class Running:
    """Of a plugin's process what a dialer looks at."""

    address: Address
    pid: int = field(default_factory=os.getpid)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def dialer(self) -> PluginDialer:
        return PluginDialer(cast("PluginProcess", self))


@dataclass
class Connected:
    """A socket whose other end is a process of that user."""

    owner: int

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option, size) == (socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return struct.pack("3i", 1, self.owner, 0)


async def test_no_plugin_is_looked_for_after_its_end(tmp_path: Path) -> None:
    path = str(tmp_path / "plugin.sock")
    running = Running(Address("unix", path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        connected, _ = await running.dialer().dial()
        connected.close()
        running.ended.set()
        with pytest.raises(RpcError, match="the plugin's process has ended"):
            await running.dialer().dial()


@pytest.mark.parametrize("owner", [0, os.geteuid()])
def test_our_own_sockets_and_roots(owner: int) -> None:
    check(owner)


def test_a_socket_of_another_user_is_refused() -> None:
    with pytest.raises(RpcError, match="/a is a socket of user 4711, not of the plugin's"):
        check(4711)


def check(owner: int) -> None:
    check_owner(cast("socket.socket", Connected(owner)), "/a", os.getpid())


async def test_nobody_listens_on_tcp() -> None:
    with pytest.raises(RpcError) as error:
        await Running(Address("tcp", f"127.0.0.1:{free_port()}")).dialer().dial()
    assert error.value.code is Code.UNAVAILABLE
    assert "connect: connection refused" in error.value.message


@pytest.mark.parametrize("program", ["server", "agent"])
def test_programs_without_external_plugins_load_nothing_of_them(program: str) -> None:
    code = f"import sys, {program}.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith(("plugins.external.", "generated.plugin"))}
    assert loaded == {"plugins.external.loading"}
    assert not {"grpc", "keystores.external", "server.rpc.host"} & set(done.stdout.split())
