"""From a process or a reference to a workload's selectors, by all workload attestors at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Final

from google.protobuf.message import DecodeError

from attestors import processes
from attestors.turns import Turns
from generated.spiffe.broker import api_pb2
from identity.selectors import Selector
from operations import logs, metrics
from operations.errors import InvalidArgument, SpireError, TemporarilyUnavailable, Unsupported
from plugins.workloadattestor import BROKER_ID, PID_REFERENCE, Patient, ReferenceAttestor, WorkloadAttestor
from transport.errors import status_of
from transport.peer import Peer, Process
from transport.status import Code, RpcError

_TIMEOUT = 10.0
_AT_ONCE = 64
_OF_A_USER = 16
_BROKERS: Final = -1  # in the place of a user

_Found = Sequence[Selector] | SpireError | None
"""An attestor's selectors, why it has none, or None when it was passed over."""

_log = logs.get("workload_attestor")


class _Slots:
    """One attestor's: calls beyond them wait. A user who calls a thousand times at once has not all of them."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._turns = Turns(_OF_A_USER)

    @asynccontextmanager
    async def of(self, uid: int) -> AsyncGenerator[None, None]:
        async with self._turns.of(uid), self._slots:
            yield


class WorkloadAttestation:
    """One attestor that fails or hangs costs its selectors, not the others'."""

    def __init__(self, attestors: Sequence[WorkloadAttestor], *, timeout: float = _TIMEOUT) -> None:
        """`timeout` is in seconds, for each attestor."""
        self._attestors = attestors
        self._timeout = timeout
        self._slots = {id(each): _Slots() for each in attestors if not isinstance(each, Patient)}

    @metrics.timed("workload_api", "workload_attestation")
    async def attest(self, peer: Peer) -> frozenset[Selector]:
        """Raises TemporarilyUnavailable when no attestor succeeds, or the caller is not the one that connected."""
        process = peer.process
        if process is None:
            raise TemporarilyUnavailable("workload attestation failed")
        return await self._attest(process, process.uid)

    @metrics.timed("workload_api", "workload_attestation")
    async def attest_pid(self, pid: int, caller: Peer) -> frozenset[Selector]:
        """Selectors of a process that the caller names, which has to last as long as this takes.

        Raises TemporarilyUnavailable as `attest` does.
        """
        try:
            with processes.pinned(pid) as process:
                return await self._attest(process, caller.process.uid if caller.process else _BROKERS)
        except TemporarilyUnavailable:
            raise
        except SpireError as error:
            _log.error("Workload attestation failed", pid=pid, error=error)
            raise TemporarilyUnavailable("workload attestation failed") from error

    @metrics.timed("workload_api", "workload_attestation")
    async def attest_reference(self, type_url: str, value: bytes, broker_id: str) -> frozenset[Selector]:
        """Selectors of the workload that a broker refers to by a message of this type, serialised.

        Raises RpcError: UNIMPLEMENTED where no attestor knows the type, otherwise what the first one said that failed
        when none succeeded; and NotFound, Refused and InvalidArgument for a pid.
        """
        pid = _pid(value) if type_url == PID_REFERENCE else None
        broker = BROKER_ID.set(broker_id)
        try:
            with nullcontext() if pid is None else processes.pinned(pid) as process:
                results = await self._ask_all(lambda each: self._refer(each, type_url, value, process))
                if process is not None:
                    processes.require_same(process)
        finally:
            BROKER_ID.reset(broker)
        found = [each for each in results if each is not None and not isinstance(each, SpireError)]
        if not found:
            raise _why_not([each for each in results if isinstance(each, SpireError)])
        selectors = _joined(found)
        if _log.enabled("debug"):
            text = sorted(map(str, selectors))
            _log.debug("Reference attested to have selectors", reference_type=type_url, selectors=text)
        return selectors

    async def _attest(self, process: Process, uid: int) -> frozenset[Selector]:
        results = await self._ask_all(lambda each: self._examine(each, process, uid))
        self._require_same(process)
        found = [each for each in results if each is not None and not isinstance(each, SpireError)]
        if self._attestors and not found:
            raise TemporarilyUnavailable("workload attestation failed")
        selectors = _joined(found)
        if process.pid != os.getpid() and _log.enabled("debug"):
            _log.debug("PID attested to have selectors", pid=process.pid, selectors=sorted(map(str, selectors)))
        return selectors

    async def _ask_all(self, ask: Callable[[WorkloadAttestor], Awaitable[_Found]]) -> Sequence[_Found]:
        if len(self._attestors) == 1:
            return [await ask(self._attestors[0])]
        return await asyncio.gather(*(ask(each) for each in self._attestors))

    async def _examine(self, attestor: WorkloadAttestor, process: Process, uid: int) -> _Found:
        try:
            return await self._in_time(attestor, uid, lambda: attestor.attest(process))
        except SpireError as error:
            _log.error("workload attestor failed", attestor=attestor.name, pid=process.pid, error=error)
            return error

    async def _refer(self, attestor: WorkloadAttestor, type_url: str, value: bytes, process: Process | None) -> _Found:
        """By the reference, or where the attestor knows no references by the process that it is."""
        try:
            if isinstance(attestor, ReferenceAttestor):
                try:
                    return await self._in_time(attestor, _BROKERS, lambda: attestor.attest_reference(type_url, value))
                except SpireError as error:
                    if status_of(error).code is not Code.UNIMPLEMENTED:
                        raise
            if process is None:
                return None
            return await self._in_time(attestor, _BROKERS, lambda: attestor.attest(process))
        except SpireError as error:
            _log.error("workload attestor failed", attestor=attestor.name, reference_type=type_url, error=error)
            text = f'workload attestor "{attestor.name}" failed: {error}'
            return RpcError(status_of(error).code, text)

    async def _in_time(
        self, attestor: WorkloadAttestor, uid: int, ask: Callable[[], Awaitable[Sequence[Selector]]]
    ) -> Sequence[Selector]:
        """Raises SpireError classes."""
        patience = attestor.patience if isinstance(attestor, Patient) else self._timeout
        try:
            async with self._slot_of(attestor, uid), asyncio.timeout(patience):
                with metrics.call("workload_api", "workload_attestor", attestor=attestor.name):
                    return await ask()
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"no answer within {patience:g} s") from error

    def _slot_of(self, attestor: WorkloadAttestor, uid: int) -> AbstractAsyncContextManager[None]:
        slots = self._slots.get(id(attestor))
        return nullcontext() if slots is None else slots.of(uid)

    def _require_same(self, process: Process) -> None:
        try:
            processes.require_same(process)
        except SpireError as error:
            _log.error("Workload attestation failed", pid=process.pid, error=error)
            raise TemporarilyUnavailable("workload attestation failed") from error


def _joined(found: Iterable[Sequence[Selector]]) -> frozenset[Selector]:
    selectors = frozenset(selector for some in found for selector in some)
    metrics.sample("workload_api", "discovered_selectors", value=len(selectors))
    return selectors


def _pid(value: bytes) -> int:
    try:
        pid = api_pb2.WorkloadPIDReference.FromString(value).pid
    except DecodeError as error:
        raise InvalidArgument("the pid reference cannot be understood") from error
    if pid <= 0:
        raise InvalidArgument(f"the pid reference must be greater than 0: it is {pid}")
    return pid


def _why_not(errors: Sequence[SpireError]) -> SpireError:
    if not errors:
        return Unsupported("no workload attestor handled reference")
    return RpcError(status_of(errors[0]).code, "; ".join(status_of(each).message for each in errors))
