"""The module with faults, asked by pkcs11-tool: what the script says is what happens, in every process."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators import faulty_hsm
from tests.simulators.faulty_hsm import FaultyHsm
from tests.simulators.softhsm import USER_PIN, SoftHsm


@pytest.fixture
def hsm(tmp_path: Path) -> Iterator[SoftHsm]:
    with SoftHsm.create(tmp_path / "hsm").installed() as installed:
        installed.tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "one", "--id", "01")
        yield installed


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[FaultyHsm]:
    with FaultyHsm.create(tmp_path / "faults").installed() as installed:
        yield installed


def tool(hsm: SoftHsm, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["pkcs11-tool", "--module", str(faulty_hsm.module()), "--login", "--pin", USER_PIN, *arguments]
    return subprocess.run(
        [*command, "--token-label", hsm.label], capture_output=True, text=True, timeout=60, check=False
    )


def sign(hsm: SoftHsm, key: str = "01") -> subprocess.CompletedProcess[bytes]:
    """The signature as the module gives it."""
    digest = hsm.folder / "digest"
    digest.write_bytes(bytes(32))
    command = ["pkcs11-tool", "--module", str(faulty_hsm.module()), "--login", "--pin", USER_PIN]
    what = ["--sign", "--mechanism", "ECDSA", "--id", key, "--input-file", str(digest), "--signature-format", "rs"]
    return subprocess.run([*command, *what], capture_output=True, timeout=60, check=False)


def test_without_a_fault_it_is_the_other_module(hsm: SoftHsm, faults: FaultyHsm) -> None:
    assert "one" in tool(hsm, "--list-objects").stdout
    assert len(sign(hsm).stdout) == 64
    assert faults.ended("C_Login") == [0, 0]
    assert faults.ended("C_Sign") == [0]
    assert faults.sessions == 0


def test_processes_share_the_count_of_a_fault(hsm: SoftHsm, faults: FaultyHsm) -> None:
    """Of the calls that come that far: SoftHSM may overlook its token while another process writes to it."""
    fault = faults.plant("C_Initialize", "return", faulty_hsm.CKR_DEVICE_ERROR, skip=1, times=2)
    threads = [threading.Thread(target=lambda: tool(hsm, "--list-objects")) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults.ended("C_Initialize").count(faulty_hsm.CKR_DEVICE_ERROR) == 2
    assert fault.hits == len(faults.ended("C_Initialize")) == 5


def test_a_call_hangs_until_it_is_told(hsm: SoftHsm, faults: FaultyHsm) -> None:
    hang = faults.plant("C_Sign", "hang")
    thread = threading.Thread(target=lambda: sign(hsm))
    thread.start()
    hang.wait()
    assert (faults.begun("C_Sign"), faults.ended("C_Sign")) == (1, [])
    hang.lift()
    thread.join()
    assert faults.ended("C_Sign") == [0]


@pytest.mark.parametrize(("how", "status"), [("segv", -11), ("abort", -6), ("exit", 0)])
def test_it_ends_its_process(hsm: SoftHsm, faults: FaultyHsm, how: str, status: int) -> None:
    faults.plant("C_Sign", "crash", how)
    done = sign(hsm)
    assert (done.returncode, done.stdout) == (status, b"")
    assert faults.ended("C_Sign") == []


@pytest.mark.parametrize(("action", "size"), [("wrong", 64), ("truncated", 63), ("empty", 0), ("repeated", 64)])
def test_it_gives_a_signature_that_is_none(hsm: SoftHsm, faults: FaultyHsm, action: str, size: int) -> None:
    faults.plant("C_Sign", action)
    assert len(sign(hsm).stdout) == size


def test_an_answer_is_lost_after_the_work_was_done(hsm: SoftHsm, faults: FaultyHsm) -> None:
    faults.plant("C_GenerateKeyPair", "return", faulty_hsm.CKR_DEVICE_ERROR, after=True)
    assert "CKR_DEVICE_ERROR" in tool(hsm, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "two").stderr
    assert hsm.tool("--list-objects", "--type", "privkey").count("Private Key Object") == 2


def test_sessions_and_handles_are_forgotten(hsm: SoftHsm, faults: FaultyHsm) -> None:
    hsm.tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "two", "--id", "02")
    faults.plant("C_SignInit", "forget", times=1)
    assert b"CKR_SESSION_HANDLE_INVALID" in sign(hsm).stderr
    faults.plant("C_SignInit", "swap")
    assert len(sign(hsm).stdout) == 64


def test_the_token_is_pulled_out_and_put_back(hsm: SoftHsm, faults: FaultyHsm) -> None:
    with faults.token_removed():
        assert tool(hsm, "--list-objects").returncode != 0
    assert tool(hsm, "--list-objects").returncode == 0


def test_it_says_that_it_is_another_device(hsm: SoftHsm, faults: FaultyHsm) -> None:
    faults.plant(("C_GetInfo", "C_GetTokenInfo"), "manufacturer", "Yubico (www.yubico.com)")
    faults.plant("C_GetTokenInfo", "model", "YubiHSM")
    faults.plant("C_GetTokenInfo", "limit", 3, 2)
    listing = tool(hsm, "--list-token-slots", "--show-info").stdout
    assert "Yubico (www.yubico.com)" in listing
    assert "YubiHSM" in listing


def test_it_limits_sessions_and_refuses_templates_and_mechanisms(hsm: SoftHsm, faults: FaultyHsm) -> None:
    generate = ("--keypairgen", "--key-type", "EC:prime256v1", "--label", "two", "--sensitive")
    cka_sensitive, cka_nothing = 0x103, 0x8FFFFFFF
    for action, code, attribute in (
        ("refuse", faulty_hsm.CKR_TEMPLATE_INCONSISTENT, cka_sensitive),
        ("require", faulty_hsm.CKR_TEMPLATE_INCOMPLETE, cka_nothing),
    ):
        with faults.planted("C_GenerateKeyPair", action, code, attribute):
            assert tool(hsm, *generate).returncode != 0
    with faults.planted("C_OpenSession", "limit", 1, 1):
        assert tool(hsm, *generate).returncode == 0
        (faults.folder / "sessions" / f"{threading.get_native_id()}.7.rw").touch()
        assert "CKR_SESSION_COUNT" in tool(hsm, *generate).stderr
    with faults.planted(("C_SignInit", "C_GetMechanismList", "C_GetMechanismInfo"), "lack", 0x1041):
        assert "ECDSA, " not in tool(hsm, "--list-mechanisms").stdout
        assert sign(hsm).returncode != 0


def test_it_reads_other_attributes_and_points(hsm: SoftHsm, faults: FaultyHsm) -> None:
    cka_extractable = 0x162
    faults.plant("C_GetAttributeValue", "attribute", cka_extractable, "01")
    assert "extractable" in tool(hsm, "--list-objects", "--type", "privkey").stdout
    point = tool(hsm, "--list-objects", "--type", "pubkey").stdout.split("EC_POINT:")[1].split()[0]
    with faults.planted("C_GetAttributeValue", "point", "raw"):
        assert point[4:] in tool(hsm, "--list-objects", "--type", "pubkey").stdout
