"""x509pop over the wire of a whole server: good agents, and those that send what no agent should."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from attestors.x509pop import messages, proof
from generated.grpc.health.v1 import health_pb2
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.types import status_pb2, x509svid_pb2
from tests.simulators.house import AGENT, HEALTH, PATIENCE, AgentClient, House, csr, running
from tests.simulators.nodes import Authority, Shape, root
from tests.simulators.pki import PrivateKey, ec_key
from transport.client import Bidi, Channel
from transport.status import Code, RpcError

CA = root()
NODE = CA.node(Shape(ips=("127.0.0.1",)))

Stream = Bidi[agent_pb2.AttestAgentResponse]


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    bundle = tmp_path / "ca.pem"
    await asyncio.to_thread(bundle.write_bytes, CA.pem)
    data = f'ca_bundle_path = "{bundle}"\n verify_client_ip = true\n agent_path_template = "/x509pop/node"'
    async with running(tmp_path, plugins=f'NodeAttestor "x509pop" {{ plugin_data {{ {data} }} }}') as made:
        yield made


@asynccontextmanager
async def attesting(channel: Channel, payload: bytes, key: PrivateKey | None = None) -> AsyncGenerator[Stream]:
    message = agent_pb2.AttestAgentRequest()
    message.params.data.type = "x509pop"
    message.params.data.payload = payload
    message.params.params.csr = csr(key or ec_key())
    async with channel.bidi(AGENT + "AttestAgent", agent_pb2.AttestAgentResponse, timeout=PATIENCE) as stream:
        await stream.send(message)
        yield stream


def payload(*chain: Authority) -> bytes:
    return messages.encode(messages.AttestationData(tuple(each.der for each in chain)))


async def challenge(stream: Stream) -> messages.Challenge:
    response = await stream.recv()
    assert response is not None
    return messages.decode(messages.Challenge, response.challenge)


async def respond(stream: Stream, asked: messages.Challenge) -> None:
    assert not isinstance(NODE.key, str)
    answer = proof.respond(NODE.key, asked, proof.fresh_nonce())  # type: ignore[arg-type]
    await stream.send(agent_pb2.AttestAgentRequest(challenge_response=messages.encode(answer)))


async def result(stream: Stream) -> x509svid_pb2.X509SVID:
    response = await stream.recv()
    assert response is not None
    assert response.result.reattestable
    return response.result.svid


async def attested(house: House) -> AgentClient:
    key = ec_key()
    async with attesting(await house.remote(), payload(NODE), key) as stream:
        await respond(stream, await challenge(stream))
        return await house.as_agent(await result(stream), key)


async def test_an_agent_that_can_attest_again_does_not_renew(house: House) -> None:
    agent = await attested(house)
    assert agent.id.path == "/spire/agent/x509pop/node"
    assert await agent.entries() == []
    with pytest.raises(RpcError, match="agent must reattest instead of renew") as error:
        await agent.renew()
    assert error.value.code is Code.PERMISSION_DENIED
    details = status_pb2.PermissionDeniedDetails()
    assert error.value.details[0].Unpack(details)  # type: ignore[attr-defined]
    assert details.reason == status_pb2.PermissionDeniedDetails.AGENT_MUST_REATTEST


async def test_the_svid_of_before_ends_with_another_attestation(house: House) -> None:
    first, second = await attested(house), await attested(house)
    assert await second.entries() == []
    with pytest.raises(RpcError, match="authorization denied"):
        await first.entries()


async def test_two_attestations_at_once(house: House) -> None:
    channel = await house.remote()
    keys = ec_key(), ec_key()
    async with attesting(channel, payload(NODE), keys[0]) as one, attesting(channel, payload(NODE), keys[1]) as two:
        asked_one, asked_two = await challenge(one), await challenge(two)
        assert asked_one != asked_two
        await respond(two, asked_two)
        await result(two)
        await respond(one, asked_one)
        last = await house.as_agent(await result(one), keys[0])
    assert await last.entries() == []


async def test_a_response_to_another_attestation(house: House) -> None:
    channel = await house.remote()
    async with attesting(channel, payload(NODE)) as one, attesting(channel, payload(NODE)) as two:
        asked = await challenge(one)
        await challenge(two)
        await respond(two, asked)
        with pytest.raises(RpcError, match="ECDSA signature verify failed") as error:
            await two.recv()
    assert error.value.code is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [
        (b"\xff", Code.INVALID_ARGUMENT, "failed to unmarshal data: "),
        (b"{}", Code.INVALID_ARGUMENT, "no certificate to attest"),
        (b'{"certificates":["AAAA"]}', Code.INVALID_ARGUMENT, "unable to parse leaf certificate: "),
        (payload(NODE, *[CA] * 5), Code.INVALID_ARGUMENT, "too many intermediate certificates"),
        (payload(root().node()), Code.PERMISSION_DENIED, "certificate verification failed: x509: "),
        (payload(CA.node()), Code.PERMISSION_DENIED, "client IP 127.0.0.1 does not match any certificate IP SAN"),
        (
            payload(CA.node(Shape(ips=("127.0.0.1",), usage=()))),
            Code.INTERNAL,
            "unable to generate challenge: certificate not intended for digital signature use",
        ),
    ],
)
async def test_payloads_that_are_refused(house: House, sent: bytes, code: Code, message: str) -> None:
    async with attesting(await house.remote(), sent) as stream:
        with pytest.raises(RpcError) as error:
            await stream.recv()
    assert error.value.code is code
    assert error.value.message.startswith(f"nodeattestor(x509pop): {message}")


async def test_an_agent_that_ends_in_the_middle(house: House) -> None:
    async with attesting(await house.remote(), payload(NODE)) as stream:
        await challenge(stream)
        await stream.close_send()
        with pytest.raises(RpcError, match="failed to receive challenge from agent: EOF"):
            await stream.recv()


async def test_huge_messages(house: House) -> None:
    """One that is too long is refused before it is read; one that is not holds nobody up."""
    async with attesting(await house.remote(), bytes(5 << 20)) as stream:
        with pytest.raises(RpcError) as error:
            await stream.recv()
    assert error.value.code is Code.RESOURCE_EXHAUSTED
    many = b'{"certificates":[' + b",".join([b'""'] * 1_300_000) + b"]}"
    deep = b'{"certificates":' + b"[" * 3_000_000
    for sent, message in ((many, "too many intermediate certificates"), (deep, "failed to unmarshal data")):
        async with attesting(await house.remote(), sent) as stream:
            waits: list[float] = []
            answer = asyncio.ensure_future(stream.recv())
            while not answer.done():
                began = time.monotonic()
                await house.local.unary(
                    HEALTH + "Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
                )
                waits.append(time.monotonic() - began)
            with pytest.raises(RpcError, match=message):
                await answer
        assert max(waits) < 10
