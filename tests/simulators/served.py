"""A plugin served by our own half of the protocol, its keys in memory: `python -m tests.simulators.served WORD…`.

Words make it misbehave: `hangs` blocks the event loop when it is closed, `leaves-child` leaves a process behind,
`refuses` finds no device.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import ClassVar

import msgspec

from keystores import memory
from keystores.errors import TemporarilyUnavailable
from keystores.served import KeyManagerPlugin, Role
from operations.errors import ConfigurationError
from plugins.context import PluginContext
from plugins.keymanager import KeyManager
from plugins.served.program import run


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: str = "good"


class Hanging(memory.MemoryKeyManager):
    async def close(self) -> None:
        time.sleep(3600)  # noqa: ASYNC251 - this is what it is for


class Store:
    name: ClassVar[str] = "simulated"
    model: ClassVar[type[msgspec.Struct]] = Settings

    def __init__(self, words: frozenset[str] = frozenset()) -> None:
        self._words = words
        self.opened: list[tuple[str, str, Role]] = []
        self.closed = 0

    def check(self, configuration: msgspec.Struct) -> None:
        if configuration == Settings(device="impossible"):
            raise ConfigurationError("device: there is no such device")

    async def load(self, configuration: msgspec.Struct, context: PluginContext, role: Role) -> KeyManager:
        assert isinstance(configuration, Settings)
        self.opened.append((configuration.device, context.trust_domain, role))
        if configuration.device == "absent":
            raise TemporarilyUnavailable("the device is away")
        context.log.info("Opened", device=configuration.device, key=b"\x01")
        if "leaves-child" in self._words:
            _leave_child()
        return Hanging() if "hangs" in self._words else memory.MemoryKeyManager()


def _leave_child() -> None:
    subprocess.Popen(["sleep", "3600"], stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(run(lambda: KeyManagerPlugin(Store(frozenset(sys.argv[1:])))))
