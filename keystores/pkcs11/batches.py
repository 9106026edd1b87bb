"""Signing on one device, as its sessions permit: what waits for the same key goes out together, and a large batch over
several sessions at once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from keystores.errors import InvalidArgument, PermanentlyUnusable
from keystores.pkcs11.device import Device
from keystores.pkcs11.protocol import Mechanism, Sign

GATHERED = 256
"""Payloads that go out together at most, unless one caller brings more."""
SPREAD = 16
"""Payloads that are worth a further session."""

_Name = tuple[bytes | str, Mechanism]


@dataclass
class _Batch:
    """Callers who wait for a session together."""

    callers: list[tuple[asyncio.Future[list[bytes]], list[bytes]]] = field(default_factory=list)
    size: int = 0

    def join(self, payloads: list[bytes]) -> asyncio.Future[list[bytes]]:
        future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self.callers.append((future, payloads))
        self.size += len(payloads)
        return future

    def payloads(self) -> list[bytes]:
        """Of those who still wait. Called when a session is free."""
        self.callers = [(future, payloads) for future, payloads in self.callers if not future.done()]
        return [payload for _, payloads in self.callers for payload in payloads]

    def settle(self, signatures: list[bytes]) -> None:
        at = 0
        for future, payloads in self.callers:
            if not future.done():
                future.set_result(signatures[at : at + len(payloads)])
            at += len(payloads)

    def fail(self, error: Exception) -> None:
        for future, _ in self.callers:
            if not future.done():
                future.set_exception(error)


class Signer:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._open: dict[_Name, _Batch] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def sign(self, key: bytes | str, mechanism: Mechanism, payloads: list[bytes]) -> list[bytes]:
        """The raw signatures, in order, by the key of a CKA_ID (bytes) or a label. Raises what `Device.call` raises."""
        sessions = self._device.sessions
        if sessions > 1 and len(payloads) >= 2 * SPREAD:
            share = max(SPREAD, -(-len(payloads) // sessions))
            parts = [payloads[at : at + share] for at in range(0, len(payloads), share)]
            signed = await asyncio.gather(*(self._alone(key, mechanism, part) for part in parts))
            return [signature for part in signed for signature in part]
        if not self._device.busy or len(payloads) >= GATHERED:
            return await self._alone(key, mechanism, payloads)
        return await self._together((key, mechanism), payloads)

    async def _alone(self, key: bytes | str, mechanism: Mechanism, payloads: list[bytes]) -> list[bytes]:
        signatures = await self._device.call(_request(key, mechanism, payloads), list[bytes])
        return _complete(signatures, len(payloads))

    async def _together(self, name: _Name, payloads: list[bytes]) -> list[bytes]:
        batch = self._open.get(name)
        if batch is None or batch.size + len(payloads) > GATHERED:
            batch = self._open[name] = _Batch()
            task = asyncio.create_task(self._run(name, batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await batch.join(payloads)

    async def _run(self, name: _Name, batch: _Batch) -> None:
        def request() -> Sign:
            if self._open.get(name) is batch:
                del self._open[name]
            payloads = batch.payloads()
            if not payloads:
                raise InvalidArgument("nobody waits for these signatures any more")
            return _request(*name, payloads)

        try:
            signatures = await self._device.call(request, list[bytes])
            batch.settle(_complete(signatures, sum(len(payloads) for _, payloads in batch.callers)))
        except Exception as error:  # noqa: BLE001 - nothing is dropped: those who wait get it
            batch.fail(error)
        finally:
            if self._open.get(name) is batch:
                del self._open[name]


def _request(key: bytes | str, mechanism: Mechanism, payloads: list[bytes]) -> Sign:
    cka_id, label = (key, None) if isinstance(key, bytes) else (None, key)
    return Sign(cka_id, label, mechanism, payloads)


def _complete(signatures: list[bytes], wanted: int) -> list[bytes]:
    if len(signatures) != wanted:
        raise PermanentlyUnusable(f"the device gave {len(signatures)} signatures for {wanted} payloads")
    return signatures
