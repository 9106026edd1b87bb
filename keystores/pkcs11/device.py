"""One token, as the event loop sees it: a worker process that is replaced when it hangs or crashes, and a breaker that
keeps callers from a token that is away, until a probe finds it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import msgspec

from keystores.errors import KeyStoreError, NotFound, PermanentlyUnusable, TemporarilyUnavailable
from keystores.pkcs11.configuration import TokenSpec
from keystores.pkcs11.failures import Gone, NoSession
from keystores.pkcs11.lane import Lane, Lost, Silent
from keystores.pkcs11.pin import Pin
from keystores.pkcs11.pool import Pool
from keystores.pkcs11.process import Start, WorkerProcess
from keystores.pkcs11.profiles import profile
from keystores.pkcs11.protocol import Check, Open, Request, Sign, TokenFacts
from operations.errors import SpireError
from operations.logs import Logger

T = TypeVar("T")

PATIENCE = 8.0
"""Seconds without an answer from the device after which a call is given up, and its worker with it."""
QUEUE_PATIENCE = 12.0
"""Seconds that a call may wait for its turn; after them it is not tried again either."""
FAILURES = 3
"""Calls in a row that a token fails before it counts as away."""
PROBE_PATIENCE = 5.0
FIRST_PROBE, LAST_PROBE = 0.5, 5.0
"""Seconds between probes of a token that is away: they double from the first to the last."""
MOST_SOCKETS = 8


class _Retired(NoSession):
    """The token had no session for this call's; there are others."""


class Device:
    def __init__(self, spec: TokenSpec, pin: Pin, log: Logger) -> None:
        self.spec = spec
        self.facts: TokenFacts | None = None
        self._pin = pin
        self._log = log.bind(token=spec.name.text)
        self._started: WorkerProcess | None = None
        self._pool: Pool | None = None
        self._opening: asyncio.Task[Pool] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._told_of_sessions = False
        self._signed: Sign | None = None
        self._away: str | None = None
        self._background: list[asyncio.Task[None]] = []
        self._closed = False
        self.when_back: list[Callable[[], None]] = []

    @property
    def name(self) -> str:
        return self.spec.name.text

    @property
    def away(self) -> bool:
        """The breaker is open: calls are refused at once."""
        return self._away is not None

    @property
    def pid(self) -> int | None:
        """Of the worker process, when there is one."""
        return self._pool.worker.pid if self._pool is not None else None

    @property
    def sessions(self) -> int:
        """How many calls are done at once."""
        return self._pool.size if self._pool is not None else 1

    @property
    def busy(self) -> bool:
        return self._pool is None or self._pool.broken or not self._pool.has_idle

    def start(self) -> None:
        """Start the worker process, so that it loads while the caller does something else."""
        self.check_open()
        if self._started is None:
            sessions = MOST_SOCKETS if self.spec.sessions is None else self.spec.sessions
            self._started = WorkerProcess.start(Start(sessions, self.spec.environment), self._log)

    async def open(self) -> TokenFacts:
        """Load the module and log in. Raises NotFound for a missing module or token, Refused for the PIN,
        ConfigurationError for its file, TemporarilyUnavailable.
        """
        await self._opened()
        if self.facts is None:
            raise TemporarilyUnavailable(f"the token with {self.name} did not say what it is")
        return self.facts

    def suspect(self, error: SpireError) -> None:
        """Count it as away, and ask it again until it is there."""
        self._trip(error)

    async def call(
        self,
        request: Callable[[], Request] | Request,
        result: type[T],
        *,
        patience: float | None = None,
        repeatable: bool = True,
        rw: bool = False,
    ) -> T:
        """Have the worker do it. A function as `request` is asked once a session is free.

        Raises what the worker raises, and TemporarilyUnavailable: at once while the token is away; after `patience`
        (PATIENCE when None) seconds of silence; after QUEUE_PATIENCE without a turn. When the worker ends under a call
        that is `repeatable`, it is tried once more. A caller that gives up before its turn takes the work with it; work
        that has begun goes on to its end.
        """
        self.check_open()
        self._refuse_when_away()
        began = asyncio.get_running_loop().time()
        while True:
            left = began + QUEUE_PATIENCE - asyncio.get_running_loop().time()
            try:
                answer = await self._once(request, result, PATIENCE if patience is None else patience, left, rw=rw)
            except _Retired:
                continue  # on another session
            except Silent as error:
                self._failed(error)
                raise
            except Lost as error:
                if not repeatable or asyncio.get_running_loop().time() > began + QUEUE_PATIENCE:
                    self._failed(error)
                    raise
                repeatable = False
            except (Gone, NoSession, NotFound) as error:
                self._failed(error)
                raise
            else:
                self._failures = 0
                return answer

    async def _once(
        self, request: Callable[[], Request] | Request, result: type[T], patience: float, left: float, *, rw: bool
    ) -> T:
        pool = self._pool
        if pool is None or pool.broken:
            pool = await self._opened()
        lane = pool.take(rw=rw) or await pool.wait(left, rw=rw)
        try:
            asked = request() if callable(request) else request
        except BaseException:
            pool.release(lane)
            raise
        if isinstance(asked, Sign):
            self._signed = asked
        try:
            return await lane.ask(asked, result, patience, partial(self._over, pool))
        except NoSession as error:
            if lane.rw:
                raise
            raise _Retired(str(error)) from error

    def _over(self, pool: Pool, lane: Lane, error: Exception | None) -> None:
        if isinstance(error, Lost):
            self._lose(pool, error)
        elif isinstance(error, NoSession) and not lane.rw:
            pool.retire(lane)
            if not self._told_of_sessions:
                self._told_of_sessions = True
                self._log.info("The token has fewer sessions than wanted", sessions=pool.size)
        else:
            pool.release(lane)

    def _lose(self, pool: Pool, error: Lost) -> None:
        if not pool.broken:
            tell = self._log.debug if self.away else self._log.warning
            tell("A PKCS#11 worker is given up", error=error, pid=pool.worker.pid)
            pool.worker.kill()
            pool.give_up(Lost("the PKCS#11 worker ended before the call had its turn"))
            self._end(pool.worker)

    def _end(self, worker: WorkerProcess) -> asyncio.Task[None]:
        """Goes on when nobody waits for it; `close` does."""
        task = asyncio.create_task(worker.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _opened(self) -> Pool:
        if self._pool is not None and not self._pool.broken:
            return self._pool
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
            self._opening.add_done_callback(self._opening_over)
        return await asyncio.shield(self._opening)

    def _opening_over(self, task: asyncio.Task[Pool]) -> None:
        self._opening = None
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, SpireError) and self.facts is not None:
            self._trip(error)  # each try costs a process; the probe makes them from now on

    async def _open(self) -> Pool:
        self.start()
        worker, self._started = self._started, None
        if worker is None:
            raise RuntimeError("a worker was started")
        try:
            await worker.connect(self._pin)
            opening = Open(self.spec.module_path, self.spec.name, self.spec.profile)
            facts = await worker.lanes[0].ask(opening, TokenFacts, PATIENCE, _nobody)
        except BaseException as error:
            if isinstance(error, Lost):
                worker.kill()
            await worker.end()
            raise
        wanted = profile(facts.profile).sessions if self.spec.sessions is None else self.spec.sessions
        worker.keep(max(1, min(wanted, facts.sessions)))
        if self.facts is None:
            self._background.append(asyncio.create_task(self._keep_alive(profile(facts.profile).keep_alive)))
        self.facts = facts
        self._pool = Pool(worker)
        return self._pool

    def check_open(self) -> None:
        """Raises TemporarilyUnavailable after `close`."""
        if self._closed:
            raise TemporarilyUnavailable("the key manager is closed")

    def _refuse_when_away(self) -> None:
        if self._away is not None:
            raise TemporarilyUnavailable(f"the token with {self.name} is away, and asked again shortly: {self._away}")

    def _failed(self, error: SpireError) -> None:
        self._failures += 1
        if self._failures >= FAILURES:
            self._trip(error)

    def _trip(self, error: SpireError) -> None:
        if self._away is None and not self._closed:
            self._away = str(error)
            self._log.error("The token is away: calls are refused until it is back", error=error)
            self._background.append(asyncio.create_task(self._probe()))

    async def _probe(self) -> None:
        """Ends when the token answers, and signs again what it signed last, should it have signed anything.

        A worker that cannot reach it is replaced: some modules see a device that came back only when loaded anew.
        """
        pause = FIRST_PROBE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PROBE)
            try:
                await self._once(Check(), type(None), PROBE_PATIENCE, PROBE_PATIENCE, rw=True)
                await self._sign_again()
            except SpireError as error:
                if self._away != str(error):
                    self._away = str(error)
                    self._log.warning("The token is still away", error=error)
                await self._drop_pool()
            else:
                break
        self._away = None
        self._failures = FAILURES - 1  # the first failure tells that nothing is well
        self._log.info("The token is back")
        self._background[:] = [task for task in self._background if not task.done()]
        for tell in self.when_back:
            tell()

    async def _sign_again(self) -> None:
        """A module may answer everything else and crash or hang when it signs. The signature goes nowhere."""
        if self._signed is not None:
            request = msgspec.structs.replace(self._signed, payloads=self._signed.payloads[:1])
            try:
                await self._once(request, list[bytes], PROBE_PATIENCE, PROBE_PATIENCE, rw=True)
            except PermanentlyUnusable:  # the key is no more, and the token is there
                self._signed = None

    async def _drop_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None and not pool.broken:
            pool.give_up(Lost("the PKCS#11 worker is replaced"))
            await asyncio.shield(self._end(pool.worker))

    async def _keep_alive(self, interval: float | None) -> None:
        """Use the sessions before the device ends idle ones."""
        while interval is not None:
            await asyncio.sleep(interval)
            for at in range(self.sessions):
                if not self.busy and not self.away:
                    with suppress(KeyStoreError):  # whoever needs the session next sees to it
                        await self.call(Check(), type(None), rw=at == 0)

    async def close(self) -> None:
        """End the worker and what waits for it. Further calls raise TemporarilyUnavailable."""
        if self._closed:
            return
        self._closed = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._pool is not None:
            await self._pool.quiet(PATIENCE)
        await self._drop_pool()
        if self._started is not None:
            await self._started.end()
        if self._ending:
            await asyncio.wait(self._ending)


def _nobody(_lane: Lane, _error: Exception | None) -> None:
    """A worker that is being opened is nobody else's yet."""
