"""What broke TPM key stores in the field, a test named after each failure that a key store meets."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystores.tpm import messages
from keystores.tpm.worker import Worker
from plugins.keymanager import KeyType
from tests.simulators import faulty_tpm, swtpm, tpm_resource_manager
from tests.simulators.faulty_tpm import CREATE, GET_RANDOM, LOAD, SIGN, START_AUTH_SESSION, UNSEAL, Trouble
from tests.simulators.swtpm import Swtpm
from tests.unit.keystores.tpm_stores import DIGEST, SHA256, Parts, check_signs, opened

OPERATIONS = 65_600
"""More than the largest context gap of TPMs, 65,535."""


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    with swtpm.started(tmp_path / "tpm") as started:
        yield started


@pytest.mark.timeout(600)
async def test_an_idle_open_session_breaks_signing_after_65000_operations_and_there_is_none(
    tpm: Swtpm, tmp_path: Path
) -> None:
    """tpm2-pkcs11#843: what the kernel's resource manager saved so long ago cannot be loaded any more."""
    with tpm_resource_manager.before(tpm) as kernel:
        manager = await opened(kernel.client("server"), tmp_path / "keys")
        key = await manager.generate("key", KeyType.EC_P256)
        await check_signs(key)
        while kernel.held("server"):  # noqa: ASYNC110 - which waits for the key store to rest
            await asyncio.sleep(0.1)
        assert await asyncio.to_thread(kernel.storm, OPERATIONS) == OPERATIONS
        await check_signs(key)

        # Its session is still there now, as it would be for ever in a store that kept one.
        assert kernel.held("server")
        kernel.keep_a_session()
        assert await asyncio.to_thread(kernel.storm, OPERATIONS) < OPERATIONS
        await manager.close()


async def test_a_resource_manager_serialises_commands_and_keeps_programs_apart(tpm: Swtpm, tmp_path: Path) -> None:
    """A server, its agent and another program on one TPM."""
    with tpm_resource_manager.before(tpm) as kernel:
        managers = [await opened(kernel.client(name), tmp_path / name) for name in ("server", "agent", "other")]
        keys = [await manager.generate("key", KeyType.EC_P256) for manager in managers]
        await asyncio.gather(*(check_signs(key) for key in keys for _ in range(10)))
        await asyncio.gather(*(manager.close() for manager in managers))
        assert [kernel.held(name) for name in ("server", "agent", "other")] == [0, 0, 0]
    assert tpm.handles() == []


@pytest.mark.parametrize("trouble", [Trouble.CUT, Trouble.TRUNCATE, Trouble.GARBAGE])
async def test_a_transport_error_poisons_the_esapi_context_and_a_new_one_is_made(
    tpm: Swtpm, tmp_path: Path, trouble: Trouble
) -> None:
    """thin-edge#4353."""
    with faulty_tpm.before(tpm) as faulty:
        manager = await opened(faulty.tcti, tmp_path / "keys")
        key = await manager.generate("key", KeyType.EC_P256)
        for _ in range(3):
            faulty.fail(trouble, SIGN, once=True)
            await check_signs(key)
            assert faulty.struck == 1
        await manager.close()
    assert tpm.handles() == []


async def test_lockout_also_counts_power_loss_for_keys_with_an_authorization_and_ours_have_none(
    tpm: Swtpm, tmp_path: Path
) -> None:
    """tpm2-tss#2400, #2705: noDA is set, so that neither the lockout nor what counts towards it concerns them."""
    manager = await opened(tpm.tcti, tmp_path / "keys")
    await manager.generate("key", KeyType.EC_P256)
    secret = await manager.sealing_secret("label")
    assert (await manager.prove("key")).record.attributes["noDA"]
    lock_out(tpm)
    await check_signs(await manager.get("key"))
    await manager.close()

    tpm.reset()
    manager = await opened(tpm.tcti, tmp_path / "keys")
    await check_signs(await manager.get("key"))
    await check_signs(await manager.generate("new", KeyType.EC_P256))
    assert await manager.sealing_secret("label") == secret
    await manager.close()


def lock_out(tpm: Swtpm) -> None:
    """By a key of somebody else's, and wrong guesses at its authorization."""
    tpm.tool("dictionarylockout", "--setup-parameters", "--max-tries", "1", "--recovery-time", "1000000")
    tpm.make_srk()
    attributes = swtpm.SIGNING.replace("|noda", "")
    files = ("-u", "da.pub", "-r", "da.priv")
    tpm.tool("create", "-C", "0x81000001", "-G", "ecc256", "-p", "secret", "-a", attributes, *files)
    tpm.tool("load", "-C", "0x81000001", *files, "-c", "da.ctx")
    (tpm.folder / "message").write_text("message")
    for _ in range(3):
        with pytest.raises(AssertionError):
            tpm.tool("sign", "-c", "da.ctx", "-p", "guess", "-g", "sha256", "-o", "signature", "message")
    tpm.tool("flushcontext", "-t")
    assert "inLockout:                 1" in tpm.tool("getcap", "properties-variable")


@pytest.mark.parametrize("persistent", [None, "0x81000001", "0x81000001, which is no SRK"])
async def test_an_existing_srk_handle_is_used_and_none_is_ever_taken(
    tpm: Swtpm, tmp_path: Path, persistent: str | None
) -> None:
    """Neither is 0x81000001 assumed to be free or ours, nor is a handle made."""
    if persistent == "0x81000001":
        tpm.make_srk()
    elif persistent is not None:
        tpm.tool("createprimary", "-C", "o", "-G", "ecc256", "-a", swtpm.SIGNING, "-c", "theirs.ctx")
        tpm.tool("evictcontrol", "-C", "o", "-c", "theirs.ctx", "0x81000001")
        tpm.tool("flushcontext", "-t")
    there = tpm.handles()
    parts = Parts.of(tpm.tcti, tmp_path / "keys")
    manager = await parts.opened()
    await check_signs(await manager.generate("key", KeyType.EC_P256))
    assert parts.worker.place.source == ("0x81000001" if persistent == "0x81000001" else "SRK:ec-p256")
    await manager.close()
    assert tpm.handles() == there


async def test_an_srk_handle_that_is_taken_away_is_made_up_for_by_its_template(tpm: Swtpm, tmp_path: Path) -> None:
    tpm.make_srk()
    manager = await opened(tpm.tcti, tmp_path / "keys")
    await manager.generate("key", KeyType.EC_P256)
    await manager.close()
    tpm.tool("evictcontrol", "-C", "o", "-c", "0x81000001")
    for _ in range(2):
        manager = await opened(tpm.tcti, tmp_path / "keys")
        await check_signs(await manager.get("key"))
        await manager.close()
    assert tpm.handles() == []


async def test_sessions_over_a_bus_that_can_be_tapped_are_salted_and_encrypt_parameters(
    tpm: Swtpm, tmp_path: Path
) -> None:
    """The line between library and TPM, recorded: neither digests nor secrets are on it."""
    with faulty_tpm.before(tpm) as faulty:
        parts = Parts.of(faulty.tcti, tmp_path / "keys")
        manager = await parts.opened()
        key = await manager.generate("key", KeyType.EC_P256)
        await key.sign(DIGEST, SHA256)
        await manager.sealing_secret("label")
        root = await unsealed(parts)
        await manager.close()
    commands = [(struct.unpack_from(">I", command, 6)[0], command, response) for command, response in faulty.log]
    for _, command, response in commands:
        for secret in (DIGEST, root):
            assert secret not in command
            assert secret not in response
    assert {CREATE, LOAD, SIGN, UNSEAL, GET_RANDOM} <= {code for code, _, _ in commands}
    for code, command, _ in commands:
        if code in {CREATE, LOAD, SIGN, UNSEAL, GET_RANDOM}:
            [attributes] = session_attributes(command, handles={SIGN: 1, CREATE: 1, LOAD: 1, UNSEAL: 1}.get(code, 0))
            wanted = {SIGN: DECRYPT, UNSEAL: ENCRYPT, GET_RANDOM: ENCRYPT}.get(code, DECRYPT | ENCRYPT)
            assert attributes & wanted == wanted, hex(code)
        if code == START_AUTH_SESSION and command[-5] != TRIAL:
            key_handle, _, nonce = struct.unpack_from(">IIH", command, 10)
            [salt] = struct.unpack_from(">H", command, 20 + nonce)
            assert key_handle >> 24 == 0x80, "salted to the parent"
            assert salt > 0


DECRYPT, ENCRYPT, TRIAL = 0x20, 0x40, 0x03


def session_attributes(command: bytes, handles: int) -> list[int]:
    """Of each session in the authorization area, in which the first is none for a password."""
    assert struct.unpack_from(">H", command)[0] == 0x8002
    at = 10 + 4 * handles
    [size] = struct.unpack_from(">I", command, at)
    at, end = at + 4, at + 4 + size
    found: list[int] = []
    while at < end:
        [handle, nonce] = struct.unpack_from(">IH", command, at)
        assert handle >> 24 in {0x02, 0x03}, "no password session"
        at += 6 + nonce
        found.append(command[at])
        at += 3 + struct.unpack_from(">H", command, at + 1)[0]
    return found


async def unsealed(parts: Parts) -> bytes:
    stored = parts.folder.read_sealed()
    assert stored is not None
    return (await parts.worker.call(messages.Unseal(blob=stored.blob), messages.Unsealed)).data


async def test_a_thousand_keys_without_persistent_handles(tpm: Swtpm) -> None:
    worker = Worker(messages.Place(tcti=tpm.tcti))
    made = [await worker.call(messages.Create(key_type="ec-p256"), messages.Wrapped) for _ in range(1000)]
    for wrapped in made:
        key = messages.Blob(public=wrapped.public, private=wrapped.private)
        request = messages.Sign(key=key, digests=[DIGEST], scheme="ecdsa", hash="sha256")
        assert len((await worker.call(request, messages.Signed)).signatures) == 1
    await worker.close()
    assert tpm.handles() == []
