"""The PIN is asked of a person, once, and shown to nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keystores.pkcs11.configuration import TokenConfiguration
from keystores.pkcs11.prompt import pin_of
from operations.errors import ConfigurationError
from tests.simulators.softhsm import MODULE, USER_PIN, SoftHsm
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


OPEN = """
import asyncio, hashlib, os
from pathlib import Path
from keystores.pkcs11.configuration import Configuration
from keystores.pkcs11.manager import load_server
from operations import logs
from operations.errors import SpireError
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, KeyType, Scheme
logs.setup("debug", "text")

async def main():
    folder = Path({folder!r})
    configuration = Configuration(
        module_path={module!r}, token_label="spire", keys_path=str(folder / "keys.json"), pin_prompt={prompt}
    )
    manager = await load_server(configuration, PluginContext("example.org", None, logs.get("pkcs11")))
    key = await manager.generate("key", KeyType.EC_P256)
    [worker] = Path("/proc/self/task/%d/children" % os.getpid()).read_text().split()
    os.kill(int(worker), 9)
    for _ in range(50):
        try:
            await key.sign(hashlib.sha256(b"m").digest(), Scheme(Hash.SHA256))
            break
        except SpireError as error:
            print("again", error)
            await asyncio.sleep(0.2)
    print("signed after", "a new login")
    await manager.close()

try:
    asyncio.run(main())
except SpireError as error:
    print("failed:", error)
"""


def opening(hsm: SoftHsm, *, prompt: bool = True) -> tuple[str, ...]:
    return (sys.executable, "-c", OPEN.format(folder=str(hsm.folder), module=MODULE, prompt=prompt))


@pytest.mark.parametrize("prompt", [True, False], ids=["asked for", "nothing is set"])
def test_a_typed_pin_logs_in_and_in_again(hsm: SoftHsm, prompt: bool) -> None:
    with terminal(opening(hsm, prompt=prompt), hsm.environment) as screen:
        screen.see("PIN of the token with token_label 'spire': ")
        assert not screen.echoes
        screen.type(f"{USER_PIN}\n")
        screen.see("signed after a new login")
        assert screen.end() == 0
        assert USER_PIN not in screen.shown
        assert screen.shown.count("PIN of the token") == 1
    assert not list(hsm.folder.glob("*.pin-refused"))


def test_a_wrong_pin_is_tried_once_and_not_asked_for_again(hsm: SoftHsm) -> None:
    with terminal(opening(hsm), hsm.environment) as screen:
        screen.see("PIN of the token with token_label 'spire': ")
        screen.type("1111\n")
        screen.see("failed: the token with token_label 'spire' refused the PIN that was typed; it is not asked for ")
        assert screen.end() == 0
        assert "1111" not in screen.shown
    assert not list(hsm.folder.glob("*.pin-refused")), "the next start asks anew"
    with terminal(opening(hsm), hsm.environment) as screen:
        screen.see("PIN of the token with token_label 'spire': ")
        screen.type(f"{USER_PIN}\n")
        screen.see("signed after")


async def test_one_source_of_the_pin_is_named(hsm: SoftHsm) -> None:
    chosen = TokenConfiguration(module_path=MODULE, token_label="spire", pin_file="/p", pin_prompt=True)
    with pytest.raises(ConfigurationError, match="set one of pin_file and pin_prompt, not both"):
        await pin_of(chosen, hsm.folder / "marker")
    with pytest.raises(ConfigurationError, match="or pin_prompt = true"):
        await pin_of(TokenConfiguration(module_path=MODULE, token_label="spire"), hsm.folder / "marker")
