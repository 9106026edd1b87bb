from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest

from agent.catalog import FACADES as AGENT
from operations.hcl import Body, Position
from plugins.blocks import PluginBlock
from plugins.external import metrics
from plugins.external.loading import ExternalPlugins
from server.catalog import FACADES as SERVER

# The agent puts nothing into SVID stores yet, and so refuses them; what stands for a plugin is there.
FACADES = {**AGENT, "SVIDStore": "plugins.external.svidstore:ExternalSvidStore"}
SIDES = {"server": SERVER, "agent": FACADES}
TRUST_DOMAIN = "example.org"


def block(kind: str, *words: str, **settings: Any) -> PluginBlock:
    """The simulated plugin of that type with these words."""
    place = Position("s.conf", 2)
    arguments = ("-m", "tests.simulators.plugin", *words)
    given: dict[str, Any] = {"command": sys.executable, "args": arguments, "data_text": "a = 1", **settings}
    return PluginBlock(type=kind, name="py", data=Body((), place, ""), position=place, **given)


class Load(Protocol):
    async def __call__(self, kind: str, *words: str, side: str = "server", **settings: Any) -> Any: ...


@pytest.fixture
async def load() -> AsyncIterator[Load]:
    """Loads plugins, which end with the test."""
    sets = {side: ExternalPlugins(facades, lambda: (metrics.service(()),)) for side, facades in SIDES.items()}

    async def loaded(kind: str, *words: str, side: str = "server", **settings: Any) -> Any:
        return await sets[side].load(block(kind, *words, **settings), TRUST_DOMAIN)

    yield loaded
    for external in sets.values():
        await external.close()


class Log:
    """What went to the log: level, message and fields."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "spire")
        self._caplog = caplog

    @property
    def lines(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [
            (record.levelname.lower(), record.getMessage(), dict(getattr(record, "fields", {})))
            for record in self._caplog.records
            if record.name == "spire"
        ]

    def named(self, message: str) -> list[dict[str, Any]]:
        return [fields for _, text, fields in self.lines if text == message]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)
