"""A program that makes, replaces and disposes of keys in a token, and is killed after a step of its choice.

    python -m tests.unit.keystores.disposal_victim FOLDER STEP GRACE

A step is one call to the token, or one writing of keys_path; step 0 is the first key, made and not written
down. It prints how many there were if it comes to its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from keystores import state
from keystores.pkcs11.device import Device
from keystores.pkcs11.manager import Pkcs11KeyManager, load_agent
from keystores.pkcs11.protocol import Generate
from plugins.keymanager import KeyType
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.tokens import configured, context


class Steps:
    def __init__(self, last: int) -> None:
        self.done = 0
        self._last = last

    def step(self, *, made: bool = False) -> None:
        self.done += 1
        if self.done == self._last or (made and not self._last):
            os.kill(os.getpid(), signal.SIGKILL)

    def count(self) -> None:
        """From now on."""
        call: Callable[..., Any] = Device.call
        write = state.write

        async def counted_call(*args: Any, **kwargs: Any) -> Any:
            answer = await call(*args, **kwargs)
            self.step(made=isinstance(args[1], Generate))
            return answer

        def counted_write(path: Path, content: msgspec.Struct) -> None:
            write(path, content)
            self.step()

        Device.call = counted_call  # type: ignore[method-assign]
        state.write = counted_write


async def main(hsm: SoftHsm, last: int, grace: str) -> None:
    steps = Steps(last)
    steps.count()
    manager = await load_agent(configured(hsm, grace=grace), context())
    assert isinstance(manager, Pkcs11KeyManager)
    for key_id in ("agent-svid-A", "agent-svid-C", "agent-svid-A"):
        await manager.generate(key_id, KeyType.EC_P256)
    await manager.sealing_secret("label")
    [handle] = [each.handle for each in await manager.inventory() if each.id == "agent-svid-C" and not each.retired_at]
    await manager.withdraw(handle)
    await manager.close()
    print(steps.done)


if __name__ == "__main__":
    asyncio.run(main(SoftHsm(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]))
