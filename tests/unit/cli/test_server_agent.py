"""`spire-server agent …`: what is asked of the server, and the whole output."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.types import agent_pb2 as types
from generated.spire.api.types import selector_pb2, spiffeid_pb2
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

AGENT_ID = spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/spire/agent/join_token/1")
ID = "spiffe://example.org/spire/agent/join_token/1"
AGENT = types.Agent(
    id=AGENT_ID,
    attestation_type="join_token",
    x509svid_serial_number="42",
    x509svid_expires_at=1900000000,
    can_reattest=True,
    agent_version="1.16.0",
    selectors=[selector_pb2.Selector(type="a", value="b:c")],
)
TEXT = f"""\
SPIFFE ID         : {ID}
Attestation type  : join_token
Expiration time   : 2030-03-17 17:46:40 +0000 UTC
Serial number     : 42
Can re-attest     : true
Agent version     : 1.16.0

"""
BANNED = types.Agent(id=AGENT_ID, attestation_type="x509pop", x509svid_expires_at=1900000000, banned=True)
BANNED_TEXT = f"""\
SPIFFE ID         : {ID}
Attestation type  : x509pop
Expiration time   : 2030-03-17 17:46:40 +0000 UTC
Banned            : true
Can re-attest     : false

"""


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expiration times of agents are shown in the machine's zone."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


async def test_list_asks_page_after_page(spire_server: Run, canned: Canned) -> None:
    def page(request: Message) -> Message:
        assert isinstance(request, agent_pb2.ListAgentsRequest)
        assert request.page_size == 1000
        if not request.page_token:
            return agent_pb2.ListAgentsResponse(agents=[AGENT], next_page_token="more")
        return agent_pb2.ListAgentsResponse(agents=[BANNED])

    canned.answers["ListAgents"] = page
    result = await spire_server("agent list")
    assert (result.out, result.err, result.status) == (f"Found 2 attested agents:\n\n{TEXT}{BANNED_TEXT}", "", 0)


async def test_an_empty_list_says_so(spire_server: Run, canned: Canned) -> None:
    canned.answers["ListAgents"] = agent_pb2.ListAgentsResponse()
    assert (await spire_server("agent list")).out == "No attested agents found\n"
    assert (await spire_server("agent list", "-output", "json")).out == '{"agents":[],"next_page_token":""}\n'


async def test_list_as_json(spire_server: Run, canned: Canned) -> None:
    canned.answers["ListAgents"] = agent_pb2.ListAgentsResponse(agents=[AGENT])
    result = await spire_server("agent list", "-output", "json")
    assert result.out == (
        '{"agents":[{"agent_version":"1.16.0","attestation_type":"join_token","banned":false,"can_reattest":true,'
        '"id":{"path":"/spire/agent/join_token/1","trust_domain":"example.org"},"selectors":[{"type":"a","value":'
        '"b:c"}],"x509svid_expires_at":"1900000000","x509svid_serial_number":"42"}],"next_page_token":""}\n'
    )


@pytest.mark.parametrize("command", ["list", "count"])
async def test_filters(spire_server: Run, canned: Canned, command: str) -> None:
    canned.answers["ListAgents"] = agent_pb2.ListAgentsResponse(agents=[AGENT])
    canned.answers["CountAgents"] = agent_pb2.CountAgentsResponse(count=1)
    before = "2026-11-22 06:43:42 +0000 +00"
    result = await spire_server(
        f"agent {command}", "-selector", "a:b", "-matchSelectorsOn", "any", "-attestationType", "join_token",
        "-canReattest", "true", "-banned", "false", "-expiresBefore", before,
    )  # fmt: skip
    assert (result.err, result.status) == ("", 0)
    (request,) = canned.requests
    assert isinstance(request, agent_pb2.ListAgentsRequest | agent_pb2.CountAgentsRequest)
    wanted = agent_pb2.ListAgentsRequest.Filter(by_attestation_type="join_token", by_expires_before=before)
    wanted.by_selector_match.selectors.add(type="a", value="b")
    wanted.by_selector_match.match = wanted.by_selector_match.MATCH_ANY
    wanted.by_can_reattest.value = True
    wanted.by_banned.value = False
    assert request.filter.SerializeToString() == wanted.SerializeToString()


async def test_another_value_of_a_filter_is_no_filter(spire_server: Run, canned: Canned) -> None:
    canned.answers["CountAgents"] = agent_pb2.CountAgentsResponse(count=2)
    result = await spire_server("agent count", "-banned", "all", "-canReattest", "yes")
    assert (result.out, result.status) == ("2 attested agents\n", 0)
    assert canned.requests == [agent_pb2.CountAgentsRequest(filter=agent_pb2.CountAgentsRequest.Filter())]


async def test_count(spire_server: Run, canned: Canned) -> None:
    canned.answers["CountAgents"] = agent_pb2.CountAgentsResponse(count=1)
    assert (await spire_server("agent count")).out == "1 attested agent\n"
    assert (await spire_server("agent count", "-output", "json")).out == '{"count":1}\n'


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("-selector", "a"), 'error parsing selector "a": selector "a" must be formatted as type:value'),
        (
            ("-selector", "a:b", "-matchSelectorsOn", "x"),
            "unsupported match behavior",
        ),
        (
            ("-expiresBefore", "tomorrow"),
            'date is not valid: "tomorrow" is not of the form "2026-11-22 06:43:42 +0000 +00"',
        ),
        (
            ("-expiresBefore", "2026-11-22 06:43:42 +0000"),
            'date is not valid: "2026-11-22 06:43:42 +0000" is not of the form "2026-11-22 06:43:42 +0000 +00"',
        ),
        ((), "rpc error: code = Internal desc = broken"),
    ],
)
async def test_list_fails_in_one_line(spire_server: Run, canned: Canned, args: tuple[str, ...], reason: str) -> None:
    canned.answers["ListAgents"] = RpcError(Code.INTERNAL, "broken")
    result = await spire_server("agent list", *args)
    assert (result.out, result.err, result.status) == ("", f"Error: {reason}\n", 1)


async def test_show(spire_server: Run, canned: Canned) -> None:
    canned.answers["GetAgent"] = AGENT
    result = await spire_server("agent show", "-spiffeID", ID)
    assert result.out == f"Found an attested agent given its SPIFFE ID\n\n{TEXT}Selectors         : a:b:c\n"
    assert canned.requests == [agent_pb2.GetAgentRequest(id=AGENT_ID)]


@pytest.mark.parametrize(
    ("command", "method", "request_type", "out"),
    [
        ("evict", "DeleteAgent", agent_pb2.DeleteAgentRequest, "Agent evicted successfully\n"),
        ("ban", "BanAgent", agent_pb2.BanAgentRequest, "Agent banned successfully\n"),
    ],
)
async def test_evict_and_ban(
    spire_server: Run,
    canned: Canned,
    command: str,
    method: str,
    request_type: type[agent_pb2.DeleteAgentRequest | agent_pb2.BanAgentRequest],
    out: str,
) -> None:
    canned.answers[method] = Empty()
    assert (await spire_server(f"agent {command}", "-spiffeID", ID)).out == out
    assert (await spire_server(f"agent {command}", "-spiffeID", ID, "-output", "json")).out == "{}\n"
    assert canned.requests == [request_type(id=AGENT_ID)] * 2


@pytest.mark.parametrize("command", ["show", "evict", "ban"])
async def test_an_id_is_needed(spire_server: Run, command: str) -> None:
    result = await spire_server(f"agent {command}")
    assert (result.out, result.err, result.status) == ("", "Error: a SPIFFE ID is required\n", 1)
    assert (await spire_server(f"agent {command}", "-spiffeID", "x")).err == "Error: scheme is missing or invalid\n"


def expiring(number: int, ago: timedelta) -> types.Agent:
    path = f"/spire/agent/x509pop/{number}"
    expires_at = int(time.time() - ago.total_seconds())
    return types.Agent(id=spiffeid_pb2.SPIFFEID(trust_domain="example.org", path=path), x509svid_expires_at=expires_at)


@pytest.fixture
def expired(canned: Canned) -> Canned:
    """Two agents that expired more than 30 days ago, one of which cannot be evicted, and one that has not."""
    agents = [expiring(1, timedelta(days=31)), expiring(2, timedelta(days=31)), expiring(3, timedelta(days=29))]
    canned.answers["ListAgents"] = agent_pb2.ListAgentsResponse(agents=agents)

    def delete(request: Message) -> Message:
        assert isinstance(request, agent_pb2.DeleteAgentRequest)
        if request.id.path.endswith("/2"):
            raise RpcError(Code.INTERNAL, "stuck")
        return Empty()

    canned.answers["DeleteAgent"] = delete
    return canned


PURGED = "SPIFFE ID         : spiffe://example.org/spire/agent/x509pop/"


async def test_purge(spire_server: Run, expired: Canned) -> None:
    result = await spire_server("agent purge")
    assert result.out == (
        f"Found 2 expired agents\n\nAgents purged:\n{PURGED}1\nAgents not purged:\n{PURGED}2\n"
        "Error             : rpc error: code = Internal desc = stuck\n"
    )
    assert (result.err, result.status) == ("", 0)
    wanted = agent_pb2.ListAgentsRequest(output_mask=types.AgentMask(x509svid_expires_at=True))
    wanted.filter.by_can_reattest.value = True
    assert expired.requests[0] == wanted
    assert len(expired.requests) == 3


async def test_purge_as_json(spire_server: Run, expired: Canned) -> None:
    result = await spire_server("agent purge", "-output", "json")
    assert result.out == (
        '{"expired_agents":[{"agent_id":"spiffe://example.org/spire/agent/x509pop/1","deleted":true},'
        '{"agent_id":"spiffe://example.org/spire/agent/x509pop/2","deleted":false,'
        '"error":"rpc error: code = Internal desc = stuck"}]}\n'
    )
    assert len(expired.requests) == 3


async def test_purge_on_trial_evicts_nobody(spire_server: Run, expired: Canned) -> None:
    result = await spire_server("agent purge", "-dryRun", "-expiredFor", "24h")
    assert result.out == f"Found 3 expired agents\n\n\nAgents that can be purged:\n{PURGED}1\n{PURGED}2\n{PURGED}3\n"
    assert len(expired.requests) == 1


async def test_purge_without_expired_agents(spire_server: Run, canned: Canned) -> None:
    canned.answers["ListAgents"] = agent_pb2.ListAgentsResponse(agents=[expiring(1, timedelta())])
    assert (await spire_server("agent purge")).out == "No agents to purge.\n"
    canned.answers["ListAgents"] = RpcError(Code.INTERNAL, "broken")
    result = await spire_server("agent purge")
    assert result.err == "Error: failed to list agents: rpc error: code = Internal desc = broken\n"
