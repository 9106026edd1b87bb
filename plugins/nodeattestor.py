"""Node attestation: the agent half proves what the node is, the server half believes it or not.

Both follow spire.plugin.{agent,server}.nodeattestor.v1: the agent sends a payload, the server may answer with
challenges, and in the end names the agent and its selectors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from identity.selectors import Selector
from plugins.keymanager import Key, KeyManager

Challenge = Callable[[bytes], Awaitable[bytes]]
"""Sends a challenge to the agent and returns its response."""

CLIENT_ADDRESS: ContextVar[str] = ContextVar("CLIENT_ADDRESS", default="")
"""The IP address that the agent calls from, while a server half attests it; empty where it is not known.

It is to a built-in attestor what the metadata `x-forwarded-client-ip` is to an external one.
"""


@dataclass(frozen=True, slots=True)
class AttestedNode:
    """The verdict of a server half. `can_reattest` says that the same proof may be given again later.

    `public_key` (DER SubjectPublicKeyInfo) is the only key that the agent's SVID may be for; None leaves it open.
    `record` is kept with the node for the next attestation; None keeps the one that is there.
    """

    spiffe_id: str
    selectors: Sequence[Selector]
    can_reattest: bool
    public_key: bytes | None = None
    record: bytes | None = None


RECORD_LIMIT = 64 << 10
"""Bytes of a node's record."""


class NodeRecords(Protocol):
    """What a built-in server half remembers of each node. It goes when the node is deleted."""

    async def get(self, spiffe_id: str) -> bytes | None:
        """The record; None where there is none. Raises SpireError while the datastore cannot be asked."""
        ...

    async def put(self, spiffe_id: str, record: bytes) -> None:
        """Replace the record of a node that was not admitted. Of a node that is not known nothing is kept."""
        ...

    async def evict(self, spiffe_id: str) -> None:
        """Let the node's SVIDs end with its next sync: its certificate is no longer taken, its record stays.

        A node that is not known is none to evict.
        """
        ...


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


@runtime_checkable
class Ending(Protocol):
    """An attestation that holds something: a port, a stream."""

    async def close(self) -> None:
        """Called once, after the server's verdict or when there will be none."""
        ...


class AgentNodeAttestor(Protocol):
    @property
    def name(self) -> str: ...

    async def begin(self) -> Attestation: ...


@runtime_checkable
class KeyAttesting(Protocol):
    """An agent half that can prove where the SVID's key is."""

    async def begin_with(self, keys: KeyManager, key: Key) -> Attestation:
        """As `begin`, for an SVID of this key, which `keys` holds."""
        ...


@runtime_checkable
class Reattesting(Protocol):
    """An agent half that attests anew at an interval, besides at every renewal of the SVID."""

    @property
    def interval(self) -> float:
        """Seconds; 0 for at renewals alone."""
        ...
