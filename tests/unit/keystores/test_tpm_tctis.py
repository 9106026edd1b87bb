"""One key store by every way to a TPM that operators have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from plugins.keymanager import KeyType
from tests.simulators import abrmd, mssim, swtpm, tpm_resource_manager
from tests.simulators.swtpm import Swtpm
from tests.unit.keystores.tpm_stores import check_signs, opened, signs_again


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    with swtpm.started(tmp_path / "tpm") as started:
        yield started


@pytest.mark.parametrize("kind", ["swtpm", "mssim", "tabrmd", "a resource manager"])
async def test_keys_are_made_used_and_found_again(
    tpm: Swtpm, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        tcti = tpm.tcti
        if kind == "mssim":
            tcti = stack.enter_context(mssim.before(tpm))
        elif kind == "tabrmd":
            for name, value in stack.enter_context(abrmd.before(tpm)).items():
                monkeypatch.setenv(name, value)
            tcti = abrmd.TCTI
        elif kind == "a resource manager":
            tcti = stack.enter_context(tpm_resource_manager.before(tpm)).client("server")
        made: dict[str, bytes] = {}
        secrets: set[bytes] = set()
        for number in range(4):
            manager = await opened(tcti, tmp_path / "keys")
            assert {key.id: key.public_key for key in await manager.list()} == made
            key = await manager.generate(f"key-{number}", KeyType.EC_P256)
            made[key.id] = key.public_key
            for each in await manager.list():
                await check_signs(each)
            secrets.add(await manager.sealing_secret("label"))
            assert (await manager.prove(key.id)).stands
            await manager.close()
        assert len(secrets) == 1
    assert tpm.handles() == []


async def test_daemon_and_bus_may_be_started_anew(tpm: Swtpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with abrmd.before(tpm) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        manager = await opened(abrmd.TCTI, tmp_path / "keys")
        key = await manager.generate("key", KeyType.EC_P256)
        await check_signs(key)
    with abrmd.before(tpm):
        await signs_again(key)
        await manager.close()
