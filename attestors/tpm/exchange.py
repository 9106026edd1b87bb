"""The server's side of the conversation: what it asks for, and what it takes for an answer (messages.py)."""

from __future__ import annotations

from attestors.tpm.messages import PART_LIMIT, PROOF_LIMIT, Activate, Ask, Log, Part, Proof, decode, encode
from operations.errors import InvalidArgument
from plugins.nodeattestor import Challenge

_FRAME = 64
"""Bytes of a Part beside its data, at most."""
LARGEST_ASK = PART_LIMIT - _FRAME
"""Bytes of a log, so that a response has no more than PART_LIMIT."""


class Exchange:
    """With one agent. Errors are InvalidArgument, and what `challenge` raises."""

    def __init__(self, challenge: Challenge) -> None:
        self._challenge = challenge

    async def activate(self, asked: Activate) -> Proof:
        proof = decode(Proof, await self._challenge(encode(asked)), PROOF_LIMIT)
        if proof.event_log_size < 0 or proof.ima_size < 0:
            raise InvalidArgument("Proof: a log has a size below 0")
        return proof

    async def log(self, log: Log, start: int, end: int) -> bytes:
        """The bytes of a log from `start` up to `end`, in parts; fewer where the agent has no more."""
        found = bytearray()
        while (missing := end - start - len(found)) > 0:
            asked = Ask(log=log, offset=start + len(found), size=min(LARGEST_ASK, missing))
            answer = await self._challenge(encode(asked))
            data = decode(Part, answer, asked.size + _FRAME).data
            if len(data) > asked.size:
                raise InvalidArgument(f"Part: {len(data)} bytes of a log, more than the {asked.size} asked for")
            found += data
            if len(data) < asked.size:
                break
        return bytes(found)
