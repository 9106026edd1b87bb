"""SPIFFE IDs and trust domains, as the SPIFFE-ID standard has them (sections 2.1 to 2.4).

A value of these types is always valid: constructing one checks it. The error texts are the ones that users of SPIFFE
tools know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from generated.spire.api.types import spiffeid_pb2
from operations.errors import InvalidArgument

_PREFIX = "spiffe://"

# SPIFFE-ID 2.1 and 2.3: implementations support these lengths and do not generate longer ones.
_MAX_TRUST_DOMAIN = 255
_MAX_ID = 2048

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]*")
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[a-zA-Z0-9._-]+)*")


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """A trust domain by its name, for example `example.org`. Raises InvalidArgument."""

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidArgument("trust domain is missing")
        if not _TRUST_DOMAIN.fullmatch(self.name):
            raise InvalidArgument(
                "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
            )
        if len(self.name) > _MAX_TRUST_DOMAIN:
            raise InvalidArgument(f"trust domain is longer than {_MAX_TRUST_DOMAIN} characters")

    @classmethod
    def parse(cls, text: str) -> TrustDomain:
        """Read a name or an ID of the trust domain, with or without a path. Raises InvalidArgument."""
        # ":/" and not "://", so that spiffe:/example.org is told about its scheme.
        return SpiffeId.parse(text).trust_domain if ":/" in text else cls(text)

    @property
    def id(self) -> str:
        """`spiffe://` and the name."""
        return _PREFIX + self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A SPIFFE ID. `path` is empty, or starts with a slash. Raises InvalidArgument."""

    trust_domain: TrustDomain
    path: str = ""

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise InvalidArgument(_fault_of_path(self.path))
        if len(_PREFIX) + len(self.trust_domain.name) + len(self.path) > _MAX_ID:
            raise InvalidArgument(f"SPIFFE ID is longer than {_MAX_ID} characters")

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read `spiffe://trust-domain/path`. Nothing is normalised or decoded. Raises InvalidArgument."""
        if not text:
            raise InvalidArgument("cannot be empty")
        if not text.startswith(_PREFIX):
            raise InvalidArgument("scheme is missing or invalid")
        name, slash, path = text[len(_PREFIX) :].partition("/")
        return cls(TrustDomain(name), slash + path)

    @classmethod
    def from_proto(cls, message: spiffeid_pb2.SPIFFEID) -> SpiffeId:
        """Read types.SPIFFEID. Raises InvalidArgument."""
        return cls(TrustDomain.parse(message.trust_domain), message.path)

    def to_proto(self) -> spiffeid_pb2.SPIFFEID:
        return spiffeid_pb2.SPIFFEID(trust_domain=self.trust_domain.name, path=self.path)

    def __str__(self) -> str:
        return f"{_PREFIX}{self.trust_domain.name}{self.path}"


def server_id(trust_domain: TrustDomain) -> SpiffeId:
    return SpiffeId(trust_domain, "/spire/server")


def is_agent_path(path: str) -> bool:
    return path.startswith("/spire/agent/")


def is_reserved_path(path: str) -> bool:
    """Whether the path belongs to SPIRE itself, so that no workload may have it."""
    return path == "/spire" or path.startswith("/spire/")


def require_member(trust_domain: TrustDomain, spiffe_id: SpiffeId) -> None:
    """Raise InvalidArgument unless the ID has a path and is of this trust domain."""
    _require_trust_domain(trust_domain, spiffe_id)
    if not spiffe_id.path:
        raise InvalidArgument(f'"{spiffe_id}" is not a member of trust domain "{trust_domain}"; path is empty')


def require_agent(trust_domain: TrustDomain, spiffe_id: SpiffeId) -> None:
    """Raise InvalidArgument unless the ID may be an agent's of this trust domain."""
    _require_trust_domain(trust_domain, spiffe_id)
    text = f'"{spiffe_id}" is not an agent in trust domain "{trust_domain}"'
    if not spiffe_id.path:
        raise InvalidArgument(f"{text}; path is empty")
    if not is_agent_path(spiffe_id.path):
        raise InvalidArgument(f"{text}; path is not in the agent namespace")


def require_agent_of_attestor(trust_domain: TrustDomain, spiffe_id: SpiffeId, attestor: str) -> None:
    """Raise InvalidArgument unless the ID may be given by the node attestor of that name."""
    _require_trust_domain(trust_domain, spiffe_id)
    if not spiffe_id.path.startswith(f"/spire/agent/{attestor}/"):
        raise InvalidArgument(f'"{spiffe_id}" is not in the agent namespace for attestor "{attestor}"')


def require_workload(trust_domain: TrustDomain, spiffe_id: SpiffeId) -> None:
    """Raise InvalidArgument unless the ID may be a workload's of this trust domain."""
    _require_trust_domain(trust_domain, spiffe_id)
    text = f'"{spiffe_id}" is not a workload in trust domain "{trust_domain}"'
    if not spiffe_id.path:
        raise InvalidArgument(f"{text}; path is empty")
    if is_reserved_path(spiffe_id.path):
        raise InvalidArgument(f"{text}; path is in the reserved namespace")


def _require_trust_domain(trust_domain: TrustDomain, spiffe_id: SpiffeId) -> None:
    if spiffe_id.trust_domain != trust_domain:
        raise InvalidArgument(f'"{spiffe_id}" is not a member of trust domain "{trust_domain}"')


def _fault_of_path(path: str) -> str:
    """Name the first fault of an invalid path."""
    if not path.startswith("/"):
        return "path must have a leading slash"
    *inner, last = path[1:].split("/")
    for segment in inner:
        if not _SEGMENT.fullmatch(segment):
            break
        if not segment:
            return "path cannot contain empty segments"
        if segment in (".", ".."):
            return "path cannot contain dot segments"
    else:
        if not last:
            return "path cannot have a trailing slash"
        if last in (".", ".."):
            return "path cannot contain dot segments"
    return "path segment characters are limited to letters, numbers, dots, dashes, and underscores"
