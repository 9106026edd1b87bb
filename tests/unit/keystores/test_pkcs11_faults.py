"""KeyManager "pkcs11" on a module that hangs, fails and counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from keystores.errors import Refused, TemporarilyUnavailable
from keystores.pkcs11 import device, pin
from keystores.pkcs11.pin import Pin
from plugins.keymanager import KeyManager, KeyType
from tests.simulators import faulty_hsm
from tests.simulators.faulty_hsm import FaultyHsm
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.faulty_token import DIGEST, SHA256, load, opened, signs


@pytest.fixture
async def manager(hsm: SoftHsm, faults: FaultyHsm) -> AsyncIterator[KeyManager]:
    async with opened(hsm, faults) as made:
        yield made


async def test_a_fresh_worker_signs_while_a_call_hangs(
    manager: KeyManager, faults: FaultyHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await manager.generate("key", KeyType.EC_P256)
    monkeypatch.setattr(device, "PATIENCE", 0.5)
    hang = faults.plant("C_Sign", "hang", times=1)
    began = time.monotonic()
    with pytest.raises(TemporarilyUnavailable, match=r"no answer within 0\.5 s"):
        await key.sign(DIGEST, SHA256)
    assert time.monotonic() - began < 10
    monkeypatch.undo()  # a new process takes longer than that
    await key.sign(DIGEST, SHA256)
    assert hang.hits == 2

    hang.lift()
    for _ in range(3):
        await signs(key, 10)


@pytest.mark.parametrize(
    "code",
    [
        faulty_hsm.CKR_GENERAL_ERROR,
        faulty_hsm.CKR_FUNCTION_FAILED,
        faulty_hsm.CKR_DEVICE_ERROR,
        faulty_hsm.CKR_ENCRYPTED_DATA_INVALID,
        faulty_hsm.CKR_KEY_HANDLE_INVALID,
        faulty_hsm.CKR_USER_NOT_LOGGED_IN,
        faulty_hsm.CKR_DEVICE_REMOVED,
        faulty_hsm.CKR_SESSION_CLOSED,
        faulty_hsm.CKR_SESSION_HANDLE_INVALID,
        faulty_hsm.CKR_TOKEN_NOT_PRESENT,
        faulty_hsm.CKR_CRYPTOKI_NOT_INITIALIZED,
    ],
    ids=hex,
)
async def test_a_session_that_died_is_opened_anew_unnoticed(manager: KeyManager, faults: FaultyHsm, code: int) -> None:
    key = await manager.generate("key", KeyType.EC_P256)
    with faults.planted("C_Sign", "return", code, times=1) as fault:
        await signs(key, 10)
        assert fault.hits > 1


async def test_a_wrong_pin_reaches_the_token_exactly_once(hsm: SoftHsm, faults: FaultyHsm) -> None:
    hsm.write_pin("000000\n")
    names = ("server", "upstream", "third", "fourth")
    results = await asyncio.gather(*(load(hsm, faults, name) for name in names), return_exceptions=True)
    assert all(isinstance(result, Refused) and "refused the PIN" in str(result) for result in results)
    [tried] = [name for name in names if (hsm.folder / f"{name}.json.pin-refused").exists()]
    Pin.refused_here.clear()  # a restart knows only the marker
    with pytest.raises(Refused, match="refused the PIN"):
        await load(hsm, faults, tried)
    assert faults.ended("C_Login") == [faulty_hsm.CKR_PIN_INCORRECT]


async def test_the_pin_is_given_once_however_much_is_signed(manager: KeyManager, faults: FaultyHsm) -> None:
    key = await manager.generate("key", KeyType.EC_P256)
    await asyncio.gather(*(key.sign(DIGEST, SHA256) for _ in range(16)))
    assert faults.ended("C_Login") == [0]


async def test_a_login_that_fails_does_not_wait_for_itself(manager: KeyManager, faults: FaultyHsm) -> None:
    """For another reason than the PIN: the next try may begin at once."""
    key = await manager.generate("key", KeyType.EC_P256)
    with (
        faults.planted("C_Sign", "forget", times=1),
        faults.planted("C_Login", "return", faulty_hsm.CKR_DEVICE_ERROR, times=1) as login,
    ):
        async with asyncio.timeout(pin.LOGIN_PATIENCE - 1):
            await signs(key, 5)
        assert login.hits == 2


@pytest.mark.parametrize(
    ("function", "action"),
    [("C_GetSlotList", ("empty",)), ("C_GetTokenInfo", ("return", faulty_hsm.CKR_GENERAL_ERROR))],
    ids=["not seen", "not read"],
)
async def test_a_token_that_a_start_overlooks_is_looked_for_again(
    hsm: SoftHsm, faults: FaultyHsm, function: str, action: tuple[str, ...]
) -> None:
    """SoftHSM overlooks a token while another process writes to it, until it is initialised anew."""
    with faults.planted(function, *action, times=2) as overlooked:
        async with opened(hsm, faults) as manager:
            await signs(await manager.generate("key", KeyType.EC_P256))
    assert overlooked.hits > 2


async def test_starts_beside_each_other_all_succeed(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """A server's key manager, its root and its agent may share a token, and a machine starts them at once."""
    for _ in range(3):
        managers = await asyncio.gather(*(load(hsm, faults, f"server-{number}") for number in range(4)))
        for each in managers:
            await each.close()
