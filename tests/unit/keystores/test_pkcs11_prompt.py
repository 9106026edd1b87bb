"""The PIN is asked of a person, once, and shown to nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulators.terminal import Terminal, terminal

ROOT = Path(__file__).parents[3]
ASK = """
import asyncio
from keystores.pkcs11.prompt import ask
from operations.errors import ConfigurationError
try:
    print("answer", repr(asyncio.run(ask("PIN of the token"))[::-1]))
except ConfigurationError as error:
    print("failed", error)
"""
COMMAND = (sys.executable, "-c", ASK)


def asked(screen: Terminal) -> None:
    screen.see("PIN of the token: ")
    assert not screen.echoes


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_pin_is_typed_without_echo() -> None:
    with terminal(COMMAND) as screen:
        asked(screen)
        screen.type("8246 9\n")
        screen.see("answer '9 6428'")
        assert screen.end() == 0
        assert screen.echoes
        assert "8246" not in screen.shown


def test_an_empty_answer_is_none() -> None:
    with terminal(COMMAND) as screen:
        asked(screen)
        screen.type("\n")
        screen.see("failed pin_prompt: nobody entered a PIN")
        assert screen.end() == 0


@pytest.mark.parametrize(("key", "end"), [("\x03", "KeyboardInterrupt"), ("\x04", "nobody entered a PIN")])
def test_who_does_not_answer_has_the_terminal_back(key: str, end: str) -> None:
    with terminal(COMMAND) as screen:
        asked(screen)
        screen.type(key)
        screen.see(end)
        assert screen.echoes


def test_one_in_the_background_does_not_ask() -> None:
    """It would be stopped by the terminal, for good."""
    shell = f"""set -m; {sys.executable} -c '{ASK.replace("'", '"')}' </dev/null & wait; echo over"""
    with terminal(("bash", "-c", shell)) as screen:
        screen.see("over")
        assert "failed pin_prompt: there is no terminal to ask for the PIN on" in screen.shown


def test_without_a_terminal_it_says_what_to_do() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "INVOCATION_ID"}
    done = subprocess.run(
        COMMAND, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == (
        "failed pin_prompt: there is no terminal to ask for the PIN on, and this is no unit of systemd: "
        "set pin_file or pin_credential\n"
    )


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("printf '%s\\n' 4711; echo \"$@\" > $0.asked", "answer '1174'"),
        (
            "echo 'Timer expired' >&2; exit 1",
            "failed pin_prompt: systemd-ask-password got no",
        ),
        ("exit 1", "failed pin_prompt: systemd-ask-password got no PIN: nobody answered"),
    ],
    ids=["answered", "too late", "silent"],
)
def test_in_a_unit_systemd_asks(tmp_path: Path, script: str, answer: str) -> None:
    tool = tmp_path / "systemd-ask-password"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    environment = {**os.environ, "INVOCATION_ID": "x", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        COMMAND, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith(answer)
    if "asked" in script:
        assert "PIN of the token:" in (tmp_path / "systemd-ask-password.asked").read_text()
