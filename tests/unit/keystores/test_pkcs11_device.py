"""Worker processes: what a crash, a hang, a token that is away and the end of the program cost."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11 import device as devices
from keystores.pkcs11 import pool as pools
from keystores.pkcs11.configuration import TokenSpec
from keystores.pkcs11.device import Device
from keystores.pkcs11.lane import Lost, Silent
from keystores.pkcs11.pin import Pin
from keystores.pkcs11.protocol import Check, ListKeys, TokenName
from operations import logs
from plugins.keymanager import Hash, KeyType, Scheme
from tests.simulators import softhsm
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.tokens import opened, private_objects

SHA256 = Scheme(Hash.SHA256)
DIGEST = hashlib.sha256(b"message").digest()


def made(hsm: SoftHsm, *, sessions: int | None = None, module: str = softhsm.MODULE) -> Device:
    pin = Pin(hsm.pin_file, hsm.folder / "refused")
    return Device(TokenSpec(module, TokenName("the test's", label=hsm.label), sessions=sessions), pin, logs.get("t"))


@pytest.fixture
async def device(hsm: SoftHsm) -> AsyncIterator[Device]:
    device = made(hsm, sessions=3)
    await device.open()
    yield device
    await device.close()


def worker(device: Device) -> int:
    assert device.pid is not None
    return device.pid


def running(pid: int) -> bool:
    try:
        return state(Path(f"/proc/{pid}/stat")) != "Z"
    except FileNotFoundError:
        return False


def stop(pid: int) -> None:
    """Returns when each thread stands still: none answers any more."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + 60
    while any(state(task) != "T" for task in Path(f"/proc/{pid}/task").glob("*/stat")):
        assert time.monotonic() < end
        time.sleep(0.01)


def state(stat: Path) -> str:
    return stat.read_text().rpartition(")")[2].split()[0]


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 60
    while running(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


async def until_gone(pid: int) -> None:
    await asyncio.to_thread(wait_until_gone, pid)


def maps(pid: int) -> str:
    """What a process has loaded."""
    return Path(f"/proc/{pid}/maps").read_text()


async def ask(device: Device) -> None:
    await device.call(Check(), type(None))


async def test_the_token_says_what_it_is(device: Device) -> None:
    assert device.facts is not None
    assert (device.facts.label, device.facts.profile.value) == ("spire", "softhsm2")
    assert device.sessions == 3


async def test_a_crash_is_not_noticed_by_a_call_that_can_be_repeated(device: Device) -> None:
    first = worker(device)
    stop(first)
    calls = [asyncio.create_task(ask(device)) for _ in range(5)]
    await asyncio.sleep(0.05)
    os.kill(first, signal.SIGKILL)
    await asyncio.gather(*calls)
    assert worker(device) != first
    await until_gone(first)


async def test_a_crash_is_told_to_a_call_that_must_not_be_repeated(device: Device) -> None:
    first = worker(device)
    stop(first)
    call = asyncio.create_task(device.call(Check(), type(None), repeatable=False))
    await asyncio.sleep(0.05)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(Lost, match="the module crashed, or was stopped"):
        await call
    await ask(device)


async def test_a_hang_costs_its_caller_the_patience_and_the_others_a_retry(device: Device) -> None:
    first = worker(device)
    stop(first)
    impatient = asyncio.create_task(device.call(Check(), type(None), patience=0.3))
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(ask(device)) for _ in range(5)]
    with pytest.raises(Silent, match=r"no answer within 0\.3 s"):
        await impatient
    await asyncio.gather(*others)
    assert worker(device) != first
    await until_gone(first)


async def test_a_caller_that_gives_up_leaves_the_session_to_others(device: Device) -> None:
    for _ in range(10):
        calls = [asyncio.create_task(device.call(ListKeys("x"), list[object])) for _ in range(6)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    await asyncio.gather(*(ask(device) for _ in range(6)))


async def test_the_queue_is_bounded(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "QUEUE_LIMIT", 2)
    stop(worker(device))
    calls = [asyncio.create_task(ask(device)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(TemporarilyUnavailable, match="2 calls wait"):
        await ask(device)
    os.kill(worker(device), signal.SIGCONT)
    await asyncio.gather(*calls)


async def test_a_turn_that_does_not_come_is_not_waited_for(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "QUEUE_PATIENCE", 0.2)
    stop(worker(device))
    calls = [asyncio.create_task(ask(device)) for _ in range(4)]
    with pytest.raises(TemporarilyUnavailable, match="busy"):
        await calls[-1]
    os.kill(worker(device), signal.SIGCONT)
    await asyncio.gather(*calls[:-1])


async def test_closing_ends_the_worker_and_what_comes_later(hsm: SoftHsm) -> None:
    device = made(hsm)
    await device.open()
    pid = worker(device)
    calls = [asyncio.create_task(ask(device)) for _ in range(3)]
    await asyncio.sleep(0)
    await device.close()
    await asyncio.gather(*calls, return_exceptions=True)
    assert not running(pid)
    with pytest.raises(TemporarilyUnavailable, match="closed"):
        await ask(device)
    await device.close()


async def test_a_device_that_was_never_opened_is_closed(hsm: SoftHsm) -> None:
    device = made(hsm)
    device.start()
    await device.close()
    await made(hsm).close()


async def test_a_token_that_is_away_is_told_once_and_found_again(
    hsm: SoftHsm, device: Device, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "LAST_PROBE", 1.0)
    shutil.move(hsm.tokens, hsm.folder / "away")
    for _ in range(devices.FAILURES):
        with pytest.raises(TemporarilyUnavailable, match="does not answer"):
            await ask(device)
    assert device.away
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(TemporarilyUnavailable, match="is away, and asked again shortly"):
            await ask(device)
    assert time.monotonic() - began < 5

    back = asyncio.Event()
    device.when_back.append(back.set)
    await asyncio.sleep(2)
    shutil.move(hsm.folder / "away", hsm.tokens)
    async with asyncio.timeout(25):
        await back.wait()
    await ask(device)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert said == ["The token is away: calls are refused until it is back"]


async def test_the_environment_of_a_module_is_its_own(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.delenv("SOFTHSM2_CONF")
        async with opened(hsm, environment={"SOFTHSM2_CONF": str(hsm.configuration)}) as manager:
            await manager.generate("key", KeyType.EC_P256)
        assert "SOFTHSM2_CONF" not in os.environ


async def test_a_making_that_had_no_answer_leaves_no_second_key(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker dies after the key was made and before it could say so: the next call destroys that key first."""
    honest = Device.call

    async def lose_the_answer(self: Device, *arguments: Any, **options: Any) -> object:
        await honest(self, *arguments, **options)
        raise Lost("the worker ended")

    async with opened(hsm) as manager:
        with monkeypatch.context() as broken:
            broken.setattr(Device, "call", lose_the_answer)
            with pytest.raises(Lost):
                await manager.generate("x509-CA-A", KeyType.EC_P256)
        assert len(private_objects(hsm)) == 1
        key = await manager.generate("x509-CA-A", KeyType.EC_P256)
        assert len(private_objects(hsm)) == 1
        await key.sign(DIGEST, SHA256)


def test_a_worker_alone_loads_the_module_and_ends_with_the_program_that_is_killed(hsm: SoftHsm) -> None:
    code = f"""
import asyncio
from pathlib import Path
from tests.unit.keystores.test_pkcs11_device import made, worker
from tests.simulators.softhsm import SoftHsm

async def main():
    device = made(SoftHsm(Path({str(hsm.folder)!r})))
    await device.open()
    print(worker(device), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], env=hsm.environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process:
        pid = int(process.stdout.readline())
        assert "softhsm" in maps(pid)
        assert "softhsm" not in maps(process.pid)
        process.kill()
        wait_until_gone(pid)
