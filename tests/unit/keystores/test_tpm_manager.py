"""KeyManager "tpm" on a swtpm: blobs, parents, policies, refusals, restarts of either side."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystores.errors import (
    InvalidArgument,
    KeyStoreError,
    NotFound,
    PermanentlyUnusable,
    Refused,
    TemporarilyUnavailable,
    Unsupported,
)
from keystores.tpm import proofs
from keystores.tpm.configuration import Configuration
from keystores.tpm.manager import AGENT_KEYS, load
from keystores.tpm.messages import Certified
from keystores.tpm.worker import KINDS, TpmResponse
from operations.errors import Corrupt
from plugins.keyinventory import Disposing, Inventory, Proving
from plugins.keymanager import Hash, KeyType, Scheme
from tests.simulators import swtpm
from tests.simulators.swtpm import Swtpm
from tests.unit.keystores.tpm_stores import CONTEXT, DIGEST, SHA256, SHORT, Parts, check_signs, opened, signs_again


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    with swtpm.started(tmp_path / "tpm") as started:
        yield started


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def content(keys: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in keys.iterdir()}


def modes(keys: Path) -> tuple[int, set[int]]:
    return stat.S_IMODE(keys.stat().st_mode), {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()}


def blobs_in(keys: Path) -> list[Path]:
    return list(keys.glob("key-*.json"))


async def made(tpm: Swtpm, keys: Path, **settings: str) -> bytes:
    """One key, made and kept. Returns its public key."""
    manager = await opened(tpm.tcti, keys, **settings)
    key = await manager.generate("key", KeyType.EC_P256)
    await manager.close()
    return key.public_key


async def still(tpm: Swtpm, keys: Path, public_key: bytes, **settings: str) -> None:
    """The key is there and signs."""
    manager = await opened(tpm.tcti, keys, **settings)
    try:
        key = await manager.get("key")
        assert key.public_key == public_key
        await check_signs(key)
    finally:
        await manager.close()


async def test_files_are_for_their_owner_only(tpm: Swtpm, keys: Path) -> None:
    await made(tpm, keys)
    assert modes(keys) == (0o700, {0o600})


async def test_a_folder_has_one_process(tpm: Swtpm, keys: Path) -> None:
    manager = await opened(tpm.tcti, keys)
    with pytest.raises(Refused, match="another process uses"):
        await opened(tpm.tcti, keys)
    await manager.close()
    await (await opened(tpm.tcti, keys)).close()


async def test_blobs_of_another_tpm_are_refused_and_left_as_they_are(tpm: Swtpm, keys: Path, tmp_path: Path) -> None:
    public_key = await made(tpm, keys)
    before = content(keys)
    with swtpm.started(tmp_path / "other") as other:
        with pytest.raises(Refused, match="the blobs belong to another TPM or parent"):
            await opened(other.tcti, keys)
        assert other.handles() == []
    assert content(keys) == before
    await still(tpm, keys, public_key)


async def test_blobs_of_a_tpm_that_was_cleared_are_refused(tpm: Swtpm, keys: Path) -> None:
    await made(tpm, keys)
    tpm.tool("clear", "-c", "p")
    with pytest.raises(Refused, match="a TPM that was cleared is another one"):
        await opened(tpm.tcti, keys)


async def test_a_damaged_blob_is_named_and_left_as_it_is(tpm: Swtpm, keys: Path) -> None:
    public_key = await made(tpm, keys)
    [path] = blobs_in(keys)
    good = path.read_bytes()
    stored = json.loads(good)
    flipped = stored["private"][:40] + ("A" if stored["private"][40] != "A" else "B") + stored["private"][41:]
    damages: list[tuple[bytes, type[Exception], str]] = [
        (b"{", Corrupt, "is damaged"),
        (good.replace(b'"version":1', b'"version":2'), Corrupt, "a later release wrote"),
        (json.dumps({**stored, "public": "AAAA"}).encode(), Corrupt, "is damaged"),
        (json.dumps({**stored, "private": flipped}).encode(), PermanentlyUnusable, "or it is damaged"),
        (json.dumps({**stored, "private": "AAAA"}).encode(), PermanentlyUnusable, "damaged"),
    ]
    for damage, kind, line in damages:
        path.write_bytes(damage)
        with pytest.raises(kind, match=rf"{path.name}.*{line}"):
            await opened(tpm.tcti, keys)
        assert path.read_bytes() == damage
    path.write_bytes(good)
    await still(tpm, keys, public_key)
    path.unlink()
    with pytest.raises(NotFound, match=f"{path.name} is gone"):
        await opened(tpm.tcti, keys)


async def test_a_mapping_that_is_gone_is_made_from_the_blobs(tpm: Swtpm, keys: Path) -> None:
    public_key = await made(tpm, keys)
    (keys / "keys.json").unlink()
    await still(tpm, keys, public_key)
    (keys / "keys.json").write_bytes(b"{}")
    with pytest.raises(Corrupt, match=r"keys\.json is damaged"):
        await opened(tpm.tcti, keys)


async def test_two_blobs_of_one_id_without_a_mapping_are_refused(tpm: Swtpm, keys: Path) -> None:
    manager = await opened(tpm.tcti, keys)
    for _ in range(2):
        await manager.generate("key", KeyType.EC_P256)
    await manager.close()
    (keys / "keys.json").unlink()
    with pytest.raises(Refused, match="2 blobs have the id 'key'"):
        await opened(tpm.tcti, keys)


async def test_a_blob_without_a_name_is_retired_and_goes(tpm: Swtpm, keys: Path, tmp_path: Path) -> None:
    public_key = await made(tpm, keys)
    mapping = (keys / "keys.json").read_bytes()
    manager = await opened(tpm.tcti, keys)
    await manager.generate("key", KeyType.EC_P256)
    await manager.close()
    (keys / "keys.json").write_bytes(mapping)
    (keys / ".key-1234.json.5678").write_bytes(b"half")

    manager = await opened(tpm.tcti, keys)
    assert (await manager.get("key")).public_key == public_key
    assert [record.retired_at is not None for record in await manager.inventory()] == [False, True]
    assert not [name for name in content(keys) if name.startswith(".key-")]
    await manager.close()
    manager = await opened(tpm.tcti, keys, grace="0s")
    while len(await manager.inventory()) > 1:  # noqa: ASYNC110 - which waits for the disposal
        await asyncio.sleep(0.05)
    await manager.close()


async def test_there_are_at_most_so_many_keys(tpm: Swtpm, keys: Path) -> None:
    configuration = Configuration(tcti=tpm.tcti, keys_path=str(keys))
    manager = await load(configuration, CONTEXT, AGENT_KEYS)
    for number in range(10):
        await manager.generate(f"key-{number % 2}", KeyType.EC_P256)
        assert len(blobs_in(keys)) <= AGENT_KEYS
    for number in range(2, AGENT_KEYS):
        await manager.generate(f"key-{number}", KeyType.EC_P256)
    with pytest.raises(Refused, match="4 keys are in use"):
        await manager.generate("one-more", KeyType.EC_P256)
    await manager.generate("key-0", KeyType.EC_P256)
    await manager.close()
    assert tpm.handles() == []


async def test_what_cannot_be_is_refused(tpm: Swtpm, keys: Path) -> None:
    manager = await opened(tpm.tcti, keys)
    with pytest.raises(InvalidArgument):
        await manager.generate("x" * 201, KeyType.EC_P256)
    with pytest.raises(Unsupported, match="this TPM makes no rsa-4096 keys; TPMs may have ec-p256, ec-p384, rsa-2048"):
        await manager.generate("key", KeyType.RSA_4096)
    assert await manager.list() == ()
    await manager.close()


async def test_the_inventory_has_every_key_and_a_retired_one_can_be_disposed_of(tpm: Swtpm, keys: Path) -> None:
    manager = await opened(tpm.tcti, keys)
    assert isinstance(manager, Inventory)
    assert isinstance(manager, Proving)
    assert isinstance(manager, Disposing)
    await manager.generate("key", KeyType.EC_P256)
    await manager.generate("key", KeyType.RSA_2048)
    used, retired = await manager.inventory()
    assert (used.id, used.key_type, used.retired_at) == ("key", KeyType.RSA_2048, None)
    assert used.public_key == (await manager.get("key")).public_key
    assert used.token.startswith("IBM ")
    assert used.attributes["fixedTPM"]
    assert used.attributes["noDA"]
    assert not used.attributes["restricted"]
    assert retired.retired_at is not None
    with pytest.raises(Refused, match="in use, by the id 'key'"):
        await manager.dispose(used.handle)
    await manager.dispose(retired.handle)
    with pytest.raises(NotFound):
        await manager.dispose(retired.handle)
    assert await manager.inventory() == [used]
    assert len(blobs_in(keys)) == 1
    await manager.close()


async def test_a_proof_has_the_tpms_own_statement(tpm: Swtpm, keys: Path) -> None:
    manager = await opened(tpm.tcti, keys)
    await manager.generate("key", KeyType.EC_P384)
    proof = await manager.prove("key")
    assert proof.stands
    assert [check.name for check in proof.checks] == ["possession", "name", "attributes", "attestation"]
    assert proof.attestation is not None
    with pytest.raises(NotFound):
        await manager.prove("nobody")
    await manager.close()
    assert tpm.handles() == []

    statement, signature = proof.attestation.statement, proof.attestation.signature
    [signer] = proof.attestation.certificates
    name = bytes.fromhex(proof.record.handle)
    good = Certified(statement=statement, signature=signature, signer=signer)
    nonce = statement[statement.index(b"\x00\x20") + 2 :]
    for wrong in (
        Certified(statement=statement[:-1], signature=signature, signer=signer),
        Certified(statement=statement, signature=signature[:-1] + bytes([signature[-1] ^ 1]), signer=signer),
    ):
        with pytest.raises(PermanentlyUnusable, match="signature does not verify"):
            proofs.verify(wrong, name, nonce)
    with pytest.raises(PermanentlyUnusable, match="the nonce"):
        proofs.verify(good, name, bytes(32))


async def test_a_key_bound_to_pcrs_signs_until_they_change(tpm: Swtpm, keys: Path) -> None:
    manager = await opened(tpm.tcti, keys, pcrs="sha256:16,7")
    key = await manager.generate("key", KeyType.EC_P256)
    for _ in range(3):
        await check_signs(key)
    secret = await manager.sealing_secret("label")
    assert (await manager.prove("key")).stands
    await manager.close()
    assert tpm.handles() == []

    tpm.tool("pcrextend", f"16:sha256={'ab' * 32}")
    manager = await opened(tpm.tcti, keys, pcrs="sha256:16,7")
    with pytest.raises(Refused, match="bound to PCRs sha256:7,16, whose values are not those of its making"):
        await check_signs(await manager.get("key"))
    with pytest.raises(Refused, match="bound to PCRs sha256:7,16"):
        await manager.sealing_secret("label")
    await check_signs(await manager.generate("new", KeyType.EC_P256))

    tpm.tool("pcrreset", "16")
    await check_signs(await manager.get("key"))
    assert await manager.sealing_secret("label") == secret
    with pytest.raises(Refused, match="bound to PCRs"):
        await check_signs(await manager.get("new"))
    await manager.close()


async def test_a_parent_at_a_handle_of_the_operators_choice(tpm: Swtpm, keys: Path) -> None:
    with pytest.raises(NotFound, match="the TPM has no key at 0x81000123"):
        await opened(tpm.tcti, keys, parent="0x81000123")
    tpm.make_srk("0x81000123")
    public_key = await made(tpm, keys, parent="0x81000123")
    await still(tpm, keys, public_key, parent="0x81000123")
    tpm.tool("createprimary", "-C", "o", "-G", "rsa2048", "-a", swtpm.STORAGE, "-c", "rsa.ctx")
    tpm.tool("evictcontrol", "-C", "o", "-c", "rsa.ctx", "0x81000124")
    tpm.tool("flushcontext", "-t")
    with pytest.raises(Refused, match="belong to another TPM or parent"):
        await opened(tpm.tcti, keys, parent="0x81000124")


async def test_a_parent_that_is_no_storage_key_is_refused(tpm: Swtpm, keys: Path) -> None:
    tpm.tool("createprimary", "-C", "o", "-G", "ecc256", "-a", swtpm.SIGNING, "-c", "s.ctx")
    tpm.tool("evictcontrol", "-C", "o", "-c", "s.ctx", "0x81000001")
    tpm.tool("flushcontext", "-t")
    with pytest.raises(Refused, match="the key at 0x81000001 is no storage key"):
        await opened(tpm.tcti, keys, parent="0x81000001")
    public_key = await made(tpm, keys)
    await still(tpm, keys, public_key)


async def test_the_owners_authorization_is_asked_for_and_taken_from_its_file(
    tpm: Swtpm, keys: Path, tmp_path: Path
) -> None:
    tpm.tool("changeauth", "-c", "o", "owner-secret")
    with pytest.raises(Refused, match=r"wants the owner's authorization.*owner_auth_file"):
        await opened(tpm.tcti, keys)
    auth = tmp_path / "owner"
    auth.write_text("owner-secret\n")
    auth.chmod(0o600)
    public_key = await made(tpm, keys, owner_auth_file=str(auth))
    await still(tpm, keys, public_key, owner_auth_file=str(auth))
    assert tpm.handles() == []


async def test_the_parents_authorization_from_a_systemd_credential(
    tpm: Swtpm, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tpm.tool("createprimary", "-C", "o", "-G", "ecc256:aes128cfb", "-a", swtpm.STORAGE, "-p", "parent", "-c", "p.ctx")
    tpm.tool("evictcontrol", "-C", "o", "-c", "p.ctx", "0x81000002")
    tpm.tool("flushcontext", "-t")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "tpm-parent").write_text("parent")
    settings = {"parent": "0x81000002", "parent_auth_credential": "tpm-parent"}
    public_key = await made(tpm, keys, **settings)
    await still(tpm, keys, public_key, **settings)
    (tmp_path / "tpm-parent").write_text("wrong")
    for line in ("refused the authorization", "was tried once and is not tried again"):
        with pytest.raises(Refused, match=line):
            await opened(tpm.tcti, keys, **settings)


async def test_a_missing_device_is_one_line_with_what_to_do(keys: Path) -> None:
    with pytest.raises(TemporarilyUnavailable, match="there is no TPM at /dev/nothing: is it enabled"):
        await opened("device:/dev/nothing", keys)
    with pytest.raises(TemporarilyUnavailable, match=r"no TPM answers at 'swtpm:path=/nowhere'") as caught:
        await opened("swtpm:path=/nowhere", keys)
    assert isinstance(caught.value.__cause__, TpmResponse)
    with pytest.raises(TemporarilyUnavailable, match="no TPM answers at 'nonsense'"):
        await opened("nonsense", keys)


async def test_a_tpm_that_goes_and_comes_back_needs_no_restart(tpm: Swtpm, keys: Path) -> None:
    manager = await Parts.of(tpm.tcti, keys, SHORT).opened()
    key = await manager.generate("key", KeyType.EC_P256)
    tpm.power_off()
    for _ in range(3):
        with pytest.raises(TemporarilyUnavailable):
            await check_signs(key)
    with pytest.raises(TemporarilyUnavailable):
        await manager.generate("new", KeyType.EC_P256)
    tpm.start()
    await signs_again(key)
    tpm.reset()
    await check_signs(key)
    await manager.close()
    assert tpm.handles() == []


async def test_a_worker_that_dies_costs_no_call(tpm: Swtpm, keys: Path) -> None:
    parts = Parts.of(tpm.tcti, keys)
    manager = await parts.opened()
    key = await manager.generate("key", KeyType.EC_P256)
    for number in (signal.SIGKILL, signal.SIGSEGV):
        assert parts.worker.pid is not None
        os.kill(parts.worker.pid, number)
        await check_signs(key)
    await manager.close()


async def test_a_worker_ends_with_its_key_manager_and_by_no_signal_of_the_service(tpm: Swtpm, keys: Path) -> None:
    parts = Parts.of(tpm.tcti, keys)
    manager = await parts.opened()
    key = await manager.generate("key", KeyType.EC_P256)
    pid = parts.worker.pid
    assert pid is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
        await check_signs(key)
    assert parts.worker.pid == pid
    await manager.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_objects_that_others_left_in_a_bare_tpm_do_not_keep_it_from_work(tpm: Swtpm, keys: Path) -> None:
    for _ in range(3):
        tpm.tool("createprimary", "-C", "o", "-G", "ecc256", "-c", "left.ctx")
        tpm.tool("startauthsession", "-S", "left.session")
    await made(tpm, keys)


async def test_a_caller_that_gives_up_leaves_a_whole_key(tpm: Swtpm, keys: Path) -> None:
    manager = await opened(tpm.tcti, keys)
    making = asyncio.ensure_future(manager.generate("key", KeyType.RSA_2048))
    await asyncio.sleep(0.05)
    making.cancel()
    await asyncio.gather(making, return_exceptions=True)
    await manager.close()
    manager = await opened(tpm.tcti, keys)
    for record in await manager.inventory():
        assert record.retired_at is None
        await (await manager.get(record.id)).sign(DIGEST, SHA256)
    await manager.close()


async def test_callers_beyond_the_queue_are_told_so(tpm: Swtpm, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystores.tpm.worker.QUEUE_LIMIT", 3)
    manager = await opened(tpm.tcti, keys)
    key = await manager.generate("key", KeyType.EC_P256)
    outcomes = await asyncio.gather(*(key.sign(DIGEST, SHA256) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) == 3
    assert sum(isinstance(outcome, TemporarilyUnavailable) for outcome in outcomes) == 2
    await manager.close()


@pytest.mark.parametrize("hash_", list(Hash))
async def test_pss_salts_are_as_long_as_the_hash(tpm: Swtpm, keys: Path, hash_: Hash) -> None:
    """As RFC 8446, 4.2.3 has it; the signature was verified so before it came."""
    manager = await opened(tpm.tcti, keys)
    key = await manager.generate("key", KeyType.RSA_2048)
    scheme = Scheme(hash_, pss=True)
    assert len(await key.sign(bytes({"sha256": 32, "sha384": 48, "sha512": 64}[hash_.value]), scheme)) == 256
    await manager.close()


def test_every_error_of_the_worker_is_one_of_the_key_stores() -> None:
    assert all(issubclass(kind, KeyStoreError) for kind in KINDS.values())
