"""The two halves of http_challenge together: configurations, verdicts, hosts that answer what they should not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.http_challenge import agent, messages, server
from identity.selectors import Selector
from operations import config, hcl, logs
from operations.errors import (
    ConfigurationError,
    InvalidArgument,
    PermanentlyUnusable,
    Refused,
    SpireError,
    TemporarilyUnavailable,
)
from operations.logs import Logger
from plugins.catalog import PluginContext
from plugins.nodeattestor import CLIENT_ADDRESS, Attestation, AttestedNode, Ending
from tests.simulators.ports import free_port
from tests.simulators.web_hosts import WebHost
from transport.http_client import Query, Service, asking

HOST = "127.0.0.1"
IT = f"spiffe://example.org/spire/agent/http_challenge/{HOST}"


@dataclass
class Nodes:
    attested: set[str] = field(default_factory=set[str])

    async def known(self, spiffe_id: str) -> bool:
        return spiffe_id in self.attested


@dataclass
class Context:
    node_records: Nodes = field(default_factory=Nodes)
    trust_domain: str = "example.org"
    log: Logger = field(default_factory=logs.get)


async def server_half(context: Context | None = None, **more: Any) -> server.HttpChallengeAttestor:
    return await server.load(server.Configuration(**more), context or Context())


@asynccontextmanager
async def attesting(**more: Any) -> AsyncGenerator[Attestation]:
    given_settings: dict[str, Any] = {"hostname": HOST, **more}
    configuration = agent.Configuration(**given_settings)
    attestation = await (await agent.load(configuration, PluginContext("example.org", None, logs.get()))).begin()
    assert isinstance(attestation, Ending)
    try:
        yield attestation
    finally:
        await attestation.close()


async def attest(verifying: server.HttpChallengeAttestor, **more: Any) -> AttestedNode:
    async with attesting(**more) as attestation:
        return await verifying.attest(attestation.payload, attestation.respond)


async def told(port: int, path: str) -> tuple[int, bytes]:
    async with asking(Service(HOST, port), Query(path)) as answer:
        return answer.status, await answer.body(1000)


async def test_a_host_is_attested_once() -> None:
    context = Context()
    verifying = await server_half(context)
    assert await attest(verifying) == AttestedNode(
        IT, (Selector("http_challenge", f"hostname:{HOST}"),), can_reattest=False
    )
    context.node_records.attested.add(IT)
    with pytest.raises(Refused, match="attestation data has already been used to attest an agent"):
        await attest(verifying)


async def test_hosts_that_are_known_by_a_port_of_root_attest_again() -> None:
    """What is checked of the port is what the agent says: its real one is another here, behind the same host."""
    context = Context(Nodes({IT}))
    port = free_port()
    verifying = await server_half(context, tofu=False, allow_non_root_ports=False)
    with pytest.raises(InvalidArgument, match=f"port {port} is not allowed to be >= 1024"):
        await attest(verifying, port=port)
    verifying = await server_half(context, tofu=False, required_port=80)
    with pytest.raises(InvalidArgument, match=f"port {port} is not allowed to be used by this server"):
        await attest(verifying, port=port)
    with pytest.raises(Refused, match="challenge verification failed: "):
        await attest(verifying, advertised_port=80)


async def test_what_the_agent_says_and_where_it_tells_it() -> None:
    port = free_port()
    path = "/.well-known/spiffe/nodeattestor/http_challenge/one/challenge"
    async with attesting(port=port, agentname="one", advertised_port=80) as attestation:
        assert attestation.payload == f'{{"hostname":"{HOST}","agentname":"one","port":80}}'.encode()
        assert (await told(port, path))[0] == 404
        assert await attestation.respond(b'{"nonce":"xyz"}') == b"\n"
        assert await told(port, f"{path}?query") == (200, b"xyz\n")
        assert (await told(port, path.replace("one", "two")))[0] == 404
    with pytest.raises(TemporarilyUnavailable, match="refused"):
        await told(port, path)


async def test_a_host_has_a_name_and_a_port_of_its_own() -> None:
    async with attesting(hostname="", agentname="") as attestation:
        said = json.loads(attestation.payload)
    assert (said["hostname"], said["agentname"]) == (socket.gethostname(), "default")
    assert said["port"] > 0


async def test_a_port_that_is_taken() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104 - as the agent does
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TemporarilyUnavailable, match=f"could not listen on port {port}: .*address already in use"):
            async with attesting(port=port):
                pass


@pytest.mark.parametrize("challenge", [b"", b"[]", b'{"nonce":1}'])
async def test_challenges_that_no_server_should_send(challenge: bytes) -> None:
    async with attesting() as attestation:
        with pytest.raises(InvalidArgument, match="unable to unmarshal challenge"):
            await attestation.respond(challenge)


def payload(**more: Any) -> bytes:
    return json.dumps({"hostname": HOST, "agentname": "default", "port": 8080, **more}).encode()


async def _no_challenge(challenge: bytes) -> bytes:
    raise AssertionError(challenge)


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"{", InvalidArgument, "failed to unmarshal data"),
        (payload(port="80"), InvalidArgument, "failed to unmarshal data"),
        (payload(agentname=""), InvalidArgument, "agent name is not valid"),
        (payload(agentname="a/../b"), InvalidArgument, "agent name is not valid"),
        (payload(agentname="a" * 33), InvalidArgument, "agent name is not valid"),
        (payload(agentname="a\n"), InvalidArgument, "agent name is not valid"),
        (payload(hostname="localhost"), Refused, "you can not use localhost as a hostname"),
        (payload(hostname="LocalHost."), Refused, "you can not use localhost as a hostname"),
        (payload(hostname=""), Refused, "challenge verification failed: hostname must be set"),
        (payload(port=0), Refused, "challenge verification failed: port is invalid"),
        (payload(port=-1), Refused, "challenge verification failed: port is invalid"),
        (payload(port=65536), Refused, "challenge verification failed: port is invalid"),
        (payload(hostname="a/b"), Refused, "hostname can not contain a slash"),
        (payload(hostname="a:1"), Refused, "hostname can not contain a colon"),
        (payload(hostname="a@b"), PermanentlyUnusable, "failed to make spiffe id: path segment characters"),
        (payload(hostname="a\r\nb"), PermanentlyUnusable, "failed to make spiffe id"),
        (payload(hostname=".."), PermanentlyUnusable, "failed to make spiffe id"),
    ],
)
async def test_hosts_that_are_not_asked(data: bytes, kind: type[SpireError], words: str) -> None:
    with pytest.raises(kind, match=words):
        await (await server_half()).attest(data, _no_challenge)


async def test_patterns_match_anywhere_in_a_name() -> None:
    verifying = await server_half(allowed_dns_patterns=(r"p[0-9]\.example\.com", "^127"))
    await attest(verifying)
    for name in ("p.example.com", "p1xexample.com", "128.0.0.1"):
        with pytest.raises(Refused, match="the requested hostname is not allowed to connect"):
            await verifying.attest(payload(hostname=name), _no_challenge)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (WebHost(), "expected nonce was not found in HTTP response"),
        (WebHost(b"", 404), "expected nonce was not found in HTTP response"),
        (WebHost(b"x" * 100_000), "sent more than 65536 bytes"),
        (WebHost(location="http://127.0.0.1:1/"), "http redirects are disabled"),
    ],
    ids=["another", "none", "huge", "elsewhere"],
)
async def test_hosts_that_answer_something_else(host: WebHost, words: str) -> None:
    with host, pytest.raises(Refused, match=f"challenge verification failed: .*{words}"):
        await attest(await server_half(), advertised_port=host.port)


async def test_a_nonce_with_more_before_or_after_it() -> None:
    """As Go reads it: white space around counts for nothing, and what stands behind 64 bytes is not looked at."""
    for before, after, good in (("\n ", "\r\n", True), ("", " " * 100 + "x", True), ("", "x", False), ("x", "", False)):
        with WebHost() as host:

            async def respond(
                challenge: bytes, host: WebHost = host, before: str = before, after: str = after
            ) -> bytes:
                nonce = messages.decode(messages.Challenge, challenge).nonce
                host.body = f"{before}{nonce}{after}".encode()
                return b"\n"

            attesting_it = (await server_half()).attest(payload(port=host.port), respond)
            if good:
                await attesting_it
            else:
                with pytest.raises(Refused, match="expected nonce was not found"):
                    await attesting_it


async def test_hosts_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    with closing(socket.create_server((HOST, 0))) as silent:  # connects, and is never accepted
        port = silent.getsockname()[1]
        with pytest.raises(Refused, match=rf"challenge verification failed: http://127.0.0.1:{port} gave no answer in"):
            await attest(await server_half(), advertised_port=port)
    with pytest.raises(Refused, match="challenge verification failed: cannot reach"):
        await attest(await server_half(), advertised_port=free_port())


async def test_a_caller_whose_hosts_do_not_answer_holds_up_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 20.0)
    verifying = await server_half()
    with closing(socket.create_server((HOST, 0))) as silent:
        port = silent.getsockname()[1]

        async def call(caller: str, said: bytes) -> AttestedNode:
            CLIENT_ADDRESS.set(caller)
            return await verifying.attest(said, _any_answer)

        waiting = [asyncio.create_task(call("192.0.2.1", payload(port=port))) for _ in range(20)]
        CLIENT_ADDRESS.set("192.0.2.2")
        await attest(verifying)
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def _any_answer(_challenge: bytes) -> bytes:
    return b"\n"


async def test_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebHost() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{HOST}:{proxy.port}")
        await attest(await server_half())
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('allowed_dns_patterns = ["("]', 'cannot compile allowed_dns_pattern: "("'),
        ("required_port = 0", "required_port 0 is no port"),
        ("required_port = 65536", "required_port 65536 is no port"),
        ("tofu = false", "you can not turn off trust on first use (TOFU) when non-root ports are allowed"),
        ("tofu = false\n allow_non_root_ports = true", "you can not turn off trust on first use"),
        ("tofu = false\n required_port = 1024", "you can not turn off trust on first use"),
        ("tofu = false\n required_port = 8080\n allow_non_root_ports = false", "you can not turn off trust"),
        ("tfou = false", 'did you mean "tofu"'),
    ],
)
def test_server_settings_that_cannot_be_used(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        config.bind(server.Configuration, hcl.parse(text, "server.conf"))
    assert words in str(error.value)
    assert str(error.value).startswith("server.conf:")


@pytest.mark.parametrize("text", ["required_port = 80", "allow_non_root_ports = false", "required_port = 1023"])
def test_when_hosts_may_attest_again(text: str) -> None:
    config.bind(server.Configuration, hcl.parse(f"tofu = false\n {text}", "server.conf"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 65536", "port 65536 is no port"),
        ("advertised_port = -1", "advertised_port -1 is no port"),
        ('agentname = "a.b"', 'agentname "a.b" cannot be used'),
        ('port = "http"', "port"),
    ],
)
def test_agent_settings_that_cannot_be_used(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        config.bind(agent.Configuration, hcl.parse(text, "agent.conf"))


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=80), hostname=st.text(max_size=20).filter(lambda text: not text.isascii()))
async def test_any_bytes_and_names_are_refused(data: bytes, hostname: str) -> None:
    verifying = await server_half()
    for given_payload in (data, payload(hostname=hostname)):
        with pytest.raises(SpireError):
            await verifying.attest(given_payload, _no_challenge)
