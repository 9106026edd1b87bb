"""The OIDC attestor as a plugin: its configuration, its calls."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from attestors.oidc.served import OidcPlugin
from generated.spire.plugin.agent.workloadattestor.v1 import workloadattestor_pb2 as api
from generated.spire.service.common.config.v1 import config_pb2
from operations.errors import ConfigurationError, TemporarilyUnavailable
from tests.simulators.oidc_issuer import OidcIssuer
from transport.peer import Peer
from transport.status import Code, RpcError

NOBODY: Any = Peer("test"), None
SERVICES = ["spire.plugin.agent.workloadattestor.v1.WorkloadAttestor", "spire.service.common.config.v1.Config"]
GONE = 1 << 22


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[OidcIssuer]:
    with OidcIssuer(tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def plugin() -> AsyncIterator[OidcPlugin]:
    made = OidcPlugin()
    yield made
    await made.close()


def settings(issuer: OidcIssuer, path: Path) -> str:
    block = f'issuers "{issuer.url}" {{ audiences = ["spire"]\n ca_path = "{issuer.ca.file}" }}'
    return f'token_path = "{path}"\n{block}'


async def configure(plugin: OidcPlugin, text: str) -> None:
    core = config_pb2.CoreConfiguration(trust_domain="example.org")
    request = config_pb2.ConfigureRequest(core_configuration=core, hcl_configuration=text)
    await plugin.configure(request, *NOBODY)


async def attest(plugin: OidcPlugin, pid: int) -> list[str]:
    return list((await plugin.attest(api.AttestRequest(pid=pid), *NOBODY)).selector_values)


async def test_processes_by_their_pid(plugin: OidcPlugin, issuer: OidcIssuer, tmp_path: Path) -> None:
    assert list(plugin.introduce(["anything"])) == SERVICES
    assert [service.full_name for service, _ in plugin.services()] == SERVICES
    with pytest.raises(RpcError) as error:
        await attest(plugin, os.getpid())
    assert error.value.code is Code.FAILED_PRECONDITION
    token = tmp_path / "token"
    await configure(plugin, settings(issuer, token))
    assert await attest(plugin, os.getpid()) == []
    token.write_text(issuer.token())
    assert await attest(plugin, os.getpid()) == [f"iss:{issuer.url}", "sub:job-1", "aud:spire"]
    assert await attest(plugin, GONE) == []


async def test_configurations_that_cannot_be_used(plugin: OidcPlugin, issuer: OidcIssuer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(issuer.token())
    await configure(plugin, settings(issuer, token))
    for text, words in (
        ("token_pth = 1\n issuer = 2", "unknown key"),
        ("", "no issuer is configured"),
        (settings(issuer, token).replace(str(issuer.ca.file), "/nonexistent"), "ca_path"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            await configure(plugin, text)
        answer = await plugin.validate(config_pb2.ValidateRequest(hcl_configuration=text), *NOBODY)
        assert not answer.valid
        assert words in answer.notes[0]
    assert await attest(plugin, os.getpid())  # by what was in force
    good = await plugin.validate(config_pb2.ValidateRequest(hcl_configuration=settings(issuer, token)), *NOBODY)
    assert good.valid
    await plugin.close()
    with pytest.raises(RpcError):
        await attest(plugin, os.getpid())


async def test_an_issuer_that_is_away(plugin: OidcPlugin, issuer: OidcIssuer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(issuer.token())
    issuer.documents["/.well-known/openid-configuration"] = b"{}"
    await configure(plugin, settings(issuer, token))
    with pytest.raises(TemporarilyUnavailable):
        await attest(plugin, os.getpid())
