"""Envoy's secrets from the agent as a process: its settings and flags, its metrics, and a server that goes away."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.simulators import envoy as sds
from tests.simulators.spire import Agent, Program, Server, eventually, free_port
from transport.client import Channel
from transport.status import Code, RpcError

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
T = TypeVar("T")


@pytest.fixture
def server(tmp_path: Path, programs: list[Program]) -> Server:
    keys = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{tmp_path}/keys.json" }} }}'
    made = Server(tmp_path / "server", key_manager=keys)
    programs.append(made.run)
    made.start()
    made.create_entry(NODE, WORKLOAD)
    return made


def started(server: Server, programs: list[Program], *flags: str, settings: str = "", blocks: str = "") -> Agent:
    folder = server.folder.parent / "agent"
    made = Agent(folder, server, token=server.join_token(NODE), settings=settings, blocks=blocks)
    made.run.command = [*made.run.command, *flags]
    programs.append(made.run)
    made.start()
    made.fetch()
    return made


def ask(agent: Agent, question: Callable[[Channel], Awaitable[T]]) -> T:
    async def asked() -> T:
        channel = Channel.unix(agent.socket)
        try:
            return await question(channel)
        finally:
            await channel.close()

    return asyncio.run(asked())


def test_names_are_the_operator_s_and_calls_are_counted(server: Server, programs: list[Program]) -> None:
    port = free_port()
    agent = started(
        server,
        programs,
        settings="""sds {
            default_svid_name = "mine"
            default_bundle_name = "ours"
            disable_spiffe_cert_validation = true
        }""",
        blocks=f'telemetry {{ Prometheus {{ host = "127.0.0.1" port = {port} }} }}',
    )

    async def question(channel: Channel) -> dict[str, sds.Secret]:
        async with sds.secret_stream(channel) as stream:
            await stream.ask("mine")
            assert list(await stream.secrets()) == ["mine"]
        return await sds.fetch(channel, "mine", "ours")

    secrets = ask(agent, question)
    assert list(secrets) == ["ours", "mine"]
    assert sds.root_ca(secrets["ours"]) == server.bundle().encode()

    def scraped() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    eventually(lambda: "spire_agent_rpc_sds_v3_stream_secrets{" in scraped(), "a counted stream")
    metrics = scraped()
    assert "spire_agent_rpc_sds_v3_fetch_secrets{" in metrics
    assert "spire_agent_sds_api_connection{" in metrics
    eventually(lambda: _value(scraped(), "spire_agent_sds_api_connections{") == 0, "no stream to be left")
    assert 'apis="Workload and SDS APIs"' in agent.run.output()


def _value(metrics: str, beginning: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(beginning))


@pytest.mark.parametrize(("flags", "settings"), [(("-disableSDSAPI",), ""), ((), "disable_sds_api = true")])
def test_it_can_be_turned_off(server: Server, programs: list[Program], flags: tuple[str, ...], settings: str) -> None:
    agent = started(server, programs, *flags, settings=settings)
    with pytest.raises(RpcError) as caught:
        ask(agent, sds.fetch)
    assert caught.value.code is Code.UNIMPLEMENTED
    assert caught.value.message == "unknown service envoy.service.secret.v3.SecretDiscoveryService"
    assert 'apis="Workload API"' in agent.run.output()


def test_streams_outlive_the_server(server: Server, programs: list[Program]) -> None:
    agent = started(server, programs)

    async def question(channel: Channel) -> None:
        async with sds.secret_stream(channel) as stream:
            await stream.ask("default")
            await stream.next()
            await asyncio.to_thread(server.run.end)
            await stream.ask("default", "ROOTCA")
            assert list(await stream.secrets()) == ["ROOTCA", "default"]
        assert list(await sds.fetch(channel, "ALL")) == ["ALL"]
        await asyncio.to_thread(server.start)
        async with sds.secret_stream(channel) as stream:
            await stream.ask(f"{WORKLOAD}2", nonce="")
            with pytest.raises(RpcError, match="not authorized"):
                await stream.next()
        async with sds.secret_stream(channel) as stream:
            await stream.ask()
            assert len(await stream.secrets()) == 2
            await stream.ask()
            await asyncio.to_thread(server.create_entry, NODE, f"{WORKLOAD}2")
            assert len(await stream.secrets()) == 3

    ask(agent, question)
