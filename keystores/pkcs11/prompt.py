"""A PIN asked of a person: on the terminal, without echo, or by systemd where there is none."""

from __future__ import annotations

import asyncio
import os
import shutil
import termios
from collections.abc import Generator
from contextlib import contextmanager
from subprocess import DEVNULL, PIPE

from operations.errors import ConfigurationError

TERMINAL = "/dev/tty"
SYSTEMD = "systemd-ask-password"
LONGEST = 255
"""Bytes of a PIN; a terminal gives no longer line than 4095."""
_READ = 4096


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
            return (await answer).rstrip(b"\r\n")
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
