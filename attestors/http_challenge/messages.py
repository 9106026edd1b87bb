"""What the two halves of http_challenge send each other: JSON documents, byte for byte those of SPIRE's halves.

Fields that a reader does not know are passed over.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from operations import documents

NAME = "http_challenge"

T = TypeVar("T", bound=msgspec.Struct)

_LONGEST_NAME = 32
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")


class AttestationData(msgspec.Struct, frozen=True):
    """The agent's payload: where the host can be asked, and which of its agents this is."""

    hostname: str = ""
    agentname: str = ""
    port: int = 0


class Challenge(msgspec.Struct, frozen=True):
    """What the host must say."""

    nonce: str = ""


RESPONSE = b"\n"
"""Of an agent whose host can be asked now: SPIRE's agents must say something, and their servers do not care what."""


def path(agent: str) -> str:
    """Where a host tells the nonce of the agent of that name."""
    return f"/.well-known/spiffe/nodeattestor/{NAME}/{agent}/challenge"


def is_agent_name(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None


def encode(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message)


def decode(kind: type[T], document: bytes) -> T:
    """Raises InvalidArgument."""
    return documents.decode(document, kind)
