"""Envoy's Secret Discovery Service (envoy.service.secret.v3), beside the Workload API and as that is attested."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

from agent.cache import X509Cache
from agent.config.file import Sds
from agent.rate_limits import Admission
from agent.sds.asked import checked_names, checked_type, select, validator_of
from agent.sds.either import either
from agent.sds.secrets import Secrets, SharedSecrets
from agent.sds.stream import Conversation, fetched
from agent.sds.telling import Telling, listed
from agent.stream_limits import StreamLimits
from agent.workload_update import WorkloadUpdate
from generated.envoy.service.discovery.v3 import discovery_pb2
from generated.envoy.service.secret.v3 import sds_pb2
from identity.selectors import Selector
from operations.errors import TemporarilyUnavailable
from transport.peer import Peer
from transport.router import Context, Router
from transport.status import RpcError

R = TypeVar("R", discovery_pb2.DiscoveryRequest, discovery_pb2.DeltaDiscoveryRequest)
R_contra = TypeVar("R_contra", contravariant=True)

SERVICE = sds_pb2.DESCRIPTOR.services_by_name["SecretDiscoveryService"]

_LARGEST: Final = 512 << 10
"""Bytes of a request. The first one of an Envoy has some 60 KiB: it names all its extensions."""

_PATIENCE: Final = 5.0
"""Seconds that a single request waits for SVIDs that are still to come."""


class _Conversation(Protocol[R_contra]):
    def learn(self, secrets: Secrets) -> None: ...
    def hear(self, request: R_contra) -> None: ...
    def answer(self) -> bytes | None: ...


class SecretDiscovery:
    def __init__(self, settings: Sds, admission: Admission, cache: X509Cache, limits: StreamLimits) -> None:
        self._settings = settings
        self._admission = admission
        self._cache = cache
        self._limits = limits
        self._secrets = SharedSecrets(settings)

    def add_to(self, router: Router) -> None:
        router.add(
            SERVICE,
            {
                "StreamSecrets": self.stream_secrets,
                "DeltaSecrets": self.delta_secrets,
                "FetchSecrets": self.fetch_secrets,
            },
            largest=_LARGEST,
        )

    def stream_secrets(
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        """Until the client ends, or asks for what the workload may not have."""
        telling = Telling(context.method.name, peer)
        return self._converse(Conversation(self._settings, telling), requests, peer, context, telling)

    def delta_secrets(
        self, requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest], peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        """Until the client ends."""
        # Envoys ask so where their operators want it, which few do.
        from agent.sds.delta import DeltaConversation

        telling = Telling(context.method.name, peer)
        return self._converse(DeltaConversation(self._settings, telling), requests, peer, context, telling)

    async def _converse(
        self,
        conversation: _Conversation[R],
        requests: AsyncIterator[R],
        peer: Peer,
        context: Context,
        telling: Telling,
    ) -> AsyncIterator[bytes]:
        with self._limits.stream_of(peer.process) as allowance:
            selectors = await self._attest(peer, context, telling)
            with self._cache.subscribe(selectors) as subscription:
                async with aclosing(either(_heard(conversation, requests), subscription)) as news:
                    async for update in news:
                        if update is not None:
                            conversation.learn(self._secrets.of(update))
                        response = _answer(conversation, telling)
                        if response is not None:
                            async with allowance.sending(len(response)):
                                yield response

    async def fetch_secrets(self, request: discovery_pb2.DiscoveryRequest, peer: Peer, context: Context) -> bytes:
        names = checked_names(request.resource_names)
        checked_type(request.type_url)
        telling = Telling(context.method.name, peer, resource_names=listed(names))
        with self._limits.stream_of(peer.process):
            update = await self._update_for(await self._attest(peer, context, telling))
        try:
            resources = select(names, self._secrets.of(update), validator_of(request.node, self._settings))
        except RpcError as error:
            telling.failed("Error building fetch secrets response", error)
            raise
        telling.sending(len(resources))
        return fetched(request, resources)

    async def _attest(self, peer: Peer, context: Context, telling: Telling) -> frozenset[Selector]:
        try:
            return await self._admission.attest(peer, context)
        except TemporarilyUnavailable as error:
            telling.failed("Failed to attest the workload", error)
            raise

    async def _update_for(self, selectors: frozenset[Selector]) -> WorkloadUpdate:
        """As soon as all is there; what there is when that takes long."""
        with self._cache.subscribe(selectors) as subscription:
            try:
                async with asyncio.timeout(_PATIENCE):
                    return await anext(subscription)
            except TimeoutError:
                return self._cache.peek(selectors)


async def _heard(conversation: _Conversation[R], requests: AsyncIterator[R]) -> AsyncIterator[None]:
    """Has each request heard as soon as it is parsed, so that of all streams together one is in memory at a time."""
    failure: RpcError | None = None
    async for request in requests:
        try:
            conversation.hear(request)
        except RpcError as error:
            failure = RpcError(error.code, error.message)  # without the frames, which know the request
        del request
        if failure is not None:
            raise failure
        yield


def _answer(conversation: _Conversation[R], telling: Telling) -> bytes | None:
    try:
        return conversation.answer()
    except RpcError as error:
        telling.failed("Error building stream secrets response", error)
        raise
