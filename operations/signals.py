"""Signals that several parts of a process wait for: SIGUSR1 writes metrics, and has plugins read their files again.

asyncio keeps one handler for a signal, and a second one would silently take the first one's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_listeners: dict[tuple[asyncio.AbstractEventLoop, int], list[Callable[[], None]]] = {}


def listen(number: int, callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback` on the running loop at each of these signals. The function returned ends that."""
    loop = asyncio.get_running_loop()
    listeners = _listeners.setdefault((loop, number), [])
    if not listeners:
        loop.add_signal_handler(number, _tell, loop, number)
    listeners.append(callback)

    def leave() -> None:
        if callback not in listeners:
            return
        listeners.remove(callback)
        if not listeners:
            del _listeners[loop, number]
            loop.remove_signal_handler(number)

    return leave


def _tell(loop: asyncio.AbstractEventLoop, number: int) -> None:
    for callback in tuple(_listeners.get((loop, number), ())):
        callback()
