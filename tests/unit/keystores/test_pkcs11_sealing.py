"""The secret key by which a token seals: one, never out of it, the same over losses, restarts and clones."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest

from keystores.errors import PermanentlyUnusable, TemporarilyUnavailable
from keystores.pkcs11.configuration import CloneConfiguration
from keystores.pkcs11.manager import AGENT_KEYS, Pkcs11KeyManager, load_agent
from plugins.keymanager import KeyManager, KeyType
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.tokens import configured, context, opened, private_objects


async def secret(manager: KeyManager, label: str = "one") -> bytes:
    assert isinstance(manager, Pkcs11KeyManager)
    return await manager.sealing_secret(label)


def secret_keys(hsm: SoftHsm) -> list[str]:
    return re.findall(r"Secret Key Object;[^\0]*?ID: +(\w+)", hsm.tool("--list-objects", "--type", "secrkey"))


def with_mechanisms(hsm: SoftHsm, *names: str) -> None:
    """Leave the token these, and those of P-256 keys."""
    known = ("CKM_ECDSA", "CKM_EC_KEY_PAIR_GEN", *names)
    hsm.configuration.write_text(f"{hsm.configuration.read_text()}slots.mechanisms = {','.join(known)}\n")


async def test_the_key_stays_in_the_token(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        made = await secret(manager)
        assert isinstance(manager, Pkcs11KeyManager)
        [record] = await manager.inventory()
    listed = hsm.tool("--list-objects", "--type", "secrkey")
    assert listed.count("Secret Key Object") == 1
    assert "label:      server-a/sealing" in listed
    assert re.search(r"Access: +sensitive, always sensitive, never extract\w+, local", listed)
    assert (record.id, record.key_type, record.handle) == ("sealing", None, secret_keys(hsm)[0])
    stored = (hsm.folder / "keys.json").read_bytes()
    assert made not in stored
    assert made.hex().encode() not in stored


async def test_it_is_found_again_when_keys_path_is_gone(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        await manager.generate("agent-svid-A", KeyType.EC_P256)
        made = await secret(manager)
    (hsm.folder / "keys.json").unlink()
    async with opened(hsm) as manager:
        assert await secret(manager) == made
    assert len(secret_keys(hsm)) == 1


async def test_it_counts_apart_from_the_keys_that_sign(hsm: SoftHsm) -> None:
    manager = await load_agent(configured(hsm), context())
    made = await secret(manager)
    for number in range(3 * AGENT_KEYS):
        await manager.generate(f"agent-svid-{'AB'[number % 2]}", KeyType.EC_P256)
    assert await secret(manager) == made
    await manager.close()
    assert len(private_objects(hsm)) == AGENT_KEYS


async def test_namespaces_have_their_own(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        made = await secret(manager)
    async with opened(hsm, namespace="server-b", keys_path=str(hsm.folder / "b.json")) as manager:
        assert await secret(manager) != made
    assert len(secret_keys(hsm)) == 2


async def test_two_keys_of_the_label_are_no_choice(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        await secret(manager)
        hsm.tool("--keygen", "--key-type", "AES:32", "--label", "server-a/sealing", "--id", "aa")
        with pytest.raises(PermanentlyUnusable, match="2 secret keys labelled 'server-a/sealing': remove all but one"):
            await secret(manager)


async def test_a_key_that_could_leave_the_token_is_not_used(hsm: SoftHsm) -> None:
    command = ("--keygen", "--key-type", "AES:32", "--label", "server-a/sealing", "--id", "aa", "--extractable")
    hsm.tool(*command)
    async with opened(hsm) as manager:
        with pytest.raises(PermanentlyUnusable, match="not as safe as it must be"):
            await secret(manager)


async def test_a_key_that_is_gone_is_replaced_with_a_line(hsm: SoftHsm, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(hsm) as manager:
        await manager.generate("agent-svid-A", KeyType.EC_P256)
        made = await secret(manager)
        hsm.tool("--delete-object", "--type", "secrkey", "--id", secret_keys(hsm)[0])
        with caplog.at_level(logging.WARNING, "spire"):
            after = await secret(manager)
        assert after != made
        assert await secret(manager) == after
    [line] = [each.getMessage() for each in caplog.records if "sealing" in each.getMessage()]
    assert line.startswith("The key for sealing cannot be used; another one is looked for or made")
    assert json.loads((hsm.folder / "keys.json").read_bytes())["sealing_key"] == secret_keys(hsm)[0]


async def test_a_token_without_hmac_seals_by_aes(hsm: SoftHsm) -> None:
    with_mechanisms(hsm, "CKM_AES_KEY_GEN", "CKM_AES_CMAC")
    async with opened(hsm) as manager:
        made = await secret(manager)
        assert len(made) == 32
        assert made[:16] != made[16:]
        assert await secret(manager, "two") != made
    assert len(secret_keys(hsm)) == 1, "what was made on the way and is of no use is gone"
    async with opened(hsm) as manager:
        assert await secret(manager) == made


async def test_a_token_without_either_says_so(hsm: SoftHsm) -> None:
    with_mechanisms(hsm)
    async with opened(hsm) as manager:
        with pytest.raises(PermanentlyUnusable, match="no secret keys that make others, by HMAC-SHA256 or AES-CMAC"):
            await secret(manager)
        assert await manager.generate("key", KeyType.EC_P256)
    assert secret_keys(hsm) == []


@pytest.fixture
def clone(hsm: SoftHsm, tmp_path: Path) -> SoftHsm:
    return SoftHsm.create(tmp_path / "clone")


@pytest.mark.parametrize("same", [True, False], ids=["the same key", "another key"])
async def test_a_clone_seals_by_the_same_key_or_not_at_all(hsm: SoftHsm, clone: SoftHsm, same: bool) -> None:
    async with opened(hsm) as manager:
        made = await secret(manager)
    shutil.rmtree(clone.tokens)
    shutil.copytree(hsm.tokens, clone.tokens)
    if not same:
        clone.tool("--delete-object", "--type", "secrkey", "--id", secret_keys(hsm)[0])
        clone.tool("--keygen", "--key-type", "AES:32", "--label", "server-a/sealing", "--id", "bb")
    settings = CloneConfiguration(environment={"SOFTHSM2_CONF": str(clone.configuration)})
    async with opened(hsm, clone={"b": settings}) as manager:
        assert await secret(manager) == made
        hsm.tokens.rename(hsm.folder / "unplugged")
        if same:
            assert await secret(manager) == made
        else:
            with pytest.raises(TemporarilyUnavailable):
                await secret(manager)
        (hsm.folder / "unplugged").rename(hsm.tokens)
