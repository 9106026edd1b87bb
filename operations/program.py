"""The process around a program's commands, and around one that serves: statuses, signals, last lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn, Protocol

from operations import startup
from operations.errors import ConfigurationError, ConfigurationErrors, SpireError
from operations.flags import FlagSet, Program, Run

if TYPE_CHECKING:
    from operations.logs import Logger

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells report it."""


def main(program: Program) -> NoReturn:
    """Run the command that the process was started with, and end the process with its status."""
    startup.begun()
    try:
        status = program.run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not fail at its last flush either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    startup.ended()
    sys.exit(status)


def lazily(module: str, function: str) -> Callable[[FlagSet], Run]:
    """A command's builder that imports its module only when the command is used."""

    def build(flags: FlagSet) -> Run:
        run: Run = getattr(import_module(module), function)(flags)
        return run

    return build


class Logging(Protocol):
    """What a configuration says of the log, and what its reader wants said there."""

    @property
    def log_level(self) -> str: ...
    @property
    def log_format(self) -> str: ...
    @property
    def log_file(self) -> str | None: ...
    @property
    def log_source_location(self) -> bool: ...
    @property
    def warnings(self) -> Sequence[str]: ...


async def serve(config: Logging, work: Callable[[], Coroutine[None, None, None]], *, name: str, failed: str) -> int:
    """Set up the log and do the work until it ends, fails, or SIGTERM or SIGINT cancels it.

    `name` and `failed` begin the last line: `<name> stopped gracefully`, or `<failed>` with what was wrong, one line a
    fault and no traceback. Returns the process's status: 0, or 1 after such a fault.
    """
    import asyncio
    import signal

    from operations import logs, sdnotify

    try:
        logs.setup(config.log_level, config.log_format, config.log_file, source_location=config.log_source_location)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1
    log = logs.get()
    for warning in config.warnings:
        log.warning(warning)
    serving = asyncio.create_task(work())
    watchdog = asyncio.create_task(sdnotify.keep_watchdog_calm())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # A second signal cuts short what the first let end in peace.
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        log.info(f"{name} stopped gracefully")
    except SpireError as error:
        _tell(error, log, failed, also_stderr=config.log_file is not None)
        return 1
    finally:
        watchdog.cancel()
    return 0


def _tell(error: SpireError, log: Logger, failed: str, *, also_stderr: bool) -> None:
    for problem in error.problems if isinstance(error, ConfigurationErrors) else (error,):
        log.error(failed, error=problem)
        if also_stderr:
            print(problem, file=sys.stderr)
