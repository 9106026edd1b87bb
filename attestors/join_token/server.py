"""The server half of join-token attestation: a token that an operator made is taken, once, and names the agent."""

from __future__ import annotations

import time
from typing import Protocol

import msgspec

from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument
from plugins.nodeattestor import AttestedNode, Challenge

NAME = "join_token"


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There is nothing to configure."""


class JoinTokens(Protocol):
    async def take(self, token: str) -> int | None:
        """Use a token up and return its end in unix seconds; None for one that is not there."""
        ...


def agent_id(trust_domain: TrustDomain, token: str) -> SpiffeId:
    """The agent that a token makes. Raises InvalidArgument for a token that no SPIFFE ID can hold."""
    return SpiffeId(trust_domain, f"/spire/agent/{NAME}/{token}")


class JoinTokenAttestor:
    """Believes whoever holds a token that is there and has not expired; an expired one is gone afterwards."""

    def __init__(self, trust_domain: TrustDomain, tokens: JoinTokens) -> None:
        self._trust_domain = trust_domain
        self._tokens = tokens

    @property
    def name(self) -> str:
        return NAME

    async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        """`payload` is the token. Raises InvalidArgument for one that is unknown, used or expired."""
        token = payload.decode("utf-8", "replace")
        expires_at = await self._tokens.take(token)
        if expires_at is None:
            raise InvalidArgument("failed to attest: join token does not exist or has already been used")
        if expires_at < time.time():
            raise InvalidArgument("join token expired")
        return AttestedNode(str(agent_id(self._trust_domain, token)), (), can_reattest=False)


class JoinTokenContext(Protocol):
    """What a server gives to this plugin."""

    @property
    def trust_domain(self) -> str: ...

    @property
    def join_tokens(self) -> JoinTokens: ...


async def load(_configuration: Configuration, context: JoinTokenContext) -> JoinTokenAttestor:
    return JoinTokenAttestor(TrustDomain(context.trust_domain), context.join_tokens)
