"""What the scenarios share: a token, a server whose keys are in it, and an agent of that server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simulators import softhsm, spire

MakeServer = Callable[..., spire.Server]
MakeAgent = Callable[..., spire.Agent]


@pytest.fixture
def token(tmp_path: Path) -> softhsm.SoftHsm:
    return softhsm.SoftHsm.create(tmp_path / "token")


def pkcs11(token: softhsm.SoftHsm, keys_path: Path, **changes: str) -> str:
    """The KeyManager block for a token, with settings changed or, where the value is empty, left out."""
    settings = {
        "module_path": softhsm.MODULE,
        "token_label": token.label,
        "pin_file": str(token.pin_file),
        "namespace": "server-a",
        "keys_path": str(keys_path),
    } | changes
    lines = "\n".join(f'    {name} = "{value}"' for name, value in settings.items() if value)
    return f'KeyManager "pkcs11" {{ plugin_data {{\n{lines}\n  }} }}'


@pytest.fixture
def programs() -> Iterator[list[spire.Program]]:
    """Programs that end with the test, whatever happens in it."""
    running: list[spire.Program] = []
    yield running
    for program in reversed(running):
        if program.process is not None:
            program.end()


@pytest.fixture
def make_server(tmp_path: Path, token: softhsm.SoftHsm, programs: list[spire.Program]) -> MakeServer:
    def make(name: str = "server", *, key_manager: str = "", settings: str = "") -> spire.Server:
        folder = tmp_path / name
        made = spire.Server(
            folder,
            key_manager=key_manager or pkcs11(token, folder / "keys.json"),
            settings=settings,
            environment={"SOFTHSM2_CONF": str(token.configuration)},
        )
        programs.append(made.run)
        return made

    return make


@pytest.fixture
def make_agent(tmp_path: Path, token: softhsm.SoftHsm, programs: list[spire.Program]) -> MakeAgent:
    def make(
        server: spire.Server, *, token_value: str = "", name: str = "agent", key_manager: str = "", settings: str = ""
    ) -> spire.Agent:
        made = spire.Agent(
            tmp_path / name,
            server,
            token=token_value,
            key_manager=key_manager,
            settings=settings,
            environment={"SOFTHSM2_CONF": str(token.configuration)},
        )
        programs.append(made.run)
        return made

    return make
