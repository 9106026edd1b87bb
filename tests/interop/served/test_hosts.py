"""The key stores as plugins of go-plugin's own client, in Go, used as SPIRE does. Plugins are the one-file ones."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.interop.served.conftest import children, descendants, none_alive
from tests.simulators import softhsm, spire, swtpm
from tests.simulators.once import go_program
from tests.simulators.spire import PATIENCE, eventually

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
SIDES = ("server", "agent")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> str:
    return go_program(tmp_path_factory, HERE)


@dataclass(frozen=True)
class Store:
    """A device, the program for it, and the program's settings."""

    program: Path
    data: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    hsm: softhsm.SoftHsm | None = None

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.program.read_bytes()).hexdigest()


@pytest.fixture(params=["pkcs11", "tpm"])
def store(request: pytest.FixtureRequest, plugins: Path, tmp_path: Path) -> Iterator[Store]:
    if request.param == "tpm":
        with swtpm.started(tmp_path / "tpm") as tpm:
            data = f'tcti = "{tpm.tcti}"\nkeys_path = "{tmp_path}/keys"\n'
            yield Store(plugins / "spire-keystore-tpm", data)
            assert not tpm.handles()
        return
    hsm = softhsm.SoftHsm.create(tmp_path / "hsm")
    yield pkcs11(plugins, hsm, tmp_path / "keys.json")


def pkcs11(plugins: Path, hsm: softhsm.SoftHsm, keys_path: Path) -> Store:
    data = (
        f'module_path = "{softhsm.MODULE}"\ntoken_label = "{hsm.label}"\n'
        f'pin_file = "{hsm.pin_file}"\nkeys_path = "{keys_path}"\n'
    )
    environment = {"SOFTHSM2_CONF": str(hsm.configuration)}
    return Store(plugins / "spire-keystore-pkcs11", data, environment, hsm)


def ask(host: str, store: Store, *arguments: str, data: str | None = None) -> list[str]:
    """What the Go host found out."""
    given = ("-command", str(store.program), "-checksum", store.checksum, "-data", data or store.data, *arguments)
    done = spire.command(host, *given, timeout=300, environment=dict(store.environment))
    return done.stdout.splitlines() or [done.stderr]


def keys(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith("keys:")]


@pytest.mark.parametrize("side", SIDES)
def test_every_call_of_a_go_host(host: str, store: Store, side: str) -> None:
    lines = ask(host, store, "-side", side, "-rsa")
    types = ["EC_P256", "EC_P384", "RSA_2048", "RSA_4096"]
    lacking = types[3:] if store.hsm is None else []
    for name in types:
        if name in lacking:
            [line] = [line for line in lines if line.startswith(f"generate {name}")]
            assert line.startswith(f"generate {name} Unimplemented ")
        else:
            assert f"signed with {name}" in lines
    assert {
        "signed 200 at once",
        "refused short digest: InvalidArgument a sha256 digest has 32 bytes, this one has 20",
        'refused sha3: InvalidArgument unsupported hash algorithm "SHA3_256": use SHA256, SHA384 or SHA512',
        "refused no options: InvalidArgument signer opts is required",
        "refused no hash: InvalidArgument hash algorithm is required",
        "refused no id: InvalidArgument key id is required",
        "refused odd salt: InvalidArgument unsupported PSS salt length 7: use -1, the hash's",
        "refused no type: InvalidArgument key type is required: one of ec-p256, ec-p384, rsa-2048, rsa-4096",
        "nobody: true <nil>",
        "somebody: true <nil>",
        "ended by itself: true",
    } <= set(lines)
    assert any(line.startswith("refused no such key: NotFound ") for line in lines)
    first, last = keys(lines)
    assert first == "keys: []"
    assert [name.split("/")[0] for name in last.removeprefix("keys: [").split()] == types[: 4 - len(lacking)]
    again = ask(host, store, "-side", side)
    assert keys(again)[0] == last


def test_go_plugins_mutual_tls(host: str, store: Store) -> None:
    lines = ask(host, store, "-mutual-tls")
    assert "signed 200 at once" in lines
    assert "without its certificate: Unavailable" in lines
    assert lines[-1] == "ended by itself: true"


@pytest.mark.parametrize(
    ("change", "result"),
    [('grace = "1h"', "<nil>"), ('grace = "1 parsec"', "InvalidArgument desc = grace: ")],
    ids=["good", "bad"],
)
def test_a_configuration_that_changes(host: str, store: Store, change: str, result: str) -> None:
    lines = ask(host, store, "-again", f"{store.data}\n{change}\n")
    assert any(line.startswith("again: ") and result in line for line in lines)
    before, after = keys(lines)[1:]
    assert before == after != "keys: []"


def test_bad_settings_are_told_in_one_line(host: str, store: Store) -> None:
    lines = ask(host, store, data='colour = "red"\n' + store.data)
    name = store.program.name.rpartition("-")[2]
    reason = f'plugin_data:1: unknown key "colour" in {name}'
    assert lines[1:] == [f"valid: false [{reason}]", f"error: rpc error: code = InvalidArgument desc = {reason}"]
    lines = ask(host, store, data=re.sub("keys_path.*", "", store.data))
    assert "InvalidArgument desc = " in lines[-1]
    assert "keys_path must be configured: a plugin does not know the data_dir" in lines[-1]


def test_a_wrong_pin_is_tried_once(host: str, plugins: Path, tmp_path: Path) -> None:
    hsm = softhsm.SoftHsm.create(tmp_path / "hsm")
    store = pkcs11(plugins, hsm, tmp_path / "keys.json")
    hsm.write_pin("1111\n")
    for _ in range(4):
        assert "PermissionDenied desc = the token refused the PIN in " in ask(host, store)[-1]
    hsm.write_pin(f"{softhsm.USER_PIN}\n")
    assert "signed 200 at once" in ask(host, store)


def test_one_changed_byte_is_refused(host: str, store: Store, tmp_path: Path) -> None:
    changed = tmp_path / store.program.name
    content = bytearray(store.program.read_bytes())
    at = content.index(b"fingerprint")
    content[at] ^= 1
    changed.write_bytes(content)
    changed.chmod(0o755)
    given = ("-command", str(changed), "-checksum", store.checksum, "-data", store.data)
    done = spire.command(host, *given, environment=dict(store.environment))
    assert done.stdout == "error: checksums did not match\n"


def test_nothing_is_left_of_a_host_that_is_killed(host: str, store: Store) -> None:
    given = ("-command", str(store.program), "-checksum", store.checksum, "-data", store.data, "-stay")
    with subprocess.Popen(
        [host, *given], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **store.environment}
    ) as process:
        assert process.stdout is not None
        while b"staying" not in process.stdout.readline():
            assert process.poll() is None
        found = descendants(process.pid)
        [plugin] = children(process.pid)
        workers = found - {plugin}
        assert workers  # they ask the device, with code from the plugin's copy of its file
        for worker in workers:
            assert f"\0PYTHONPATH=/proc/{plugin}/fd/".encode() in Path(f"/proc/{worker}/environ").read_bytes()
        process.kill()
    eventually(partial(none_alive, found), "the end of all that the host started")


def test_a_plugin_outlasts_its_file(plugins: Path, host: str, tmp_path: Path) -> None:
    hsm = softhsm.SoftHsm.create(tmp_path / "hsm")
    store = pkcs11(plugins, hsm, tmp_path / "keys.json")
    mine = tmp_path / store.program.name
    shutil.copy(store.program, mine)
    log = tmp_path / "log"
    given = ("-command", str(mine), "-data", store.data, "-again", f'{store.data}\ngrace = "1h"', "-pause", "3s")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [host, *given], stdout=output, stderr=subprocess.DEVNULL, env={**os.environ, **store.environment}
        ) as process,
    ):
        eventually(lambda: b"valid: true" in log.read_bytes(), "the plugin's configuration")
        mine.write_bytes(b"#!/bin/false\n")
        assert process.wait(PATIENCE) == 0
    assert "again: <nil>" in log.read_text().splitlines()
