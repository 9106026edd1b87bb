"""KeyManager "pkcs11" on a module that hangs, fails and counts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keystores.errors import Refused, TemporarilyUnavailable
from keystores.pkcs11 import device
from keystores.pkcs11.configuration import Configuration
from keystores.pkcs11.manager import load_server
from keystores.pkcs11.pin import Pin
from operations import logs
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, KeyManager, KeyType, Scheme
from tests.simulators.softhsm import SoftHsm, faulty_module

SHA256 = Scheme(Hash.SHA256)
DIGEST = hashlib.sha256(b"message").digest()
CKR_FUNCTION_FAILED = 0x06
CKR_DEVICE_REMOVED = 0x32
CKR_SESSION_CLOSED = 0xB0
CKR_SESSION_HANDLE_INVALID = 0xB3
CKR_TOKEN_NOT_PRESENT = 0xE0
CKR_CRYPTOKI_NOT_INITIALIZED = 0x190


@pytest.fixture
def faults(hsm: SoftHsm) -> Path:
    """The folder in which faults are asked for."""
    return faulty_module(hsm.folder / "faults").parent


def configuration(hsm: SoftHsm, faults: Path, name: str) -> Configuration:
    return Configuration(
        module_path=str(faults / "faulty.so"),
        token_label=hsm.label,
        pin_file=str(hsm.pin_file),
        namespace=name,
        keys_path=str(hsm.folder / f"{name}.json"),
    )


async def load(hsm: SoftHsm, faults: Path, name: str = "server") -> KeyManager:
    context = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("pkcs11"))
    return await load_server(configuration(hsm, faults, name), context)


@pytest.fixture
async def manager(hsm: SoftHsm, faults: Path) -> AsyncIterator[KeyManager]:
    opened = await load(hsm, faults)
    yield opened
    (faults / "hanging").unlink(missing_ok=True)
    await opened.close()


def logins(faults: Path) -> list[str]:
    return (faults / "logins").read_text().split()


async def test_a_fresh_worker_signs_while_a_call_hangs(
    manager: KeyManager, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await manager.generate("key", KeyType.EC_P256)
    monkeypatch.setattr(device, "PATIENCE", 0.5)
    (faults / "hang").touch()
    began = time.monotonic()
    with pytest.raises(TemporarilyUnavailable, match=r"no answer within 0\.5 s"):
        await key.sign(DIGEST, SHA256)
    assert time.monotonic() - began < 10
    assert (faults / "hanging").exists()
    monkeypatch.undo()  # a new process takes longer than that
    await key.sign(DIGEST, SHA256)
    assert (faults / "hanging").exists()

    (faults / "hanging").unlink()
    for _ in range(3):
        await key.sign_batch([DIGEST] * 10, SHA256)


@pytest.mark.parametrize(
    "code",
    [
        CKR_FUNCTION_FAILED,
        CKR_DEVICE_REMOVED,
        CKR_SESSION_CLOSED,
        CKR_SESSION_HANDLE_INVALID,
        CKR_TOKEN_NOT_PRESENT,
        CKR_CRYPTOKI_NOT_INITIALIZED,
    ],
    ids=hex,
)
async def test_a_session_that_died_is_opened_anew_unnoticed(manager: KeyManager, faults: Path, code: int) -> None:
    key = await manager.generate("key", KeyType.EC_P256)
    (faults / "fail").write_text(f"{code:x}")
    await key.sign_batch([DIGEST] * 10, SHA256)
    assert (faults / "failed").exists()


async def test_a_wrong_pin_reaches_the_token_exactly_once(hsm: SoftHsm, faults: Path) -> None:
    hsm.write_pin("000000\n")
    names = ("server", "upstream", "third", "fourth")
    results = await asyncio.gather(*(load(hsm, faults, name) for name in names), return_exceptions=True)
    assert all(isinstance(result, Refused) and "refused the PIN" in str(result) for result in results)
    [tried] = [name for name in names if (hsm.folder / f"{name}.json.pin-refused").exists()]
    Pin.refused_here.clear()  # a restart knows only the marker
    with pytest.raises(Refused, match="refused the PIN"):
        await load(hsm, faults, tried)
    assert logins(faults) == ["0xa0"]


async def test_the_pin_is_given_once_however_much_is_signed(manager: KeyManager, faults: Path) -> None:
    key = await manager.generate("key", KeyType.EC_P256)
    await asyncio.gather(*(key.sign(DIGEST, SHA256) for _ in range(16)))
    assert logins(faults) == ["0"]
