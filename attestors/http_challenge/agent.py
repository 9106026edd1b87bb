"""The agent half of http_challenge: tells over HTTP, while an attestation goes on, what the server said to it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec

from attestors.http_challenge import messages
from attestors.http_challenge.messages import AttestationData, Challenge
from operations.errors import ConfigurationError, InvalidArgument, TemporarilyUnavailable
from operations.http import Request, Response
from operations.quoting import quote
from plugins.nodeattestor import AgentNodeAttestor, Attestation
from transport.http import HttpServer

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = messages.NAME

_LAST_PORT = 65535


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`hostname` is this host's own where it is empty; `port` 0 is any that is free.

    The server asks at `advertised_port`, where something passes on to `port`; 0 is `port` itself.
    """

    hostname: str = ""
    agentname: str = "default"
    port: int = 0
    advertised_port: int = 0

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        for key, port in (("port", self.port), ("advertised_port", self.advertised_port)):
            if not 0 <= port <= _LAST_PORT:
                raise InvalidArgument(f"{key} {port} is no port: use 1 to {_LAST_PORT}")
        if self.agentname and not messages.is_agent_name(self.agentname):
            raise InvalidArgument(
                f"agentname {quote(self.agentname)} cannot be used: up to 32 letters, digits and dashes, a letter first"
            )

    @property
    def agent(self) -> str:
        return self.agentname or "default"


class _Telling:
    """One attestation: the port is there from its beginning to its end, the nonce as soon as the server said it."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._nonce: str | None = None
        self._server = HttpServer(self._tell)
        self.payload = b""

    async def open(self) -> None:
        """Raises TemporarilyUnavailable while the port is taken, ConfigurationError for one that cannot be used."""
        settings = self._configuration
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - the server may ask at any address
        try:
            port = await self._server.listen_tcp(host, settings.port, "port of NodeAttestor http_challenge")
        except TemporarilyUnavailable as error:
            raise TemporarilyUnavailable(f"could not listen on port {settings.port}: {error}") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"could not listen on port {settings.port}: {error.reason}") from error
        name = settings.hostname or socket.gethostname()
        advertised = settings.advertised_port or port
        self.payload = messages.encode(AttestationData(name, settings.agent, advertised))

    async def respond(self, challenge: bytes) -> bytes:
        """Raises InvalidArgument."""
        try:
            self._nonce = messages.decode(Challenge, challenge).nonce
        except InvalidArgument as error:
            raise InvalidArgument(f"unable to unmarshal challenge: {error}") from error
        return messages.RESPONSE

    async def close(self) -> None:
        await self._server.close()

    async def _tell(self, request: Request) -> Response:
        if self._nonce is None or request.path != messages.path(self._configuration.agent):
            return Response(404, b"404 page not found\n")
        return Response(200, f"{self._nonce}\n".encode())


class HttpChallengeAttestor:
    name = NAME

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    async def begin(self) -> Attestation:
        """Raises TemporarilyUnavailable while the port is taken, ConfigurationError for one that cannot be used."""
        telling = _Telling(self._configuration)
        await telling.open()
        return telling


async def load(configuration: Configuration, _context: PluginContext) -> AgentNodeAttestor:
    return HttpChallengeAttestor(configuration)
