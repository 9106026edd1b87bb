"""The state of a program's subsystems, looked at now and then, for those who ask over HTTP.

Live is what can recover by itself, ready what can do its work. The program is either when all its subsystems are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from operations import http, logs
from operations.errors import SpireError
from operations.http import Handler, Request, Response

FIRST_INTERVAL: Final = 1.0
"""Seconds between two looks, until all is well for the first time."""

INTERVAL: Final = 60.0
"""Seconds between two looks afterwards, and the longest that one may take."""

LIVE_PATH: Final = "/live"
READY_PATH: Final = "/ready"
DEFAULT_HOST: Final = "localhost"
DEFAULT_PORT: Final = 80

Details = Mapping[str, str]
"""What a failing check tells, by the names that SPIRE gives it."""

_log = logs.get("health")


@dataclass(frozen=True, slots=True)
class State:
    """Of one subsystem. Until it has `started`, that it is not ready is no news."""

    live: bool
    ready: bool
    started: bool = True
    live_details: Details | None = field(default_factory=dict[str, str])
    ready_details: Details | None = field(default_factory=dict[str, str])


Check = Callable[[], Awaitable[State]]

_UNKNOWN: Final = State(live=False, ready=False, live_details=None, ready_details=None)


def failing(detail: str) -> Callable[[Callable[[], Awaitable[object]]], Check]:
    """A check that is live and ready when `probe` raises no SpireError; its text goes into the detail of that name."""

    def of(probe: Callable[[], Awaitable[object]]) -> Check:
        async def check() -> State:
            try:
                async with asyncio.timeout(INTERVAL):
                    await probe()
            except SpireError as error:
                return _failed({detail: str(error)})
            except TimeoutError:
                return _failed({detail: f"no answer within {INTERVAL:g} s"})
            return State(live=True, ready=True)

        return check

    return of


def _failed(details: Details) -> State:
    return State(live=False, ready=False, live_details=details, ready_details=details)


@dataclass(slots=True)
class _Subsystem:
    check: Check
    state: State = _UNKNOWN
    error: str | None = None
    failures: int = 0
    failing_since: float = 0.0


class Checker:
    """Looks at every subsystem while `run` runs, and answers from what it saw last."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._subsystems = {name: _Subsystem(check) for name, check in checks.items()}
        self._told_at_start: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            well = all(each.state.live and each.state.ready for each in self._subsystems.values())
            if well:
                break
            await asyncio.sleep(FIRST_INTERVAL)
        while True:
            await asyncio.sleep(INTERVAL)
            await self.look()

    async def look(self) -> None:
        """Run every check once."""
        for name, subsystem in self._subsystems.items():
            state = await subsystem.check()
            error = _error(state)
            if error is not None:
                self._tell_failure(name, state, error)
            _note(name, subsystem, state, error)

    def _tell_failure(self, name: str, state: State, error: str) -> None:
        if state.started:
            _log.error("Health check has failed", check=name, error=error)
        elif self._told_at_start.get(name) != error:
            self._told_at_start[name] = error
            _log.warning("Health check has failed. Starting up still.", check=name, error=error)

    async def live(self, _request: Request) -> Response:
        states = {name: each.state for name, each in self._subsystems.items()}
        live = all(state.live for state in states.values())
        return _response(live, {name: state.live_details for name, state in states.items()})

    async def ready(self, _request: Request) -> Response:
        states = {name: each.state for name, each in self._subsystems.items()}
        ready = all(state.ready for state in states.values())
        return _response(ready, {name: state.ready_details for name, state in states.items()})

    def handler(self, live_path: str, ready_path: str) -> Handler:
        """Answers at these paths; an empty one is SPIRE's own."""
        return http.routes({ready_path or READY_PATH: self.ready, live_path or LIVE_PATH: self.live})


def _response(well: bool, details: Mapping[str, Details | None]) -> Response:
    return http.json_response(200 if well else 500, details)


def _error(state: State) -> str | None:
    match state.live, state.ready:
        case True, True:
            return None
        case False, True:
            return "subsystem is not live"
        case True, False:
            return "subsystem is not ready"
        case _:
            return "subsystem is not live or ready"


def _note(name: str, subsystem: _Subsystem, state: State, error: str | None) -> None:
    """Keep the state, and tell of a change between well and not."""
    now = time.monotonic()
    details = "; ".join({**(state.live_details or {}), **(state.ready_details or {})}.values())
    if error is not None and subsystem.error is None:
        _log.warning("Health check failed", check=name, details=details, error=error)
        subsystem.failing_since, subsystem.failures = now, 1
    elif error is not None:
        subsystem.failures += 1
    elif subsystem.error is not None:
        _log.info(
            "Health check recovered",
            check=name,
            details=details,
            error=subsystem.error,
            failures=subsystem.failures,
            duration=round(now - subsystem.failing_since, 3),
        )
    subsystem.state, subsystem.error = state, error
