"""StreamSecrets of a whole agent: versions, nonces, ACKs and NACKs, and what is sent when."""

from __future__ import annotations

import itertools

import pytest

from generated.envoy.service.discovery.v3 import discovery_pb2
from generated.spiffe.workload import workload_pb2
from tests.simulators import envoy as sds
from tests.simulators.in_process_agent import Home, RunningAgent
from transport.status import Code, RpcError

OWN = "spiffe://example.org"
ID = f"{OWN}/workload"


async def quiet(stream: sds.SecretStream, agent: RunningAgent) -> None:
    assert await sds.nothing_came(agent, stream.stream)


async def ended(stream: sds.SecretStream) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await stream.next()
    return caught.value


async def test_a_stream_begins_with_version_1_and_an_ack_is_not_answered(agent: RunningAgent) -> None:
    async with sds.secret_stream(agent.channel) as stream:
        await stream.ask("default")
        first = await stream.next()
        assert (first.version_info, first.type_url, len(first.nonce)) == ("1", sds.TYPE, 8)
        assert list(sds.secrets_of(first)) == ["default"]
        await stream.ask("default")
        await quiet(stream, agent)
        await stream.stream.close_send()
        assert await stream.stream.recv() is None


async def test_other_names_are_answered_at_once_by_the_same_version(agent: RunningAgent) -> None:
    async with sds.secret_stream(agent.channel) as stream:
        await stream.ask("default")
        first = await stream.next()
        await stream.ask("default", "ROOTCA")
        second = await stream.next()
        assert list(sds.secrets_of(second)) == ["ROOTCA", "default"]
        assert second.version_info == first.version_info
        assert second.nonce != first.nonce
        await stream.ask("ROOTCA")
        assert list(await stream.secrets()) == ["ROOTCA"]
        await stream.ask()
        assert list(await stream.secrets()) == [OWN, ID]
        await stream.ask("", "")
        await quiet(stream, agent)


async def test_a_new_svid_is_a_new_version(agent: RunningAgent) -> None:
    async with sds.secret_stream(agent.channel) as stream:
        await stream.ask("default")
        before = (await stream.secrets())["default"]
        await stream.ask("default")
        agent.managing.cache.renew_now(["a"])
        after = (await stream.secrets())["default"]
        assert stream.last.version_info == "2"
        assert sds.chain_and_key(after)[0] != sds.chain_and_key(before)[0]
        assert sds.chain_and_key(after)[1] != sds.chain_and_key(before)[1]


async def test_what_the_stream_has_not_asked_for_may_change_without_a_response(agent: RunningAgent, home: Home) -> None:
    async with sds.secret_stream(agent.channel) as bundle, sds.secret_stream(agent.channel) as everything:
        await bundle.ask("ROOTCA")
        await bundle.next()
        await bundle.ask("ROOTCA")
        await everything.ask()
        await everything.next()
        await everything.ask()
        agent.managing.cache.renew_now(["a"])
        await everything.next()
        await quiet(bundle, agent)
        # The update counts once it shows.
        home.server.rotate_authority()
        while len(sds.trust_domains((await bundle.secrets())["ROOTCA"])["example.org"].split(b"BEGIN")) != 3:
            await bundle.ask("ROOTCA")
        assert bundle.last.version_info == "2"


async def test_a_nack_is_told_once_and_waits_for_a_change(
    agent: RunningAgent, caplog: pytest.LogCaptureFixture
) -> None:
    async with sds.secret_stream(agent.channel) as stream:
        await stream.ask("default")
        await stream.next()
        for _ in range(1000):
            await stream.ask("default", error="no good" + "!" * 10_000)
        await quiet(stream, agent)
        lines = [each for each in caplog.records if each.message == "Envoy reported errors applying secrets"]
        assert len(lines) == 1
        assert vars(lines[0])["fields"]["resource_names"] == ["default"]
        assert len(vars(lines[0])["fields"]["error"]) < 1000
        assert caplog.messages.count("Client rejected expected version and rolled back") == 1
        agent.managing.cache.renew_now(["a"])
        await stream.next()
        assert stream.last.version_info == "2"
        # An ACK, after all.
        await stream.ask("default")
        await quiet(stream, agent)


async def test_a_nack_may_ask_for_other_names(agent: RunningAgent) -> None:
    async with sds.secret_stream(agent.channel) as stream:
        await stream.ask("default")
        await stream.next()
        await stream.ask("ROOTCA", error="no good")
        assert list(await stream.secrets()) == ["ROOTCA"]


async def test_a_request_about_another_response_is_passed_over(
    agent: RunningAgent, caplog: pytest.LogCaptureFixture
) -> None:
    async with sds.secret_stream(agent.channel) as stream:
        await stream.ask("default", nonce="of an earlier stream")
        await stream.next()
        for nonce in ("", "stale", "n" * 100_000):
            await stream.ask("ROOTCA", nonce=nonce)
        await quiet(stream, agent)
        assert caplog.messages.count("Received unexpected nonce; ignoring request") == 1
        await stream.ask("ROOTCA")
        assert list(await stream.secrets()) == ["ROOTCA"]


async def test_a_client_that_comes_back_may_tell_what_it_has(agent: RunningAgent) -> None:
    async with sds.secret_stream(agent.channel) as stream:
        stream.last = sds.Response(version_info="7")
        await stream.ask("default")
        assert (await stream.next()).version_info == "1"


async def test_the_node_is_told_once_for_the_whole_stream(agent: RunningAgent) -> None:
    async with sds.secret_stream(agent.channel, sds.envoy((1, 17))) as stream:
        await stream.ask("ROOTCA")
        sds.root_ca((await stream.secrets())["ROOTCA"])
        await stream.ask(OWN)
        sds.root_ca((await stream.secrets())[OWN])


async def test_requests_before_there_is_an_svid_are_answered_by_the_last_of_them(home: Home) -> None:
    home.server.refused_entries.add("a")
    home.server.add_entry("a")
    async with home.running() as agent, sds.secret_stream(agent.channel, sds.envoy((1, 17))) as stream:
        await stream.ask("default")
        await stream.ask("ROOTCA", "default")
        await quiet(stream, agent)
        home.server.refused_entries.clear()
        agent.managing.cache.renew_now(["a"])
        secrets = await stream.secrets()
        assert list(secrets) == ["ROOTCA", "default"]
        sds.root_ca(secrets["ROOTCA"])


async def test_a_stream_hears_of_new_entries_and_ends_with_what_it_asked_for(agent: RunningAgent, home: Home) -> None:
    async with sds.secret_stream(agent.channel) as named, sds.secret_stream(agent.channel) as everything:
        await named.ask("default")
        await named.next()
        await named.ask("default")
        await everything.ask()
        assert len(await everything.secrets()) == 2
        await everything.ask()
        home.server.add_entry("b", "/second")
        assert len(await everything.secrets()) == 3
        await everything.ask()
        home.server.entries.clear()
        while len(await everything.secrets()) != 1:
            await everything.ask()
        error = await ended(named)
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message == 'workload is not authorized for the requested identities ["default"]'


async def test_a_stream_that_asks_for_nothing_gets_nothing(agent: RunningAgent) -> None:
    async with sds.secret_stream(agent.channel) as stream:
        agent.managing.cache.renew_now(["a"])
        await quiet(stream, agent)


async def test_streams_of_the_same_workload_share_what_is_serialised(agent: RunningAgent) -> None:
    async with sds.secret_stream(agent.channel) as one, sds.secret_stream(agent.channel) as other:
        await one.ask("default")
        await other.ask("default")
        assert (await one.next()).resources == (await other.next()).resources
        assert one.last.nonce != other.last.nonce


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (discovery_pb2.DiscoveryRequest(resource_names=[""] * 1001), "a stream may ask for 1000 names"),
        (discovery_pb2.DiscoveryRequest(resource_names=["x" * 65_537]), "a stream may ask for 1000 names"),
        (discovery_pb2.DiscoveryRequest(type_url="x" * 1000), "type_url has 1000 characters: it names no type"),
    ],
)
async def test_a_request_without_measure_ends_its_stream_alone(
    agent: RunningAgent, request_: discovery_pb2.DiscoveryRequest, text: str
) -> None:
    async with sds.secret_stream(agent.channel) as other, sds.secret_stream(agent.channel) as stream:
        await other.ask("default")
        await other.next()
        await stream.stream.send(request_)
        error = await ended(stream)
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message.startswith(text)
        await other.ask("ROOTCA")
        await other.next()


async def test_a_request_that_is_large_is_refused_before_it_is_parsed(agent: RunningAgent) -> None:
    request = discovery_pb2.DiscoveryRequest(resource_names=[""] * 1_000_000)
    async with sds.secret_stream(agent.channel) as stream:
        await stream.stream.send(request)
        error = await ended(stream)
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert error.message == "grpc: received message larger than max (2000000 vs. 524288)"
    with pytest.raises(RpcError, match="larger than max"):
        await agent.channel.unary(sds.SDS + "FetchSecrets", request, sds.Response, timeout=sds.PATIENCE)


async def test_a_refusal_that_lists_many_names_still_arrives(agent: RunningAgent) -> None:
    async with sds.secret_stream(agent.channel) as stream:
        await stream.ask(*(f"{OWN}/{number:050}" for number in range(900)))
        error = await ended(stream)
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message.startswith("workload is not authorized for the requested identities")


async def test_garbage_is_no_request(agent: RunningAgent) -> None:
    async with agent.channel.bidi(sds.SDS + "StreamSecrets", sds.Response) as stream:
        # Its second field is no Node.
        await stream.send(workload_pb2.ValidateJWTSVIDRequest(svid="xyz"))
        with pytest.raises(RpcError) as caught:
            await stream.recv()
        assert caught.value.code is Code.INTERNAL
        assert "unmarshalling request" in caught.value.message


async def test_requests_without_end_about_what_is_never_read_cost_nothing_more(agent: RunningAgent) -> None:
    """A client that does not read does not know what to answer about, so it has one response on its way."""
    async with sds.secret_stream(agent.channel) as stream:
        for names in itertools.islice(itertools.cycle((["default"], ["ROOTCA"])), 20_000):
            await stream.stream.send(discovery_pb2.DiscoveryRequest(resource_names=names))
        await stream.next()
        await quiet(stream, agent)
