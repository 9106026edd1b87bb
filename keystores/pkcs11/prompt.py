"""A PIN asked of a person: on the terminal, without echo, or by systemd where there is none."""

from __future__ import annotations

import asyncio
import os
import shutil
import termios
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE

from keystores.errors import Refused
from keystores.pkcs11.configuration import TokenConfiguration, token_name
from keystores.pkcs11.pin import Pin
from operations.errors import ConfigurationError

TERMINAL = "/dev/tty"
SYSTEMD = "systemd-ask-password"
LONGEST = 255
"""Bytes of a PIN; a terminal gives no longer line than 4095."""
_READ = 4096
_LOOK = 0.5
"""Seconds."""


class TypedPin(Pin):
    """A PIN that a person gave at the start.

    It stays in memory for as long as the process may have to log in: a token that was away wants it again when nobody
    is there to be asked. One that the token refused is never tried again, and nothing of it is written down.
    """

    def __init__(self, pin: str, token: str) -> None:
        super().__init__(Path(os.devnull), Path(os.devnull))
        self._typed = pin
        self._token = token
        self._refused: Refused | None = None

    def _modified(self) -> int | None:
        return None

    def _read(self) -> str:
        return self._typed

    def _check(self, modified: int | None) -> None:
        del modified
        if self._refused is not None:
            raise self._refused

    def refused(self, modified: int | None) -> Refused:
        del modified
        self._typed = ""
        self._refused = Refused(
            f"the token with {self._token} refused the PIN that was typed; it is not asked for again, lest the token "
            "lock: start the program again to try another one"
        )
        return self._refused

    def accepted(self) -> None:
        """Nothing was written down that had to go."""


async def pins_of(tokens: Sequence[TokenConfiguration], keys_path: Path) -> Sequence[Pin]:
    """The PINs of the tokens of one key set, in order; a person is asked for each PIN once. Raises as `pin_of` does."""
    pins: list[Pin] = []
    for number, token in enumerate(tokens, start=1):
        typed = next((pin for pin in pins if isinstance(pin, TypedPin)), None)
        if typed is not None and not (token.pin_file or token.pin_credential):
            pins.append(typed)
            continue
        place = "" if number == 1 else f".{number}"
        pins.append(await pin_of(token, keys_path.with_name(f"{keys_path.name}{place}.pin-refused")))
    return pins


async def pin_of(configuration: TokenConfiguration, marker: Path) -> Pin:
    """The PIN of a token: from a file or a credential, or asked of a person now.

    Raises ConfigurationError unless one of the settings says which, or somebody is at the terminal.
    """
    settings = ("pin_file", "pin_credential", "pin_prompt")
    set_ones = [setting for setting in settings if getattr(configuration, setting)]
    if len(set_ones) > 1:
        raise ConfigurationError(f"pkcs11: set one of {' and '.join(set_ones)}, not both")
    if set_ones in (["pin_file"], ["pin_credential"]):
        return Pin.configured(configuration.pin_file, configuration.pin_credential, marker)
    if not set_ones and not at_terminal():
        raise ConfigurationError("pkcs11: set one of pin_file and pin_credential, or pin_prompt = true")
    token = token_name(configuration).text
    return TypedPin(await ask(f"PIN of the token with {token}"), token)


def at_terminal() -> bool:
    """Whether somebody is there to be asked: this process is in the foreground of a terminal."""
    with _terminal() as terminal:
        return terminal is not None


async def ask(question: str) -> str:
    """The PIN that a person types. Raises ConfigurationError where nobody can be asked, or nobody answers.

    The process may be ended meanwhile; the terminal echoes again then.
    """
    with _terminal() as terminal:
        if terminal is not None:
            return _checked(await _typed(terminal, question))
    command = shutil.which(SYSTEMD)
    if command is None or "INVOCATION_ID" not in os.environ:
        raise ConfigurationError(
            "pin_prompt: there is no terminal to ask for the PIN on, and this is no unit of systemd: "
            "set pin_file or pin_credential"
        )
    return _checked(await _by_systemd(command, question))


def _checked(answer: bytes) -> str:
    if not answer:
        raise ConfigurationError("pin_prompt: nobody entered a PIN")
    if len(answer) > LONGEST:
        raise ConfigurationError(f"pin_prompt: a PIN has at most {LONGEST} bytes")
    try:
        return answer.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError("pin_prompt: the PIN is no UTF-8") from error


@contextmanager
def _terminal() -> Generator[int | None]:
    """The controlling terminal, if this process may read from it: one in the background would be stopped."""
    try:
        terminal = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield terminal if os.tcgetpgrp(terminal) == os.getpgrp() else None
    finally:
        os.close(terminal)


async def _typed(terminal: int, question: str) -> bytes:
    """One line, without its end. What was typed before the question is not taken for the answer."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        if answer.done():
            return
        try:
            answer.set_result(os.read(terminal, _READ))
        except BlockingIOError:
            return
        except OSError as error:
            answer.set_exception(ConfigurationError(f"pin_prompt: the terminal is gone: {error.strerror}"))

    with _silent(terminal):
        os.write(terminal, f"{question}: ".encode())
        loop.add_reader(terminal, read)
        try:
            # A Ctrl-C in the moment before the loop goes to sleep is heard only when it wakes.
            while not answer.done():
                await asyncio.wait([answer], timeout=_LOOK)
            return answer.result().rstrip(b"\r\n")
        finally:
            loop.remove_reader(terminal)
            os.write(terminal, b"\n")


@contextmanager
def _silent(terminal: int) -> Generator[None]:
    before = termios.tcgetattr(terminal)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


async def _by_systemd(command: str, question: str) -> bytes:
    """Of an agent of systemd, such as the console's at boot, or `systemd-tty-ask-password-agent`."""
    process = await asyncio.create_subprocess_exec(
        command, "--no-tty", "--id=spire-pin", f"{question}:", stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        answer, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        reason = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["nobody answered"]
        raise ConfigurationError(f"pin_prompt: {SYSTEMD} got no PIN: {reason[0]}")
    return answer.rstrip(b"\r\n")
