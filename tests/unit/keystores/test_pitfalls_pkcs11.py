"""What broke other systems' PKCS#11 key stores in the field, one failure after the other, and what ours makes of it.

The devices are SoftHSM with the habits of others. Each docstring names the failure, and where it was met.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from keystores.errors import KeyStoreError, PermanentlyUnusable, Refused, TemporarilyUnavailable, Unsupported
from keystores.pkcs11 import device
from keystores.pkcs11.configuration import Configuration
from keystores.pkcs11.profiles import ProfileName
from plugins.keymanager import Hash, KeyManager, KeyType, Scheme
from tests.simulators import faulty_hsm
from tests.simulators.faulty_hsm import IN_A_SESSION, FaultyHsm
from tests.simulators.softhsm import USER_PIN, SoftHsm
from tests.unit.keystores.faulty_token import (
    RECOVERY,
    accounted_for,
    keys_path,
    load,
    opened,
    private_keys,
    recovers,
    signs,
)

CKA_PRIVATE, CKA_SENSITIVE, CKA_DECRYPT, CKA_UNWRAP = 0x02, 0x103, 0x105, 0x107
CKA_EXTRACTABLE, CKA_LOCAL, CKA_NEVER_EXTRACTABLE, CKA_ALWAYS_SENSITIVE = 0x162, 0x163, 0x164, 0x165
CKM_RSA_PKCS_PSS = 0x0D
CKR_USER_ALREADY_LOGGED_IN = 0x100
ANYTHING = (*IN_A_SESSION, "C_OpenSession", "C_GetSlotList", "C_GetTokenInfo", "C_CloseSession")


@pytest.fixture
async def manager(hsm: SoftHsm, faults: FaultyHsm) -> AsyncIterator[KeyManager]:
    async with opened(hsm, faults) as made:
        await made.generate("key", KeyType.EC_P256)
        await made.generate("other", KeyType.EC_P256)
        yield made


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorter deadlines; those that ship are looked at apart."""
    monkeypatch.setattr(device, "PATIENCE", 1.5)
    monkeypatch.setattr(device, "PROBE_PATIENCE", 1.5)
    return 1.5


def workers() -> list[int]:
    """The pids of this process's worker processes."""
    children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
    return [int(pid) for pid in children if "keystores.pkcs11" in of_process(pid, "cmdline")]


def of_process(pid: int | str, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace")


async def test_idle_sessions_die_and_only_initialising_anew_recovers(manager: KeyManager, faults: FaultyHsm) -> None:
    """After some idle seconds every session is dead, and new ones too, until C_Finalize and C_Initialize.

    smallstep/certificates#937, yubihsm-shell#541
    """
    dead = faults.plant((*IN_A_SESSION, "C_OpenSession"), "return", faulty_hsm.CKR_SESSION_HANDLE_INVALID)
    faults.plant("C_Initialize", "heal", dead.id)
    began = time.monotonic()
    await recovers(await manager.get("key"))
    assert time.monotonic() - began < RECOVERY


@pytest.mark.parametrize(
    "code",
    [faulty_hsm.CKR_SESSION_HANDLE_INVALID, faulty_hsm.CKR_SESSION_CLOSED, faulty_hsm.CKR_DEVICE_REMOVED],
    ids=str,
)
async def test_a_dead_session_is_evicted(manager: KeyManager, faults: FaultyHsm, code: int) -> None:
    """A pool that gives dead sessions out again fails for ever. crypto11#142, boulder#3468"""
    before = faults.begun("C_OpenSession"), faults.begun("C_Initialize")
    with faults.planted("C_Sign", "return", code, times=1):
        await signs(await manager.get("key"))
    assert faults.begun("C_OpenSession") > before[0]
    assert faults.begun("C_Initialize") == before[1]


@pytest.mark.parametrize("code", [faulty_hsm.CKR_TOKEN_NOT_PRESENT, faulty_hsm.CKR_CRYPTOKI_NOT_INITIALIZED], ids=hex)
async def test_a_module_that_lost_itself_is_initialised_anew(manager: KeyManager, faults: FaultyHsm, code: int) -> None:
    """A new session does not help where the module has to be initialised. boulder#3468, krill#761"""
    lost = faults.plant((*IN_A_SESSION, "C_OpenSession"), "return", code)
    faults.plant("C_Initialize", "heal", lost.id)
    await recovers(await manager.get("key"))


async def test_keys_are_found_anew_after_a_reconnect(manager: KeyManager, faults: FaultyHsm) -> None:
    """After a reconnect a handle from before names another key. pkcs11-provider#495"""
    keys = [await manager.get(key_id) for key_id in ("key", "other")]
    for key in keys:
        await signs(key)
    found = faults.begun("C_FindObjectsInit")
    for key in keys:
        await signs(key, 10)
    assert faults.begun("C_FindObjectsInit") == found, "handles are kept otherwise"
    with faults.planted("C_SignInit", "forget", times=1):
        for key in keys:
            await signs(key, 10)
    assert faults.begun("C_FindObjectsInit") > found


async def test_a_handle_that_names_another_key_signs_nothing(manager: KeyManager, faults: FaultyHsm) -> None:
    """The device signs with a key that was not asked for. pkcs11-provider#495"""
    key = await manager.get("key")
    with faults.planted("C_SignInit", "swap"), pytest.raises(PermanentlyUnusable, match="does not verify"):
        await key.sign_batch([bytes(32)] * 3, Scheme(Hash.SHA256))
    await recovers(key)


async def test_a_dead_network_hsm_is_given_up_in_time(
    manager: KeyManager, faults: FaultyHsm, hurry: float, caplog: pytest.LogCaptureFixture
) -> None:
    """It gives no answer for 5 to 15 minutes. Pkcs11Interop#214, nethsm-pkcs11#156, boulder#1003"""
    caplog.set_level(logging.INFO)
    key = await manager.get("key")
    last = 0.0
    with faults.planted(ANYTHING, "hang") as dead:
        for _ in range(6):
            began = time.monotonic()
            with pytest.raises(TemporarilyUnavailable):
                await signs(key)
            last = time.monotonic() - began
            assert last < 30
        assert last < hurry, "the breaker answers at once"
        asked = dead.hits
        for _ in range(100):
            with pytest.raises(TemporarilyUnavailable):
                await signs(key)
        assert dead.hits <= asked + 2, "callers are kept from the device"
    began = time.monotonic()
    await recovers(key)
    assert time.monotonic() - began < RECOVERY
    alerts = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(alerts) == 1, [record.getMessage() for record in alerts]
    assert sum(record.getMessage() == "The token is back" for record in caplog.records) == 1


def test_deadlines_are_well_below_half_a_minute() -> None:
    """A call that waits longer takes its caller's deadline with it. boulder#1003"""
    assert device.PATIENCE + device.QUEUE_PATIENCE < 25
    assert device.LAST_PROBE + device.PROBE_PATIENCE < 25


async def test_throttling_is_waited_out(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """CloudHSM says CKR_FUNCTION_FAILED when it has too much to do; some never stop saying it."""
    async with opened(hsm, faults, profile=ProfileName("cloudhsm")) as manager:
        key = await manager.generate("key", KeyType.EC_P256)
        with faults.planted("C_Sign", "return", faulty_hsm.CKR_FUNCTION_FAILED, times=3):
            await signs(key, 5)
        before = faults.begun("C_Sign")
        with (
            faults.planted("C_Sign", "return", faulty_hsm.CKR_FUNCTION_FAILED),
            pytest.raises(TemporarilyUnavailable, match="CKR_FUNCTION_FAILED"),
        ):
            await signs(key)
        assert faults.begun("C_Sign") - before < 50
        await recovers(key)


@pytest.mark.parametrize(("most", "most_rw"), [(1, 1), (3, 1), (3, 3)])
async def test_session_limits_are_kept(hsm: SoftHsm, faults: FaultyHsm, most: int, most_rw: int) -> None:
    """A token with few sessions, or with one, is enough. crypto11#3"""
    faults.plant(("C_GetTokenInfo", "C_OpenSession"), "limit", most, most_rw)
    async with opened(hsm, faults, sessions=8) as manager:
        keys = [await manager.generate(key_id, KeyType.EC_P256) for key_id in ("key", "other")]
        await asyncio.gather(*(signs(keys[caller % 2], 5) for caller in range(16)))
        assert 1 <= faults.sessions <= most
        await manager.generate("key", KeyType.EC_P256)


async def test_who_is_logged_in_already_is_welcome(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """Login is per process and token: CKR_USER_ALREADY_LOGGED_IN is no failure."""
    faults.plant("C_Login", "return", CKR_USER_ALREADY_LOGGED_IN, after=True)
    async with opened(hsm, faults) as manager:
        await signs(await manager.generate("key", KeyType.EC_P256))


async def test_a_wrong_pin_is_never_tried_again(manager: KeyManager, faults: FaultyHsm) -> None:
    """Three tries lock a token: not even a reconnect may make the second one."""
    key = await manager.get("key")
    wrong = faults.plant("C_Login", "return", faulty_hsm.CKR_PIN_INCORRECT)
    faults.plant("C_Sign", "forget", times=1)
    for _ in range(5):
        with pytest.raises(KeyStoreError, match="PIN"):
            await signs(key)
    await asyncio.sleep(2)
    assert wrong.hits == 1


async def test_no_process_inherits_the_module(manager: KeyManager, faults: FaultyHsm) -> None:
    """A forked child must not use its parent's module: the program has none, and workers are started afresh."""
    await signs(await manager.get("key"))
    name = Path(faults.module_path).name
    [worker] = workers()
    assert name not in of_process("self", "maps")
    assert name in of_process(worker, "maps")


async def test_a_module_that_cannot_lock_is_asked_by_one_thread(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """CKR_CANT_LOCK: it wants to be initialised for one thread, and then gets one."""
    faults.plant("C_Initialize", "unlockable")
    async with opened(hsm, faults, sessions=8) as manager:
        keys = [await manager.generate(key_id, KeyType.EC_P256) for key_id in ("key", "other")]
        await asyncio.gather(*(signs(keys[caller % 2], 5) for caller in range(16)))
        assert faults.overlaps == 0


@pytest.mark.parametrize("how", ["segv", "abort", "exit"])
async def test_a_module_that_crashes_takes_only_its_worker(manager: KeyManager, faults: FaultyHsm, how: str) -> None:
    """SoftHSM 2.6.1 has crashed under concurrency. SoftHSMv2#688"""
    keys = [await manager.get(key_id) for key_id in ("key", "other")]
    [first] = workers()
    faults.plant("C_Sign", "crash", how, skip=20, times=1)
    results = await asyncio.gather(*(signs(keys[caller % 2], 5) for caller in range(16)), return_exceptions=True)
    failed = [result for result in results if result is not None]
    assert len(failed) <= 1
    assert all(isinstance(result, TemporarilyUnavailable) for result in failed)
    assert workers() != [first]


@pytest.mark.parametrize(
    ("profile", "action", "code", "attribute"),
    [
        ("nshield", "refuse", faulty_hsm.CKR_TEMPLATE_INCONSISTENT, f"{CKA_DECRYPT:x} 1"),
        ("nshield", "refuse", faulty_hsm.CKR_TEMPLATE_INCONSISTENT, f"{CKA_UNWRAP:x} 1"),
        ("cloudhsm", "require", faulty_hsm.CKR_TEMPLATE_INCOMPLETE, f"{CKA_PRIVATE:x} 1"),
        ("nethsm", "refuse", faulty_hsm.CKR_ATTRIBUTE_TYPE_INVALID, f"{CKA_EXTRACTABLE:x}"),
    ],
)
async def test_templates_suit_the_device(
    hsm: SoftHsm, faults: FaultyHsm, profile: str, action: str, code: int, attribute: str
) -> None:
    """nShield rejects all-true usage flags, CloudHSM wants CKA_PRIVATE, some reject CKA_EXTRACTABLE.

    pkcs11-provider#791
    """
    with faults.planted("C_GenerateKeyPair", action, code, attribute) as habit:
        async with opened(hsm, faults, profile=ProfileName(profile)) as manager:
            for key_type in (KeyType.EC_P256, KeyType.RSA_2048):
                await signs(await manager.generate(key_type.value, key_type))
        assert habit.hits == 2


async def test_a_template_that_the_device_refuses_is_a_clear_refusal(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """It names the token's answer, and nothing is left behind."""
    async with opened(hsm, faults) as manager:
        refused = (faulty_hsm.CKR_TEMPLATE_INCONSISTENT, CKA_SENSITIVE)
        with (
            faults.planted("C_GenerateKeyPair", "refuse", *refused),
            pytest.raises(Refused, match="CKR_TEMPLATE_INCONSISTENT"),
        ):
            await manager.generate("key", KeyType.EC_P256)
        assert private_keys(hsm) == set()
        await signs(await manager.generate("key", KeyType.EC_P256))


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384], ids=lambda key_type: key_type.value)
async def test_der_signatures_are_understood(hsm: SoftHsm, faults: FaultyHsm, key_type: KeyType) -> None:
    """ECDSA comes as fixed-width numbers; some tokens return DER."""
    faults.plant("C_Sign", "der")
    async with opened(hsm, faults) as manager:
        await signs(await manager.generate("key", key_type), 20)


@pytest.mark.parametrize("action", ["wrong", "truncated", "empty", "repeated"])
@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.RSA_2048], ids=lambda key_type: key_type.value)
async def test_every_signature_is_verified_before_it_leaves(
    hsm: SoftHsm, faults: FaultyHsm, action: str, key_type: KeyType
) -> None:
    """A device that lies must not make a CA lie. One wrong signature spoils its batch."""
    async with opened(hsm, faults) as manager:
        key = await manager.generate("key", key_type)
        with faults.planted("C_Sign", action, skip=1), pytest.raises(PermanentlyUnusable):
            await signs(key, 5)
        await signs(key, 5)


@pytest.mark.parametrize("form", ["raw", "bits"])
@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384], ids=lambda key_type: key_type.value)
async def test_points_are_understood_in_every_form(
    hsm: SoftHsm, faults: FaultyHsm, form: str, key_type: KeyType
) -> None:
    """CKA_EC_POINT as a bare point begins like a DER OCTET STRING. crypto11#478, #766"""
    faults.plant("C_GetAttributeValue", "point", form)
    async with opened(hsm, faults) as manager:
        made = [await manager.generate(f"key-{number}", key_type) for number in range(3)]
    keys_path(hsm).unlink()
    async with opened(hsm, faults) as manager:
        assert {key.public_key for key in await manager.list()} == {key.public_key for key in made}
        for key in await manager.list():
            await signs(key)


async def test_pss_has_a_salt_as_long_as_the_hash_and_says_when_the_token_lacks_it(
    hsm: SoftHsm, faults: FaultyHsm
) -> None:
    """Mechanisms with and without a hash differ by token. OpenSC#2474"""
    async with opened(hsm, faults) as manager:
        key = await manager.generate("key", KeyType.RSA_2048)
        await signs(key, 2, Scheme(Hash.SHA256, pss=True))
        lacking = ("C_SignInit", "C_GetMechanismList", "C_GetMechanismInfo")
        with faults.planted(lacking, "lack", CKM_RSA_PKCS_PSS):
            with pytest.raises(Unsupported, match="CKR_MECHANISM_INVALID"):
                await signs(key, 1, Scheme(Hash.SHA256, pss=True))
            await signs(key)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        (CKA_SENSITIVE, "00"),
        (CKA_ALWAYS_SENSITIVE, "00"),
        (CKA_NEVER_EXTRACTABLE, "00"),
        (CKA_LOCAL, "00"),
        (CKA_EXTRACTABLE, "01"),
    ],
    ids=str,
)
async def test_attributes_are_read_back_and_a_key_that_is_not_safe_goes(
    hsm: SoftHsm, faults: FaultyHsm, attribute: int, value: str
) -> None:
    """A device may make another key than it was asked for."""
    async with opened(hsm, faults) as manager:
        with (
            faults.planted("C_GetAttributeValue", "attribute", attribute, value),
            pytest.raises(Refused, match=r"not as safe as it must be.*it was destroyed"),
        ):
            await manager.generate("key", KeyType.EC_P256)
        assert private_keys(hsm) == set()
        assert list(await manager.list()) == []


async def test_a_key_is_never_overwritten(manager: KeyManager, hsm: SoftHsm) -> None:
    """The new one has a CKA_ID of its own, and the former one stays until nothing needs it."""
    before = private_keys(hsm)
    await manager.generate("key", KeyType.EC_P256)
    assert before < private_keys(hsm)
    assert private_keys(hsm) == accounted_for(hsm)


async def test_two_objects_that_match_are_an_error(manager: KeyManager, faults: FaultyHsm) -> None:
    """No choice is made between them."""
    key = await manager.get("key")
    faults.plant("C_Sign", "forget", times=1)
    with faults.planted("C_FindObjects", "twice"), pytest.raises(PermanentlyUnusable, match="has 2 private keys"):
        await signs(key)
    await recovers(key)


async def test_a_crash_loop_mints_no_keys_without_end(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """Each round generates, loses the answer, and starts anew. spire#5038"""
    for _ in range(6):
        manager = await load(hsm, faults)
        try:
            with (
                faults.planted("C_GenerateKeyPair", "crash", "segv", after=True, times=1),
                pytest.raises(TemporarilyUnavailable),
            ):
                await manager.generate("key", KeyType.EC_P256)
            await recovers(await manager.generate("key", KeyType.EC_P256))
        finally:
            await manager.close()
    async with opened(hsm, faults):
        assert private_keys(hsm) == accounted_for(hsm)
        assert len(private_keys(hsm)) <= 8


@pytest.mark.parametrize(
    ("function", "code", "after"),
    [
        ("C_GenerateKeyPair", faulty_hsm.CKR_DEVICE_ERROR, True),
        ("C_GenerateKeyPair", faulty_hsm.CKR_DEVICE_MEMORY, True),
        ("C_GenerateKeyPair", faulty_hsm.CKR_MECHANISM_INVALID, True),
        ("C_GetAttributeValue", faulty_hsm.CKR_DEVICE_ERROR, False),
        ("C_GetAttributeValue", faulty_hsm.CKR_ATTRIBUTE_TYPE_INVALID, False),
    ],
)
async def test_a_device_that_fails_after_it_made_a_key_is_not_filled_with_keys(
    hsm: SoftHsm, faults: FaultyHsm, function: str, code: int, after: bool
) -> None:
    """A server that goes on trying, without a restart, leaves no more than one behind. spire#5038"""
    async with opened(hsm, faults) as manager:
        await manager.generate("key", KeyType.EC_P256)
        for _ in range(12):
            with faults.planted(function, "return", code, after=after), pytest.raises(KeyStoreError):
                await manager.generate("key", KeyType.EC_P256)
            await recovers(await manager.get("key"))
        assert len(private_keys(hsm)) <= 2
        await manager.generate("key", KeyType.EC_P256)
        assert private_keys(hsm) == accounted_for(hsm)


async def test_a_device_that_destroys_nothing_still_rotates(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """The new key is there and named: that an old one could not be destroyed is told, and tried again."""
    async with opened(hsm, faults, grace="0s") as manager:
        with faults.planted("C_DestroyObject", "return", faulty_hsm.CKR_ACTION_PROHIBITED):
            for _ in range(5):
                await signs(await manager.generate("key", KeyType.EC_P256))
        await signs(await manager.generate("key", KeyType.EC_P256))
        assert len(private_keys(hsm)) == 1


async def test_a_key_that_another_server_uses_is_not_disposed_of(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """Namespaces keep them apart on one token; what is shared on purpose is disposed of by nobody."""
    async with opened(hsm, faults, "one", grace="0s") as one, opened(hsm, faults, "two", grace="0s") as two:
        key = await two.generate("key", KeyType.EC_P256)
        for _ in range(10):
            await one.generate("key", KeyType.EC_P256)
        await signs(key)
    async with opened(hsm, faults, "three", namespace="two", shared_keys=True, grace="0s") as three:
        await three.generate("key", KeyType.EC_P256)
    async with opened(hsm, faults, "two") as two:
        await signs(await two.get("key"))


async def test_the_pin_is_on_no_command_line_and_in_no_log(
    hsm: SoftHsm, faults: FaultyHsm, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes from a file, a credential or a prompt, and a pipe is a file name like any other. libp11#309"""
    caplog.set_level(logging.DEBUG)
    async with opened(hsm, faults) as manager:
        await signs(await manager.generate("key", KeyType.EC_P256))
        for pid in workers():
            for name in ("cmdline", "environ"):
                assert USER_PIN not in of_process(pid, name)
    assert USER_PIN not in caplog.text
    with pytest.raises(msgspec.ValidationError, match="unknown field `pin`"):
        msgspec.convert({"module_path": "x", "pin": USER_PIN}, Configuration)
    touched = hsm.folder / "touched"
    with pytest.raises(Exception, match=r"\|touch"):
        await load(hsm, faults, "other", pin_file=f"|touch {touched}")
    assert not touched.exists()


async def test_a_full_audit_log_is_named(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """A YubiHSM that is told to keep its log stops signing after 62 entries: its module says CKR_DEVICE_MEMORY."""
    async with opened(hsm, faults, profile=ProfileName("yubihsm2")) as manager:
        key = await manager.generate("key", KeyType.EC_P256)
        with faults.planted("C_Sign", "return", faulty_hsm.CKR_DEVICE_MEMORY):
            for _ in range(5):
                with pytest.raises(TemporarilyUnavailable, match="audit log is full"):
                    await signs(key)
        await signs(key)
