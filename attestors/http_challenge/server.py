"""The server half of http_challenge: a node is the host of a name, if that host tells what the agent was told.

Any process of the host may open a port from 1024 on, so that what it attests counts once, for whoever is first
(`tofu`), unless only lower ports are taken.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from typing import Protocol

import msgspec

from attestors.agent_path import regexes
from attestors.http_challenge import messages
from attestors.http_challenge.messages import AttestationData, Challenge
from attestors.turns import Turns
from identity.selectors import Selector
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, PermanentlyUnusable, Refused, SpireError
from operations.logs import Logger
from operations.quoting import quote
from plugins import nodeattestor
from plugins.nodeattestor import CLIENT_ADDRESS, AttestedNode
from transport.web.client import HttpClient
from transport.web.urls import Url

NAME = messages.NAME

PATIENCE = 10.0
"""Seconds that a host may take to be found and to answer."""

_NONCE_LENGTH = 32
_FIRST_OPEN_PORT = 1024
_LAST_PORT = 65535
_LARGEST_ANSWER = 64 << 10
_LOOKED_AT = 64
_OF_A_CALLER = 4
_HEADERS = {"User-Agent": "spire-server"}


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`allowed_dns_patterns` are regular expressions (RE2), one of which must match somewhere in a host's name."""

    allowed_dns_patterns: tuple[str, ...] = ()
    required_port: int | None = None
    allow_non_root_ports: bool = True
    tofu: bool = True

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        for pattern in self.allowed_dns_patterns:
            try:
                regexes.compiled(pattern)
            except InvalidArgument as error:
                raise InvalidArgument(f"cannot compile allowed_dns_pattern: {quote(pattern)}, {error}") from error
        if self.required_port is not None and not 1 <= self.required_port <= _LAST_PORT:
            raise InvalidArgument(f"required_port {self.required_port} is no port: use 1 to {_LAST_PORT}")
        if not self.tofu and self._open_to_all:
            raise InvalidArgument(
                "you can not turn off trust on first use (TOFU) when non-root ports are allowed: "
                "set required_port below 1024, or allow_non_root_ports = false"
            )

    @property
    def _open_to_all(self) -> bool:
        """Whether a process without privileges can have a port that is taken."""
        if self.required_port is None:
            return self.allow_non_root_ports
        return self.required_port >= _FIRST_OPEN_PORT

    def require(self, data: AttestationData) -> None:
        """Raises InvalidArgument, and Refused for a host that may not attest."""
        if self.required_port is not None and data.port != self.required_port:
            raise InvalidArgument(f"port {data.port} is not allowed to be used by this server")
        if not self.allow_non_root_ports and data.port >= _FIRST_OPEN_PORT:
            raise InvalidArgument(f"port {data.port} is not allowed to be >= {_FIRST_OPEN_PORT}")
        if not messages.is_agent_name(data.agentname):
            raise InvalidArgument("agent name is not valid")
        if data.hostname.lower().rstrip(".") == "localhost":
            raise Refused("you can not use localhost as a hostname")
        patterns = self.allowed_dns_patterns
        if patterns and not any(regexes.match(pattern, data.hostname) for pattern in patterns):
            raise Refused("the requested hostname is not allowed to connect")
        if (fault := _fault(data)) is not None:
            raise Refused(f"challenge verification failed: {fault}")


def _fault(data: AttestationData) -> str | None:
    """Why nobody can be asked there."""
    if not data.hostname:
        return "hostname must be set"
    if not 1 <= data.port <= _LAST_PORT:
        return "port is invalid"
    if "/" in data.hostname:
        return "hostname can not contain a slash"
    if ":" in data.hostname:
        return "hostname can not contain a colon"
    return None


class Nodes(Protocol):
    """The server's attested nodes."""

    async def known(self, spiffe_id: str) -> bool:
        """Whether an agent has this ID. Raises SpireError."""
        ...


class Context(Protocol):
    """What a server gives to this plugin."""

    @property
    def trust_domain(self) -> str: ...

    @property
    def log(self) -> Logger: ...

    @property
    def node_records(self) -> Nodes: ...


class HttpChallengeAttestor:
    name = NAME

    def __init__(self, configuration: Configuration, context: Context) -> None:
        self._configuration = configuration
        self._context = context
        self._trust_domain = TrustDomain(context.trust_domain)
        # No proxy: it is the host itself that is to answer.
        self._http = HttpClient({})
        # Whoever calls names whom to ask: names that nobody answers for are not to hold up other callers' hosts.
        self._turns = Turns(_OF_A_CALLER)

    async def attest(self, payload: bytes, challenge: nodeattestor.Challenge) -> AttestedNode:
        """`payload` is messages.AttestationData. Raises InvalidArgument, Refused, PermanentlyUnusable."""
        try:
            data = messages.decode(AttestationData, payload)
        except InvalidArgument as error:
            raise InvalidArgument(f"failed to unmarshal data: {error}") from error
        self._configuration.require(data)
        # Before the host is asked: a name that no SPIFFE ID can have is none to look up.
        spiffe_id = self._agent_id(data.hostname)
        nonce = base64.urlsafe_b64encode(secrets.token_bytes(_NONCE_LENGTH)).decode()
        await challenge(messages.encode(Challenge(nonce)))
        await self._verify(data, nonce)
        if self._configuration.tofu:
            await self._require_first(spiffe_id)
        selectors = (Selector(NAME, f"hostname:{data.hostname}"),)
        return AttestedNode(spiffe_id, selectors, can_reattest=not self._configuration.tofu)

    def _agent_id(self, hostname: str) -> str:
        try:
            return str(SpiffeId(self._trust_domain, f"/spire/agent/{NAME}/{hostname}"))
        except InvalidArgument as error:
            raise PermanentlyUnusable(f"failed to make spiffe id: {error}") from error

    async def _verify(self, data: AttestationData, nonce: str) -> None:
        self._context.log.debug("Verifying challenge", hostname=data.hostname, port=data.port)
        url = Url("http", data.hostname, data.port, messages.path(data.agentname))
        try:
            async with asyncio.timeout(PATIENCE), self._turns.of(CLIENT_ADDRESS.get()):
                answer = await self._http.get(url, headers=_HEADERS, largest=_LARGEST_ANSWER)
        except TimeoutError as error:
            raise Refused(f"challenge verification failed: {url.origin} gave no answer in {PATIENCE:g} s") from error
        except SpireError as error:
            raise Refused(f"challenge verification failed: {error}") from error
        if answer.status in range(300, 400):
            raise Refused(f"challenge verification failed: {url}: http redirects are disabled")
        if answer.body[:_LOOKED_AT].strip() != nonce.encode():
            raise Refused("challenge verification failed: expected nonce was not found in HTTP response")

    async def _require_first(self, spiffe_id: str) -> None:
        if await self._context.node_records.known(spiffe_id):
            self._context.log.error("Attestation data has already been used to attest an agent", spiffe_id=spiffe_id)
            raise Refused("attestation data has already been used to attest an agent")


async def load(configuration: Configuration, context: Context) -> HttpChallengeAttestor:
    return HttpChallengeAttestor(configuration, context)
