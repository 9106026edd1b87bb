"""The Keys service on the agent's admin socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.admin import serve_admin
from agent.workload_attestation import WorkloadAttestation
from generated.spire.keys.v1 import keys_pb2 as api
from plugins.keymanager import KeyType
from tests.simulators.house import refused
from tests.simulators.in_process_agent import RunningAgent
from transport.client import Channel
from transport.status import Code

KEYS = "/spire.keys.v1.Keys/"


@pytest.fixture
async def admin(agent: RunningAgent, tmp_path: Path) -> AsyncIterator[Channel]:
    path = str(tmp_path / "admin.sock")
    server = await serve_admin(path, agent.managing, WorkloadAttestation([agent.attestor]), key_manager="memory")
    async with Channel.unix(path) as channel:
        yield channel
    await server.drain(0)


async def test_the_agents_key_is_that_of_its_svid(admin: Channel, agent: RunningAgent) -> None:
    found = await admin.unary(KEYS + "ListKeys", api.ListKeysRequest(), api.ListKeysResponse)
    assert found.key_manager == "memory"
    [key] = found.keys
    svid = agent.managing.svid
    assert (key.id, key.public_key) == (svid.key.id, svid.key.public_key)
    assert key.used_by == [api.Use(purpose="agent SVID", status="active", name=str(svid.spiffe_id))]
    proven = await admin.unary(KEYS + "VerifyKeys", api.VerifyKeysRequest(), api.VerifyKeysResponse)
    [proof] = proven.proofs
    assert {check.name: check.passed for check in proof.checks} == {
        "public key": True,
        "possession": True,
        "non-exportability": False,
    }


async def test_a_key_with_an_id_is_the_agents_own_business(admin: Channel, agent: RunningAgent) -> None:
    own = agent.managing.svid.key.id
    error = await refused(admin, KEYS + "DisposeKey", api.DisposeKeyRequest(id=own))
    assert (error.code, f"key '{own}' is in use, by the active agent SVID" in error.message) == (
        Code.PERMISSION_DENIED,
        True,
    )
    await agent.managing.keys.generate("agent-svid-C", KeyType.EC_P256)
    error = await refused(admin, KEYS + "DisposeKey", api.DisposeKeyRequest(id="agent-svid-C"))
    assert error.code is Code.PERMISSION_DENIED
    assert "has its name still" in error.message


async def test_workloads_have_none_of_it(agent: RunningAgent) -> None:
    for method, request in (("ListKeys", api.ListKeysRequest()), ("DisposeKey", api.DisposeKeyRequest(id="a"))):
        assert (await refused(agent.channel, KEYS + method, request)).code is Code.UNIMPLEMENTED
