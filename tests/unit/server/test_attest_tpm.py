"""NodeAttestor "tpm" over the wire of a whole server: which key an SVID is for, and an agent that is evicted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf import any_pb2, empty_pb2

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.types import agent_pb2 as agent_pb2_types
from generated.spire.api.types import status_pb2
from identity import der
from tests.simulators.house import AGENT, PATIENCE, AgentClient, House, csr, refused, running, spiffe_id
from tests.simulators.pki import PrivateKey, ec_key
from tests.simulators.tpm_node import TpmNode
from transport.client import Bidi
from transport.status import Code, RpcError

Reason = status_pb2.PermissionDeniedDetails


@pytest.fixture
def node() -> TpmNode:
    return TpmNode(svid_key=ec_key()).started()


@pytest_asyncio.fixture
async def house(tmp_path: Path, node: TpmNode) -> AsyncIterator[House]:
    (tmp_path / "ek-hashes").write_text(f"{node.hash}\n")
    pcr4 = node.tpm.pcrs["sha256"][4].hex()
    (tmp_path / "policy.hcl").write_text(f'policy "golden" {{ pcr = {{ "4" = "{pcr4}" }} }}')
    data = f"""
      endorsement_hash_path = "{tmp_path}/ek-hashes"
      policy_path = "{tmp_path}/policy.hcl"
      evict_on_failure = true
    """
    async with running(tmp_path, plugins=f'NodeAttestor "tpm" {{ plugin_data {{ {data} }} }}') as made:
        yield made


async def attested(house: House, node: TpmNode, key: PrivateKey) -> AgentClient:
    """An attestation with a CSR for that key."""
    message = agent_pb2.AttestAgentRequest()
    message.params.data.type = "tpm"
    message.params.data.payload = node.payload
    message.params.params.csr = csr(key)
    channel = await house.remote()
    stream: Bidi[agent_pb2.AttestAgentResponse]
    node.asked.clear()
    async with channel.bidi(AGENT + "AttestAgent", agent_pb2.AttestAgentResponse, timeout=PATIENCE) as stream:
        await stream.send(message)
        while True:
            response = await stream.recv()
            assert response is not None
            if response.HasField("result"):
                assert response.result.reattestable
                return await house.as_agent(response.result.svid, key)
            answer = await node.respond(response.challenge)
            await stream.send(agent_pb2.AttestAgentRequest(challenge_response=answer))


def reason_of(error: RpcError) -> status_pb2.PermissionDeniedDetails.Reason.ValueType:
    found = status_pb2.PermissionDeniedDetails()
    (packed,) = error.details
    assert isinstance(packed, any_pb2.Any)
    assert packed.Unpack(found)
    return found.reason


async def test_an_svid_is_for_the_certified_key_alone(house: House, node: TpmNode) -> None:
    with pytest.raises(RpcError, match="the CSR is for another key than the attested one") as error:
        await attested(house, node, ec_key())
    assert error.value.code is Code.PERMISSION_DENIED
    assert node.svid_key is not None
    agent = await attested(house, node, node.svid_key)
    assert f"/spire/agent/tpm/{node.hash}" == agent.id.path
    assert der.certificate(agent.svid.cert_chain[0]).public_key() == node.svid_key.public_key()


async def test_a_renewal_is_a_new_attestation(house: House, node: TpmNode) -> None:
    assert node.svid_key is not None
    agent = await attested(house, node, node.svid_key)
    with pytest.raises(RpcError, match="agent must reattest instead of renew") as error:
        await agent.renew()
    assert reason_of(error.value) == Reason.AGENT_MUST_REATTEST
    again = await attested(house, node, node.svid_key)
    assert node.asked_for == [], "of the same boot nothing is sent twice"
    assert await again.entries() == []
    with pytest.raises(RpcError):
        await agent.entries()


async def test_failing_evidence_evicts_at_once(house: House, node: TpmNode) -> None:
    assert node.svid_key is not None
    agent = await attested(house, node, node.svid_key)
    assert await agent.entries() == []
    node.reboot(b"another loader")
    with pytest.raises(RpcError, match=r"nodeattestor\(tpm\): policy golden: PCR 4 is ") as error:
        await attested(house, node, node.svid_key)
    assert error.value.code is Code.PERMISSION_DENIED
    with pytest.raises(RpcError) as error:
        await agent.entries()
    assert reason_of(error.value) == Reason.AGENT_NOT_ACTIVE
    shown = await house.local.unary(
        AGENT + "GetAgent", agent_pb2.GetAgentRequest(id=spiffe_id(agent.id.path)), agent_pb2_types.Agent
    )
    assert shown.x509svid_serial_number == "0"
    assert not shown.banned
    node.reboot()
    back = await attested(house, node, node.svid_key)
    assert await back.entries() == []


async def test_a_banned_node_stays_banned(house: House, node: TpmNode) -> None:
    assert node.svid_key is not None
    agent = await attested(house, node, node.svid_key)
    await house.local.unary(AGENT + "BanAgent", agent_pb2.BanAgentRequest(id=agent.id), empty_pb2.Empty)
    node.reboot(b"another loader")
    with pytest.raises(RpcError):
        await attested(house, node, node.svid_key)
    node.reboot()
    with pytest.raises(RpcError, match="agent is banned"):
        await attested(house, node, node.svid_key)
    error = await refused(agent.channel, AGENT + "RenewAgent", agent_pb2.RenewAgentRequest())
    assert reason_of(error) == Reason.AGENT_BANNED
