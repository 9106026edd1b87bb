"""Attacks on HTTP/2 leave the server small and answering. It runs in a process of its own, whose memory is measured."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.simulators.echo import UNARY, Echo, echo, text_of
from tests.simulators.http2_attacks import ATTACKS, Attack, run
from transport.client import Channel

GROWTH = 48 * 1024  # KiB that an attack may cost


@dataclass
class Target:
    path: str
    pid: int

    def peak(self) -> int:
        """The most memory the process ever held, in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
        raise LookupError("VmHWM")


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    path = str(tmp_path / "echo.sock")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.simulators.echo_server", path, stdin=-1, stdout=-1, stderr=None
    )
    assert process.stdout is not None
    assert process.stdin is not None
    await process.stdout.readline()
    yield Target(path, process.pid)
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name + ("" if attack.reads else "_unread"))
async def test_an_attack_costs_little(target: Target, attack: Attack) -> None:
    async with Channel.unix(target.path) as before:
        await before.unary(UNARY, echo(), Echo)
        peak = target.peak()
        attacking = asyncio.create_task(asyncio.to_thread(run, target.path, attack))
        while not attacking.done():
            assert text_of(await before.unary(UNARY, echo("mine"), Echo, timeout=60)) == "mine"
            await asyncio.sleep(0.05)
        seen = await attacking
    grown = target.peak() - peak
    assert grown < GROWTH, f"{grown} KiB; {dict(seen)}"
    async with Channel.unix(target.path) as after:
        assert text_of(await after.unary(UNARY, echo("after"), Echo, timeout=60)) == "after"
