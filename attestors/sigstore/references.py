"""References to images, such as `docker.io/library/nginx@sha256:…`, read as container tools read them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from operations.errors import InvalidArgument
from operations.quoting import quote
from transport.web.urls import address, is_loopback

DOCKER_HUB = "index.docker.io"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_NAME = re.compile(r"[a-z0-9_./-]{2,255}")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PRIVATE = tuple(ipaddress.ip_network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))


@dataclass(frozen=True, slots=True)
class Repository:
    """`registry` is host and perhaps port, `name` the path below it."""

    registry: str
    name: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}"

    @property
    def may_be_plain(self) -> bool:
        """Whether the registry may be one without TLS: at this host or in a private network (RFC 1918)."""
        host = self.registry.rpartition(":")[0] if _has_port(self.registry) else self.registry
        ip = address(host.strip("[]"))
        return is_loopback(host.strip("[]")) or any(ip in network for network in _PRIVATE if ip is not None)


@dataclass(frozen=True, slots=True)
class Reference:
    """An image by its digest, `sha256:…`, or by a tag."""

    repository: Repository
    identifier: str

    @property
    def is_digest(self) -> bool:
        return _DIGEST.fullmatch(self.identifier) is not None

    def __str__(self) -> str:
        return f"{self.repository}{'@' if self.is_digest else ':'}{self.identifier}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises InvalidArgument."""
        if "@" in text:
            base, _, digest = text.partition("@")
            if not _DIGEST.fullmatch(digest):
                raise InvalidArgument(f"could not parse reference: {quote(text[:300])}: use NAME@sha256:DIGEST")
            return cls(_repository(_without_tag(base), text), digest)
        base = _without_tag(text)
        tag = text[len(base) + 1 :] if base != text else "latest"
        if not _TAG.fullmatch(tag):
            raise InvalidArgument(f"could not parse reference: {quote(text[:300])}: its tag is malformed")
        return cls(_repository(base, text), tag)


def _without_tag(text: str) -> str:
    """A colon in the last part begins a tag; one before a slash, a port."""
    base, colon, last = text.rpartition(":")
    return base if colon and "/" not in last else text


def _repository(text: str, whole: str) -> Repository:
    first, slash, rest = text.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        registry, name = DOCKER_HUB if first == "docker.io" else first, rest
    else:
        registry, name = DOCKER_HUB, text
    # A path that climbs would ask for something else than an image.
    climbs = any(part in ("", ".", "..") for part in name.split("/"))
    if not _NAME.fullmatch(name) or not _REGISTRY.fullmatch(registry) or climbs:
        raise InvalidArgument(f"could not parse reference: {quote(whole[:300])}: its name is malformed")
    return Repository(registry, f"library/{name}" if registry == DOCKER_HUB and "/" not in name else name)


def _has_port(registry: str) -> bool:
    return registry.rpartition(":")[2].isdecimal() and (registry.count(":") == 1 or "]:" in registry)
