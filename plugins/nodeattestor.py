"""Node attestation: the agent half proves what the node is, the server half believes it or not.

Both follow spire.plugin.{agent,server}.nodeattestor.v1: the agent sends a payload, the server may answer with
challenges, and in the end names the agent and its selectors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from identity.selectors import Selector

Challenge = Callable[[bytes], Awaitable[bytes]]
"""Sends a challenge to the agent and returns its response."""

CLIENT_ADDRESS: ContextVar[str] = ContextVar("CLIENT_ADDRESS", default="")
"""The IP address that the agent calls from, while a server half attests it; empty where it is not known.

It is to a built-in attestor what the metadata `x-forwarded-client-ip` is to an external one.
"""


@dataclass(frozen=True, slots=True)
class AttestedNode:
    """The verdict of a server half. `can_reattest` says that the same proof may be given again later."""

    spiffe_id: str
    selectors: Sequence[Selector]
    can_reattest: bool


class ServerNodeAttestor(Protocol):
    @property
    def name(self) -> str: ...

    async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        """Check the payload. Raises SpireError classes; anything but a returned verdict is a refusal."""
        ...


class Attestation(Protocol):
    """One attestation of the agent half: the payload, then a response per challenge."""

    @property
    def payload(self) -> bytes: ...

    async def respond(self, challenge: bytes) -> bytes: ...


class AgentNodeAttestor(Protocol):
    @property
    def name(self) -> str: ...

    async def begin(self) -> Attestation: ...
