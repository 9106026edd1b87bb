"""NodeAttestor plugins, of servers and of agents."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from generated.spire.plugin.agent.nodeattestor.v1 import nodeattestor_pb2 as agent_api
from generated.spire.plugin.server.nodeattestor.v1 import nodeattestor_pb2 as server_api
from identity.selectors import Selector
from operations.errors import InvalidArgument
from plugins.external.conversation import Conversation
from plugins.external.plugin import Plugin
from plugins.nodeattestor import CLIENT_ADDRESS, AttestedNode, Challenge
from transport.status import Code, RpcError


class ExternalServerNodeAttestor:
    SERVICE: Final = "spire.plugin.server.nodeattestor.v1.NodeAttestor"

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    @property
    def name(self) -> str:
        return self._plugin.name

    async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        """The selectors' type is the plugin's name, whatever the plugin says. Raises RpcError, InvalidArgument."""
        if not payload:
            raise InvalidArgument("payload cannot be empty")
        # SPIRE forwards the host that the agent called too; one that is not known, as here, is empty there.
        metadata = {"x-untrusted-forwarded-host": "", "x-forwarded-client-ip": CLIENT_ADDRESS.get()}
        async with self._plugin.converse(
            f"/{self.SERVICE}/Attest", server_api.AttestResponse, metadata=metadata
        ) as conversation:
            await conversation.send(server_api.AttestRequest(payload=payload))
            while True:
                answer = await self._answer(conversation)
                if answer.WhichOneof("response") == "agent_attributes":
                    return self._verdict(answer.agent_attributes)
                response = await challenge(answer.challenge)
                await conversation.send(server_api.AttestRequest(challenge_response=response))

    async def _answer(self, conversation: Conversation[server_api.AttestResponse]) -> server_api.AttestResponse:
        answer = await conversation.receive()
        if answer is None:
            raise self._plugin.error(Code.INTERNAL, "plugin closed stream unexpectedly")
        if answer.WhichOneof("response") is None:
            raise self._plugin.error(Code.INTERNAL, "plugin response missing challenge or agent attributes")
        return answer

    def _verdict(self, attributes: server_api.AgentAttributes) -> AttestedNode:
        if not attributes.spiffe_id:
            raise self._plugin.error(Code.INTERNAL, "plugin response missing agent ID")
        return AttestedNode(
            spiffe_id=attributes.spiffe_id,
            selectors=[Selector(self.name, value) for value in attributes.selector_values],
            can_reattest=attributes.can_reattest,
        )


class ExternalAgentNodeAttestor:
    SERVICE: Final = "spire.plugin.agent.nodeattestor.v1.NodeAttestor"

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    @property
    def name(self) -> str:
        return self._plugin.name

    async def begin(self) -> ExternalAttestation:
        """Raises RpcError."""
        conversation = self._converse()
        return ExternalAttestation(await anext(conversation), conversation)

    async def _converse(self) -> AsyncGenerator[bytes, bytes]:
        """Yields the payload, then a response for each challenge."""
        async with self._plugin.converse(
            f"/{self.SERVICE}/AidAttestation", agent_api.PayloadOrChallengeResponse
        ) as conversation:
            answer = await conversation.receive()
            if answer is None:
                raise self._fault("plugin closed stream before returning attestation data")
            if not answer.payload:
                raise self._fault("plugin response missing attestation payload")
            challenge = yield answer.payload
            while True:
                await conversation.send(agent_api.Challenge(challenge=challenge))
                answer = await conversation.receive()
                if answer is None:
                    raise self._fault("plugin closed stream before handling the challenge")
                if not answer.challenge_response:
                    raise self._fault("plugin response missing challenge response")
                challenge = yield answer.challenge_response

    def _fault(self, message: str) -> RpcError:
        return self._plugin.error(Code.INTERNAL, message)


class ExternalAttestation:
    """The plugin's stream ends when nobody holds this any more: the loop closes a generator that is let go."""

    def __init__(self, payload: bytes, conversation: AsyncGenerator[bytes, bytes]) -> None:
        self.payload: Final = payload
        self._conversation = conversation

    async def respond(self, challenge: bytes) -> bytes:
        """Raises RpcError."""
        try:
            return await self._conversation.asend(challenge)
        except StopAsyncIteration:
            raise InvalidArgument("the attestation has ended") from None
