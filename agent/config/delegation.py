"""Who may be given the identities of others: delegates on the admin socket, and brokers at an endpoint of their own."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from agent.config.file import AgentSection, Broker, BrokerEntry
from agent.config.sockets import apart_from_workloads
from identity.spiffeid import SpiffeId, TrustDomain
from operations.checks import Checks
from operations.errors import InvalidArgument
from operations.quoting import quote

ANY_REFERENCE: Final = "*"

_BROKER: Final = ("experimental", "broker")
_PREFIX: Final = "experimental.broker"
_LAST_PORT: Final = 65535
_NOTHING: Final[Mapping[str, bool]] = {}


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """The broker endpoint, at a Unix socket, at a TCP address (host, empty for all interfaces, and port), or at both.

    `brokers` has each broker's kinds of reference by their type URL, or ANY_REFERENCE alone, and whether each may be
    used over TCP.
    """

    socket_path: str | None
    bind_address: tuple[str, int] | None
    brokers: Mapping[SpiffeId, Mapping[str, bool]]


def authorized_delegates(agent: AgentSection, trust_domain: TrustDomain | None, checks: Checks) -> tuple[str, ...]:
    """`trust_domain` is the agent's, None when it is not known for a fault told elsewhere."""
    for text in agent.authorized_delegates:
        checks.attempt(
            partial(_require_member, text, trust_domain),
            None,
            "authorized_delegates",
            f"error validating authorized delegate {quote(text)}: ",
        )
    return agent.authorized_delegates


def _require_member(text: str, trust_domain: TrustDomain | None) -> None:
    spiffe_id = SpiffeId.parse(text)
    if trust_domain is not None and spiffe_id.trust_domain != trust_domain:
        raise InvalidArgument(f'SPIFFE ID "{spiffe_id}" is not a member of trust domain "{trust_domain}"')


def broker_settings(agent: AgentSection, workload_socket: str, checks: Checks) -> BrokerSettings | None:
    """None where the endpoint is not configured."""
    block = agent.experimental.broker
    if block is None:
        return None
    some = block.socket_path or block.bind_address
    checks.require(some, f"{_PREFIX} requires socket_path, bind_address, or both", *_BROKER)
    checks.require(block.brokers, f"{_PREFIX}.brokers: at least one broker is required", *_BROKER, "brokers")
    _require_names(block, checks)
    return BrokerSettings(
        socket_path=apart_from_workloads(
            block.socket_path, "broker socket", workload_socket, checks, *_BROKER, "socket_path"
        ),
        bind_address=checks.attempt(
            lambda: _address(block.bind_address) if block.bind_address else None,
            None,
            f"{_PREFIX}.bind_address",
            f"invalid {_PREFIX}.bind_address {quote(block.bind_address)}: ",
        ),
        brokers=dict(pair for each in block.brokers if each.id for pair in _broker(each, checks)),
    )


def _require_names(block: Broker, checks: Checks) -> None:
    seen: set[str] = set()
    for number, entry in enumerate(block.brokers):
        if not entry.id:
            checks.fault(f"{_PREFIX}.brokers[{number}].id: must be specified", *_BROKER, "brokers")
        elif entry.id in seen:
            checks.fault(f"{_PREFIX}.brokers[{entry.id}].id: duplicate broker id", *_BROKER, "brokers")
        seen.add(entry.id)


def _broker(entry: BrokerEntry, checks: Checks) -> list[tuple[SpiffeId, Mapping[str, bool]]]:
    where = f"{_PREFIX}.brokers[{entry.id}]"
    key = f"{_PREFIX}.brokers"
    spiffe_id = checks.attempt(lambda: SpiffeId.parse(entry.id), None, key, f"{where}.id: ")
    allowed = checks.attempt(lambda: _references(entry), _NOTHING, key, f"{where}.allowed_reference_types")
    return [] if spiffe_id is None else [(spiffe_id, allowed)]


def _references(entry: BrokerEntry) -> Mapping[str, bool]:
    allowed = entry.allowed_reference_types
    if not allowed:
        raise InvalidArgument(": must list at least one reference type URL")
    for number, each in enumerate(allowed):
        if not each.type_url:
            raise InvalidArgument(f"[{number}].type_url: must be specified")
        if each.type_url == ANY_REFERENCE and len(allowed) > 1:
            raise InvalidArgument(f': wildcard "{ANY_REFERENCE}" must be the only allowed reference type')
    return {each.type_url: each.allow_over_tcp for each in allowed}


def _address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, an IPv6 address in brackets; the port may be a service's name."""
    host, colon, port = text.rpartition(":")
    if not colon or not port:
        raise InvalidArgument("give host:port, for example 0.0.0.0:8443")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], _port(port)
    if ":" in host:
        raise InvalidArgument("an IPv6 address is given in brackets, for example [::1]:8443")
    return host, _port(port)


def _port(text: str) -> int:
    if text.isascii() and text.isdigit():
        if len(text) > len(str(_LAST_PORT)) or int(text) > _LAST_PORT:
            raise InvalidArgument(f"there is no port above {_LAST_PORT}")
        return int(text)
    try:
        return socket.getservbyname(text, "tcp")
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{quote(text)} is no port: give host:port, for example 0.0.0.0:8443") from error
