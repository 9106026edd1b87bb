"""The simulators that the tests stand on are there and answer. One that is missing fails here, by name."""

from __future__ import annotations

from pathlib import Path

from tests.simulators import softhsm, swtpm

GET_RANDOM = 0x17B


def test_softhsm(tmp_path: Path) -> None:
    token = softhsm.SoftHsm.create(tmp_path / "token")
    assert f"token label        : {token.label}" in token.tool("--list-token-slots", pin=None)


def test_swtpm(tmp_path: Path) -> None:
    with swtpm.started(tmp_path) as tpm:
        code, parameters = tpm.command(GET_RANDOM, (16).to_bytes(2, "big"))
    assert code == 0
    assert len(parameters) == 2 + 16
