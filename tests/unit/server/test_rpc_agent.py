"""spire.api.server.agent.v1.Agent through a running server."""

from __future__ import annotations

import time

import pytest
from google.protobuf import any_pb2, empty_pb2

from generated.spire.api.server.agent.v1 import agent_pb2 as api
from generated.spire.api.types import agent_pb2, status_pb2
from identity import der
from tests.simulators.house import AGENT, AgentClient, House, attest, csr, refused, spiffe_id
from tests.simulators.pki import ec_key
from transport.status import Code, RpcError

Reason = status_pb2.PermissionDeniedDetails
TD = "spiffe://example.org"
TRUST = 'trust domain "example.org"'


def reason_of(error: RpcError) -> int:
    assert error.code is Code.PERMISSION_DENIED
    assert error.message.startswith("authorization denied for method /")
    [packed] = error.details
    assert isinstance(packed, any_pb2.Any)
    details = status_pb2.PermissionDeniedDetails()
    assert packed.Unpack(details)
    return details.reason


async def denied(agent: AgentClient) -> int:
    """Why the agent may not call any more."""
    return reason_of(await refused(agent.channel, AGENT + "PostStatus", api.PostStatusRequest()))


async def allowed(agent: AgentClient) -> None:
    await agent.channel.unary(AGENT + "PostStatus", api.PostStatusRequest(), api.PostStatusResponse)


async def get(house: House, agent: AgentClient) -> agent_pb2.Agent:
    return await house.local.unary(AGENT + "GetAgent", api.GetAgentRequest(id=agent.id), agent_pb2.Agent)


async def test_a_join_token_makes_an_agent_once(house: House) -> None:
    token = await house.join_token()
    agent = await house.attest(token)
    assert agent.id == spiffe_id(f"/spire/agent/join_token/{token}")
    await allowed(agent)

    shown = await get(house, agent)
    assert shown.attestation_type == "join_token"
    assert shown.x509svid_serial_number == str(der.certificate(agent.svid.cert_chain[0]).serial_number)
    assert shown.x509svid_expires_at == agent.svid.expires_at
    assert not shown.banned
    assert not shown.can_reattest

    with pytest.raises(RpcError) as used:
        await house.attest(token)
    assert used.value.code is Code.INVALID_ARGUMENT
    assert used.value.message == "failed to attest: join token does not exist or has already been used"


async def test_an_expired_join_token(house: House) -> None:
    token = await house.join_token(ttl=1)
    end = time.time() + 2
    while time.time() < end:
        await house.bundle()
    for message in ("join token expired", "failed to attest: join token does not exist or has already been used"):
        with pytest.raises(RpcError) as error:
            await house.attest(token)
        assert (error.value.code, error.value.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(
    ("ttl", "token", "agent", "message"),
    [
        (0, "", None, "ttl is required, you must provide one"),
        (1, "", "/spire/agent/x", (f'invalid agent ID: "{TD}/spire/agent/x" is not a workload in {TRUST}; '
         "path is in the reserved namespace")),
        (1, "a/../b", None, "failed to create join token ID: path cannot contain dot segments"),
    ],
)  # fmt: skip
async def test_join_tokens_that_are_not_made(
    house: House, ttl: int, token: str, agent: str | None, message: str
) -> None:
    request = api.CreateJoinTokenRequest(ttl=ttl, token=token)
    if agent is not None:
        request.agent_id.CopyFrom(spiffe_id(agent))
    error = await refused(house.local, AGENT + "CreateJoinToken", request)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


async def test_a_join_token_with_an_agent_id_makes_an_alias(house: House) -> None:
    agent = await house.attest(await house.join_token(alias="/node"))
    [alias] = await agent.entries()
    assert alias.spiffe_id == spiffe_id("/node")
    assert alias.parent_id == agent.id


async def test_a_token_cannot_be_made_twice(house: House) -> None:
    assert await house.join_token(token="mine") == "mine"
    request = api.CreateJoinTokenRequest(ttl=1, token="mine")
    error = await refused(house.local, AGENT + "CreateJoinToken", request)
    assert error.code is Code.INTERNAL
    assert error.message.startswith("failed to create token: ")


@pytest.mark.parametrize(
    ("kind", "payload", "request_", "code", "message"),
    [
        ("", b"x", b"x", Code.INVALID_ARGUMENT, "malformed param: missing attestation data type"),
        ("join_token", b"", b"x", Code.INVALID_ARGUMENT, "malformed param: missing attestation data payload"),
        ("join_token", b"x", b"", Code.INVALID_ARGUMENT, "malformed param: missing CSR"),
        ("tpm9", b"x", b"x", Code.FAILED_PRECONDITION,
         'error getting node attestor: could not find node attestor type "tpm9"'),
    ],
)  # fmt: skip
async def test_attestations_that_are_refused(
    house: House, kind: str, payload: bytes, request_: bytes, code: Code, message: str
) -> None:
    with pytest.raises(RpcError) as error:
        await attest(await house.remote(), kind, payload, request_)
    assert (error.value.code, error.value.message) == (code, message)


async def test_an_attestation_without_a_request(house: House) -> None:
    channel = await house.remote()
    async with channel.bidi(AGENT + "AttestAgent", api.AttestAgentResponse) as stream:
        await stream.close_send()
        with pytest.raises(RpcError, match="failed to receive request from stream: EOF"):
            await stream.recv()


async def test_an_old_svid_is_good_until_the_new_one_is_used(house: House) -> None:
    agent = await house.attest()
    renewed = await agent.renew()
    await allowed(agent)
    await allowed(renewed)
    assert await denied(agent) == Reason.AGENT_NOT_ACTIVE
    await allowed(renewed)
    shown = await get(house, renewed)
    assert shown.x509svid_serial_number == str(der.certificate(renewed.svid.cert_chain[0]).serial_number)


async def test_a_renewal_without_a_signing_request(house: House) -> None:
    agent = await house.attest()
    for request, message in (
        (api.RenewAgentRequest(), "params cannot be nil"),
        (api.RenewAgentRequest(params=api.AgentX509SVIDParams()), "missing CSR"),
    ):
        error = await refused(agent.channel, AGENT + "RenewAgent", request)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


async def test_a_banned_agent_stays_out(house: House) -> None:
    token = await house.join_token()
    agent = await house.attest(token)
    await house.local.unary(AGENT + "BanAgent", api.BanAgentRequest(id=agent.id), empty_pb2.Empty)
    assert await denied(agent) == Reason.AGENT_BANNED
    shown = await get(house, agent)
    assert shown.banned
    assert shown.x509svid_serial_number == ""
    assert shown.x509svid_expires_at == agent.svid.expires_at

    await house.join_token(token=token)
    with pytest.raises(RpcError, match="failed to attest: agent is banned"):
        await house.attest(token)


async def test_an_evicted_agent_is_not_attested(house: House) -> None:
    agent = await house.attest()
    await allowed(agent)
    await house.local.unary(AGENT + "DeleteAgent", api.DeleteAgentRequest(id=agent.id), empty_pb2.Empty)
    assert await denied(agent) == Reason.AGENT_NOT_ATTESTED
    for method, request in (
        ("DeleteAgent", api.DeleteAgentRequest(id=agent.id)),
        ("BanAgent", api.BanAgentRequest(id=agent.id)),
        ("GetAgent", api.GetAgentRequest(id=agent.id)),
    ):
        error = await refused(house.local, AGENT + method, request)
        assert (error.code, error.message) == (Code.NOT_FOUND, "agent not found")


async def test_a_status_brings_the_version(house: House) -> None:
    agent = await house.attest()
    request = api.PostStatusRequest(agent_version="1.16.0")
    await agent.channel.unary(AGENT + "PostStatus", request, api.PostStatusResponse)
    assert (await get(house, agent)).agent_version == "1.16.0"
    error = await refused(agent.channel, AGENT + "PostStatus", api.PostStatusRequest(agent_version="x" * 256))
    assert error.message == "agent version is too long (max 255 characters)"


async def test_agents_are_listed_and_counted(house: House) -> None:
    agents = [await house.attest() for _ in range(3)]
    await house.local.unary(AGENT + "BanAgent", api.BanAgentRequest(id=agents[0].id), empty_pb2.Empty)

    async def listed(**request: object) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            message = api.ListAgentsRequest(page_size=2, page_token=token, **request)  # type: ignore[arg-type]
            page = await house.local.unary(AGENT + "ListAgents", message, api.ListAgentsResponse)
            found += [each.id.path for each in page.agents]
            token = page.next_page_token
            if not token:
                return found

    paths = [agent.id.path for agent in agents]
    assert await listed() == paths
    assert await listed(filter={"by_banned": {"value": True}}) == paths[:1]
    assert await listed(filter={"by_banned": {"value": False}}) == paths[1:]
    assert await listed(filter={"by_attestation_type": "tpm"}) == []
    assert await listed(filter={"by_expires_before": "2001-01-01 00:00:00 +0000 +00"}) == []
    count = api.CountAgentsRequest()
    count.filter.by_can_reattest.value = False
    assert (await house.local.unary(AGENT + "CountAgents", count, api.CountAgentsResponse)).count == 3

    masked = api.ListAgentsRequest(output_mask=agent_pb2.AgentMask(banned=True))
    first = (await house.local.unary(AGENT + "ListAgents", masked, api.ListAgentsResponse)).agents[0]
    assert first == agent_pb2.Agent(id=agents[0].id, banned=True)


async def test_filters_that_cannot_be_read(house: House) -> None:
    for filter, message in (
        ({"by_selector_match": {"selectors": [{"type": "", "value": "x"}]}},
         "failed to parse selectors: missing selector type"),
        ({"by_expires_before": "soon"}, "failed to parse the time of expiry: "),
    ):  # fmt: skip
        request = api.ListAgentsRequest(filter=filter)  # type: ignore[arg-type]
        error = await refused(house.local, AGENT + "ListAgents", request)
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message.startswith(message)


async def test_ids_that_are_no_agents(house: House) -> None:
    for request, message in (
        (api.GetAgentRequest(), "invalid agent ID: request must specify SPIFFE ID"),
        (api.GetAgentRequest(id=spiffe_id("/web")), (f'invalid agent ID: "{TD}/web" is not an agent in {TRUST}; '
         "path is not in the agent namespace")),
    ):  # fmt: skip
        error = await refused(house.local, AGENT + "GetAgent", request)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


async def test_two_agents_may_have_one_key(house: House) -> None:
    key = ec_key()
    channel = await house.remote()
    for _ in range(2):
        token = await house.join_token()
        response = await attest(channel, "join_token", token.encode(), csr(key))
        await allowed(await house.as_agent(response.result.svid, key))
