"""Node attestation: from a proof of what the node is to the agent's first SVID."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent import csr
from agent.identity import AgentSvid, next_key, received, require_server, verify_server
from agent.received_bundles import own_bundle
from agent.server_client import TIMEOUT, ServerAddress
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_rpc_pb2
from generated.spire.api.types import attestation_pb2, bundle_pb2
from identity import x509svid
from identity.bundles import Bundle
from operations import logs, metrics
from plugins.keymanager import Key, KeyManager
from plugins.nodeattestor import AgentNodeAttestor, Ending, KeyAttesting
from plugins.nodeattestor import Attestation as Proof
from transport import tls
from transport.client import Bidi, Channel
from transport.status import Code, RpcError

_ATTEST = "/spire.api.server.agent.v1.Agent/AttestAgent"
_GET_BUNDLE = "/spire.api.server.bundle.v1.Bundle/GetBundle"
_TIMEOUT = 4 * TIMEOUT

_log = logs.get("attestor")


@dataclass(frozen=True, slots=True)
class Attestation:
    svid: AgentSvid
    bundle: Bundle


@metrics.timed("node", "attestor", "new_svid")
async def attest(
    address: ServerAddress,
    attestor: AgentNodeAttestor,
    keys: KeyManager,
    current: Key | None,
    authorities: Sequence[bytes] | None,
) -> Attestation:
    """Attest to the server that `authorities` (DER) vouch for; None takes any server that says it is the right one.

    The new key takes the place that `current` does not have. Raises RpcError, and SpireError classes for what goes
    wrong on this side.
    """
    key = await next_key(keys, current)
    request = await csr.agent_request(key)
    channel = _channel(address, authorities)
    try:
        async with asyncio.timeout(_TIMEOUT):
            # First: when this fails, the proof, which may be good for one time only, is not lost.
            message = await channel.unary(
                _GET_BUNDLE, bundle_rpc_pb2.GetBundleRequest(), bundle_pb2.Bundle, timeout=TIMEOUT
            )
            bundle = own_bundle(message, address.trust_domain)
            async with _begun(attestor, keys, key) as proof:
                result = await _converse(channel, attestor.name, proof, request)
    except TimeoutError as error:
        raise RpcError(Code.DEADLINE_EXCEEDED, "attestation took too long") from error
    finally:
        await channel.close()
    chain = tuple(result.svid.cert_chain)
    svid = received(chain, key, address.trust_domain, reattestable=result.reattestable)
    _log.info("Node attestation was successful", spiffe_id=svid.spiffe_id, reattestable=svid.reattestable)
    return Attestation(svid, bundle)


def _channel(address: ServerAddress, authorities: Sequence[bytes] | None) -> Channel:
    def verify(chain: tuple[bytes, ...]) -> None:
        if authorities is not None:
            verify_server(chain, address.trust_domain, authorities)
            return
        # No protection, only a check that this seems to be the right server.
        _log.warning("Insecure bootstrap enabled; skipping server certificate verification")
        require_server(x509svid.leaf_id(chain[0]), address.trust_domain)

    return Channel.tcp(
        address.host,
        address.port,
        lambda: tls.client_context(None, require_pq_kem=address.require_pq_kem),
        verify,
    )


@asynccontextmanager
async def _begun(attestor: AgentNodeAttestor, keys: KeyManager, key: Key) -> AsyncGenerator[Proof]:
    """A proof, which holds what it needs as long as the block lasts."""
    if isinstance(attestor, KeyAttesting):
        proof = await attestor.begin_with(keys, key)
    else:
        proof = await attestor.begin()
    try:
        yield proof
    finally:
        if isinstance(proof, Ending):
            await proof.close()


async def _converse(
    channel: Channel, attestor: str, proof: Proof, request: bytes
) -> agent_pb2.AttestAgentResponse.Result:
    params = agent_pb2.AttestAgentRequest.Params(
        data=attestation_pb2.AttestationData(type=attestor, payload=proof.payload),
        params=agent_pb2.AgentX509SVIDParams(csr=request),
    )
    async with channel.bidi(_ATTEST, agent_pb2.AttestAgentResponse) as stream:
        await stream.send(agent_pb2.AttestAgentRequest(params=params))
        response = await _receive(stream)
        while response.WhichOneof("step") == "challenge":
            answer = await proof.respond(response.challenge)
            await stream.send(agent_pb2.AttestAgentRequest(challenge_response=answer))
            response = await _receive(stream)
        await stream.close_send()
    return response.result


async def _receive(stream: Bidi[agent_pb2.AttestAgentResponse]) -> agent_pb2.AttestAgentResponse:
    response = await stream.recv()
    if response is None:
        raise RpcError(Code.UNKNOWN, "the server ended the attestation without an answer")
    return response
