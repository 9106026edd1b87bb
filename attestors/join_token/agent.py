"""Attestation by a join token, which the server gave out and takes once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from operations.errors import ConfigurationError, Refused
from plugins.nodeattestor import AgentNodeAttestor, Attestation

if TYPE_CHECKING:
    from plugins.catalog import PluginContext


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token comes with the agent's configuration, not with the plugin's."""


@dataclass(frozen=True, slots=True)
class _Token:
    payload: bytes

    async def respond(self, challenge: bytes) -> bytes:
        del challenge
        raise Refused("the server answered a join token with a challenge, which it should not")


class JoinTokenAttestor:
    name = "join_token"

    def __init__(self, token: str) -> None:
        self._token = token

    async def begin(self) -> Attestation:
        """Raises ConfigurationError when the agent has no token to show."""
        if not self._token:
            raise ConfigurationError(
                "join token was not provided: generate one on the server and give it as join_token_file or join_token"
            )
        return _Token(self._token.encode())


async def load(_configuration: Configuration, _context: PluginContext) -> AgentNodeAttestor:
    """A plugin block alone brings no token; it serves agents that are attested already."""
    return JoinTokenAttestor("")
