"""KeyManager "pkcs11" on SoftHSM, looked at from outside with pkcs11-tool, and in trouble."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from keystores.errors import InvalidArgument, NotFound, Refused, TemporarilyUnavailable
from keystores.pkcs11.batches import Signer
from keystores.pkcs11.manager import load_agent
from keystores.pkcs11.pin import Pin
from keystores.pkcs11.protocol import Mechanism
from keystores.pkcs11.tokens import Tokens
from operations.errors import ConfigurationError, PermanentlyUnusable, SpireError
from plugins.keymanager import Hash, KeyType, Scheme
from tests.simulators import softhsm
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.tokens import configured, context, opened, private_objects

SHA256 = Scheme(Hash.SHA256)
DIGEST = hashlib.sha256(b"message").digest()


async def refusal(hsm: SoftHsm, **changes: Any) -> SpireError:
    """The error of a start that must not succeed, which is one line."""
    with pytest.raises(SpireError) as raised:
        async with opened(hsm, **changes):
            pass
    assert "\n" not in str(raised.value)
    return raised.value


def set_pin_changed(hsm: SoftHsm) -> None:
    later = time.time() + 10
    os.utime(hsm.pin_file, (later, later))


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


async def test_private_keys_stay_in_the_token(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        for key_id, key_type in (("x509-CA-A", KeyType.EC_P384), ("JWT-Signer-A", KeyType.RSA_2048)):
            await manager.generate(key_id, key_type)

    objects = private_objects(hsm)
    assert sorted(re.findall(r"label: +(\S+)", "".join(objects))) == ["server-a/JWT-Signer-A", "server-a/x509-CA-A"]
    for each in objects:
        assert re.search(r"Usage: +sign\n", each)
        assert re.search(r"Access: +sensitive, always sensitive, never extract\w+, local\n?", each)
        assert re.search(r"ID: +[0-9a-f]{32,}\n", each)
    ids = re.findall(r"ID: +([0-9a-f]+)\n", "".join(objects))
    assert len(set(ids)) == 2

    stored = (hsm.folder / "keys.json").read_bytes()
    assert (hsm.folder / "keys.json").stat().st_mode & 0o777 == 0o600
    assert softhsm.USER_PIN.encode() not in stored
    assert all(cka_id.encode() in stored for cka_id in ids)


@pytest.mark.parametrize(
    "changes",
    [
        {"token_label": None, "token_uri": "pkcs11:token=spire;manufacturer=SoftHSM%20project"},
        {"token_label": "spire"},
    ],
)
async def test_a_token_is_found_by_label_or_uri(hsm: SoftHsm, changes: dict[str, str | None]) -> None:
    async with opened(hsm, **changes) as manager:
        assert list(await manager.list()) == []


async def test_a_token_is_found_by_serial_among_namesakes(hsm: SoftHsm) -> None:
    serial = re.search(r"serial num +: +(\S+)", hsm.tool("--list-token-slots", pin=None))
    assert serial
    hsm.add_token(hsm.label)
    assert "token_serial" in str(await refusal(hsm))
    async with opened(hsm, token_label=None, token_serial=serial[1]) as manager:
        await manager.generate("key", KeyType.EC_P256)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"module_path": "/nowhere/module.so"}, NotFound, "module_path: there is no PKCS#11 module at /nowhere/module"),
        ({"module_path": "/etc/hostname"}, NotFound, "module_path: /etc/hostname is no PKCS#11 module"),
        ({"token_label": "other"}, NotFound, r"token_label 'other'; the tokens there are: 'spire'"),
        ({"token_label": None}, ConfigurationError, "set one of token_label, token_serial and token_uri"),
        ({"token_serial": "1"}, ConfigurationError, "set one of token_label, token_serial and token_uri"),
        ({"token_label": None, "token_uri": "pkcs11:object=x"}, ConfigurationError, "token_uri: 'object=x'"),
        ({"token_label": None, "token_uri": "pkcs11:token=x?pin-value=1"}, ConfigurationError, "without a query"),
        ({"pin_file": None}, ConfigurationError, "set one of pin_file and pin_credential"),
        ({"pin_file": "/nowhere/pin"}, ConfigurationError, "/nowhere/pin.*PIN cannot be read"),
        ({"pin_file": None, "pin_credential": "pin"}, ConfigurationError, "systemd passed no credentials"),
        ({"namespace": "a/b"}, ConfigurationError, "namespace: 'a/b'"),
        ({"keys_path": None}, ConfigurationError, "set keys_path"),
        ({"grace": "1 day"}, ConfigurationError, "grace: "),
        ({"keys_path": "/nowhere/keys.json"}, PermanentlyUnusable, "/nowhere/keys.json cannot be written"),
    ],
)
async def test_a_start_that_cannot_succeed_says_why(
    hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], error: type[SpireError], text: str
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    refused = await refusal(hsm, **changes)
    assert isinstance(refused, error)
    assert re.search(text, str(refused))


@pytest.mark.parametrize("content", [softhsm.USER_PIN, f"{softhsm.USER_PIN}\n", f"{softhsm.USER_PIN}\r\n"])
async def test_a_newline_after_the_pin_is_ignored(hsm: SoftHsm, content: str) -> None:
    hsm.write_pin(content)
    async with opened(hsm) as manager:
        await manager.generate("key", KeyType.EC_P256)


@pytest.mark.parametrize(
    ("content", "mode", "text"), [("", 0o600, "empty"), ("\n", 0o600, "empty"), ("1\n", 0o640, "open to others")]
)
async def test_an_empty_or_open_pin_file_is_refused(hsm: SoftHsm, content: str, mode: int, text: str) -> None:
    hsm.write_pin(content, mode)
    refused = await refusal(hsm)
    assert text in str(refused)
    assert str(hsm.pin_file) in str(refused)


async def test_a_pin_may_be_a_systemd_credential(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(hsm.folder))
    async with opened(hsm, pin_file=None, pin_credential="pin") as manager:
        await manager.generate("key", KeyType.EC_P256)


async def test_a_wrong_pin_is_tried_once(hsm: SoftHsm) -> None:
    hsm.write_pin("000000\n")
    first = await refusal(hsm)
    assert isinstance(first, Refused)
    assert "PIN" in str(first)
    assert str(hsm.pin_file) in str(first)
    assert "user PIN count low" in hsm.tool("--list-token-slots", pin=None)

    marker = hsm.folder / "keys.json.pin-refused"
    assert marker.stat().st_mode & 0o777 == 0o600
    assert b"000000" not in marker.read_bytes()
    assert "is not tried again" in str(await refusal(hsm))
    Pin.refused_here.clear()  # a restart knows only the marker
    assert "tried once by an earlier process" in str(await refusal(hsm))

    # A PIN that would be accepted shows that the token is not asked at all while the file's time stands still.
    tried = hsm.pin_file.stat().st_mtime_ns
    hsm.write_pin(f"{softhsm.USER_PIN}\n")
    os.utime(hsm.pin_file, ns=(tried, tried))
    assert "tried once by an earlier process" in str(await refusal(hsm))

    set_pin_changed(hsm)
    async with opened(hsm) as manager:
        await manager.generate("key", KeyType.EC_P256)
    assert not marker.exists()


async def test_a_wrong_credential_waits_for_the_operator(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd writes credentials anew at each start: their time of change says nothing."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(hsm.folder))
    credential = {"pin_file": None, "pin_credential": "pin"}
    hsm.write_pin("000000\n")
    await refusal(hsm, **credential)
    hsm.write_pin(f"{softhsm.USER_PIN}\n")
    set_pin_changed(hsm)
    Pin.refused_here.clear()
    marker = hsm.folder / "keys.json.pin-refused"
    assert f"remove {marker}" in str(await refusal(hsm, **credential))
    marker.unlink()
    async with opened(hsm, **credential) as manager:
        await manager.generate("key", KeyType.EC_P256)


async def test_two_managers_share_a_module_and_a_token(hsm: SoftHsm) -> None:
    async with opened(hsm) as one:
        first = await one.generate("key", KeyType.EC_P256)
        async with opened(hsm, namespace="server-b", keys_path=str(hsm.folder / "b.json")) as other:
            second = await other.generate("key", KeyType.EC_P256)
            assert [key.id for key in await other.list()] == ["key"]
            assert first.public_key != second.public_key
            await first.sign(DIGEST, SHA256)
        # The other one's logout was everybody's.
        await first.sign(DIGEST, SHA256)


async def test_replaced_keys_are_destroyed_after_their_grace(hsm: SoftHsm) -> None:
    async with opened(hsm, grace="0s") as manager:
        for _ in range(2):
            await manager.generate("x509-CA-A", KeyType.EC_P256)
        key = await manager.generate("x509-CA-A", KeyType.EC_P256)
        assert len(private_objects(hsm)) == 1
        await key.sign(DIGEST, SHA256)


async def test_a_replaced_key_is_kept_and_marked_until_then(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        old = await manager.generate("x509-CA-A", KeyType.EC_P256)
        await manager.generate("x509-CA-A", KeyType.EC_P256)
        await old.sign(DIGEST, SHA256)
    labels = re.findall(r"label: +(.+)", "".join(private_objects(hsm)))
    assert sorted(labels) == ["server-a/x509-CA-A", "server-a/x509-CA-A (retired)"]


async def test_the_number_of_keys_is_bounded(hsm: SoftHsm) -> None:
    manager = await load_agent(configured(hsm), context())
    for number in range(9):
        await manager.generate(f"agent-svid-{number % 2}", KeyType.EC_P256)
        assert len(private_objects(hsm)) <= 4
    await manager.generate("2", KeyType.EC_P256)
    await manager.generate("3", KeyType.EC_P256)
    with pytest.raises(Refused, match="4 keys are in use"):
        await manager.generate("4", KeyType.EC_P256)
    assert len(private_objects(hsm)) == 4
    await manager.close()


async def test_a_mapping_that_cannot_be_written_does_not_fill_the_token(
    hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation is tried again every few seconds for as long as the disk is full."""
    async with opened(hsm) as manager:
        key = await manager.generate("a", KeyType.EC_P256)
        with monkeypatch.context() as broken:
            broken.setattr("keystores.state.write_atomically", no_room)
            for _ in range(10):
                with pytest.raises(PermanentlyUnusable, match="cannot be written"):
                    await manager.generate("a", KeyType.EC_P256)
        assert len(private_objects(hsm)) == 1
        assert (await manager.get("a")).public_key == key.public_key
        assert await key.sign(DIGEST, SHA256)


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_key_that_a_crash_left_is_retired_at_the_next_start(hsm: SoftHsm) -> None:
    keys_path = hsm.folder / "keys.json"
    async with opened(hsm) as manager:
        kept = await manager.generate("x509-CA-A", KeyType.EC_P256)
        before = keys_path.read_bytes()
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    keys_path.write_bytes(before)  # as if the process had died between the token and the mapping

    async with opened(hsm, grace="0s") as manager:
        assert [key.public_key for key in await manager.list()] == [kept.public_key]
        await eventually(lambda: len(private_objects(hsm)) == 1)
        await (await manager.get("x509-CA-A")).sign(DIGEST, SHA256)


async def test_a_lost_mapping_is_made_again_from_the_labels(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        made = {
            key_type: (await manager.generate(key_type.value, key_type)).public_key
            for key_type in (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048)
        }
        await manager.generate("ec-p256", KeyType.EC_P256)
        made[KeyType.EC_P256] = (await manager.get("ec-p256")).public_key
    (hsm.folder / "keys.json").unlink()

    async with opened(hsm) as manager:
        assert {key.key_type: key.public_key for key in await manager.list()} == made
        for key in await manager.list():
            await key.sign(DIGEST, SHA256)


async def test_two_candidates_for_a_lost_id_are_refused(hsm: SoftHsm) -> None:
    for number in ("01", "02"):
        hsm.tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "server-a/x509-CA-A", "--id", number)
    assert "2 keys in the token are labelled 'server-a/x509-CA-A'" in str(await refusal(hsm))
    assert not (hsm.folder / "keys.json").exists()


async def test_a_key_that_somebody_removed_is_named(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    [cka_id] = re.findall(r"ID: +([0-9a-f]+)\n", "".join(private_objects(hsm)))
    hsm.tool("--delete-object", "--type", "privkey", "--id", cka_id)
    refused = await refusal(hsm)
    assert isinstance(refused, NotFound)
    assert "'x509-CA-A'" in str(refused)
    assert "keys_path" in str(refused)


async def test_a_key_removed_under_a_running_server_is_permanently_lost(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        key = await manager.generate("x509-CA-A", KeyType.EC_P256)
        [cka_id] = re.findall(r"ID: +([0-9a-f]+)\n", "".join(private_objects(hsm)))
        hsm.tool("--delete-object", "--type", "privkey", "--id", cka_id)
        with pytest.raises(PermanentlyUnusable, match=cka_id):
            await key.sign(DIGEST, SHA256)


async def test_signing_recovers_when_the_token_comes_back(hsm: SoftHsm) -> None:
    away = hsm.folder / "away"
    async with opened(hsm) as manager:
        key = await manager.generate("x509-CA-A", KeyType.EC_P256)
        shutil.move(hsm.tokens, away)
        for _ in range(2):
            with pytest.raises(TemporarilyUnavailable):
                await key.sign(DIGEST, SHA256)
        shutil.move(away, hsm.tokens)
        async with asyncio.timeout(25):
            while True:
                try:
                    await key.sign(DIGEST, SHA256)
                    break
                except TemporarilyUnavailable:
                    await asyncio.sleep(0.1)
        await manager.generate("x509-CA-B", KeyType.EC_P256)


@pytest.mark.parametrize("key_id", ["", "x" * 201, "a (retired)"])
async def test_an_id_that_a_label_cannot_carry_is_refused(hsm: SoftHsm, key_id: str) -> None:
    async with opened(hsm) as manager:
        with pytest.raises(InvalidArgument):
            await manager.generate(key_id, KeyType.EC_P256)


async def test_a_second_process_may_not_use_the_same_mapping(hsm: SoftHsm) -> None:
    async with opened(hsm):
        refused = await refusal(hsm)
        assert isinstance(refused, Refused)
        assert "another process uses" in str(refused)
    async with opened(hsm):
        pass


async def test_a_device_that_lies_is_found_out(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token signs something else than it was given."""
    honest = Signer.sign

    async def lying(self: Signer, key: bytes | str, mechanism: Mechanism, payloads: list[bytes]) -> list[bytes]:
        return await honest(self, key, mechanism, [payloads[0][::-1], *payloads[1:]])

    async with opened(hsm) as manager:
        keys = [await manager.generate(key_type.value, key_type) for key_type in (KeyType.EC_P256, KeyType.RSA_2048)]
        monkeypatch.setattr(Signer, "sign", lying)
        for key in keys:
            for count in (1, 20):
                with pytest.raises(PermanentlyUnusable, match="does not verify; it was not used"):
                    await key.sign_batch([DIGEST] * count, SHA256)


async def test_a_token_that_keeps_its_labels_still_replaces_keys(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_self: Tokens, _cka_id: bytes, _label: str) -> None:
        raise Refused("labelling a key: the token refuses it: CKR_ATTRIBUTE_READ_ONLY")

    monkeypatch.setattr(Tokens, "relabel", refuse)
    async with opened(hsm) as manager:
        for _ in range(2):
            key = await manager.generate("x509-CA-A", KeyType.EC_P256)
            await key.sign(DIGEST, SHA256)
