"""DeltaSecrets of a whole agent: the incremental variant, which tells of what has changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from generated.envoy.config.core.v3 import base_pb2
from generated.envoy.service.discovery.v3 import discovery_pb2
from generated.google.rpc import status_pb2
from tests.simulators import envoy as sds
from tests.simulators.in_process_agent import Home, RunningAgent, until
from transport.client_stream import Bidi
from transport.status import Code, RpcError

OWN = "spiffe://example.org"
ID = f"{OWN}/workload"


@dataclass
class Stream:
    agent: RunningAgent
    stream: Bidi[sds.DeltaResponse]
    nonce: str = ""

    async def ask(
        self,
        subscribe: Sequence[str] = (),
        unsubscribe: Sequence[str] = (),
        *,
        known: Mapping[str, str] | None = None,
        node: base_pb2.Node | None = None,
        error: str = "",
    ) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            node=node,
            type_url=sds.TYPE,
            resource_names_subscribe=subscribe,
            resource_names_unsubscribe=unsubscribe,
            initial_resource_versions=known,
            response_nonce=self.nonce,
            error_detail=status_pb2.Status(code=Code.INTERNAL, message=error) if error else None,
        )
        await self.stream.send(request)

    async def next(self) -> sds.DeltaResponse:
        async with asyncio.timeout(sds.PATIENCE):
            response = await self.stream.recv()
        assert response is not None
        assert response.type_url == sds.TYPE
        for each in response.resources:
            assert each.resource.type_url == sds.TYPE
            assert sds.Secret.FromString(each.resource.value).name == each.name
        self.nonce = response.nonce
        return response

    async def told(self) -> tuple[list[str], list[str]]:
        """Names that came, and names that went."""
        response = await self.next()
        await self.ask()
        return [each.name for each in response.resources], list(response.removed_resources)

    async def quiet(self) -> None:
        assert await sds.nothing_came(self.agent, self.stream)


@asynccontextmanager
async def opened(agent: RunningAgent) -> AsyncGenerator[Stream, None]:
    async with agent.channel.bidi(sds.SDS + "DeltaSecrets", sds.DeltaResponse) as stream:
        yield Stream(agent, stream)


async def test_only_what_changes_is_sent(agent: RunningAgent, home: Home) -> None:
    async with opened(agent) as stream:
        await stream.ask(["default", "ROOTCA"])
        assert await stream.told() == (["ROOTCA", "default"], [])
        await stream.quiet()
        agent.managing.cache.renew_now(["a"])
        assert await stream.told() == (["default"], [])
        home.server.federated["other.org"] = home.server.bundle()
        home.server.add_entry("b", "/second")
        await until(lambda: agent.managing.cache.svid_count == 2)
        await stream.quiet()


async def test_names_come_and_go(agent: RunningAgent) -> None:
    async with opened(agent) as stream:
        await stream.ask(["default"])
        assert await stream.told() == (["default"], [])
        await stream.ask(["ROOTCA", "ALL"], ["default"])
        assert await stream.told() == (["ALL", "ROOTCA"], [])
        agent.managing.cache.renew_now(["a"])
        await stream.quiet()
        # Asked for anew, it is sent anew, even if the client has it.
        await stream.ask(["ROOTCA"])
        assert await stream.told() == (["ROOTCA"], [])


async def test_what_is_not_there_yet_comes_when_it_is(agent: RunningAgent, home: Home) -> None:
    second = f"{OWN}/second"
    async with opened(agent) as stream:
        await stream.ask(["ROOTCA", second])
        assert await stream.told() == (["ROOTCA"], [second])
        await stream.quiet()
        home.server.add_entry("b", "/second")
        assert await stream.told() == ([second], [])
        del home.server.entries["b"]
        assert await stream.told() == ([], [second])


@pytest.mark.parametrize("names", [(), ("*",)])
async def test_a_client_may_want_all(agent: RunningAgent, home: Home, names: Sequence[str]) -> None:
    async with opened(agent) as stream:
        await stream.ask(names)
        assert await stream.told() == ([OWN, ID], [])
        home.server.add_entry("b", "/second")
        assert await stream.told() == ([f"{OWN}/second"], [])
        await stream.ask(["default"])
        assert await stream.told() == (["default"], [])
        await stream.ask([], ["*"])
        assert await stream.told() == ([], [OWN, f"{OWN}/second", ID])
        agent.managing.cache.renew_now(["b"])
        await stream.quiet()


async def test_a_client_that_comes_back_is_told_the_difference(agent: RunningAgent) -> None:
    async with opened(agent) as stream:
        await stream.ask(["default", "ROOTCA"])
        known = {each.name: each.version for each in (await stream.next()).resources}
    async with opened(agent) as stream:
        await stream.ask(["default", "ROOTCA"], known=known)
        await stream.quiet()
    async with opened(agent) as stream:
        await stream.ask(["default", "ROOTCA", "gone"], known={**known, "default": "older" * 100, "gone": "1", "x": ""})
        assert await stream.told() == (["default"], ["gone"])


async def test_a_nack_is_told_once_and_waits_for_a_change(
    agent: RunningAgent, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(agent) as stream:
        await stream.ask(["default"])
        await stream.next()
        for _ in range(100):
            await stream.ask(error="no good")
        await stream.quiet()
        assert caplog.messages.count("Envoy reported errors applying secrets") == 1
        agent.managing.cache.renew_now(["a"])
        assert await stream.told() == (["default"], [])


async def test_an_old_envoy_gets_a_root_ca(agent: RunningAgent) -> None:
    async with opened(agent) as stream:
        await stream.ask(["ROOTCA"], node=sds.envoy((1, 17)))
        (resource,) = (await stream.next()).resources
        sds.root_ca(sds.Secret.FromString(resource.resource.value))
        await stream.ask(["ALL"])
        with pytest.raises(RpcError, match="SPIFFE validator") as caught:
            await stream.next()
        assert caught.value.code is Code.INTERNAL


async def test_a_stream_asks_for_so_many_names_and_no_more(agent: RunningAgent) -> None:
    async with opened(agent) as stream:
        for start in range(0, 1000, 100):
            await stream.ask([f"{number}" for number in range(start, start + 100)])
            assert len((await stream.next()).removed_resources) == 100
        await stream.ask(["one more"])
        with pytest.raises(RpcError, match="a stream may ask for 1000 names") as caught:
            await stream.next()
        assert caught.value.code is Code.INVALID_ARGUMENT
