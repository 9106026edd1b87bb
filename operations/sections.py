"""The sections of a configuration that server and agent share, and what of them this version lacks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from operations import config, hcl
from operations.errors import ConfigurationError
from operations.hcl import Body

T = TypeVar("T", bound=msgspec.Struct)
NOT_AVAILABLE = "is not available in this version"

Unavailable = Mapping[str, str]
"""Keys, as dotted paths, that are known but have no effect yet, and what to do about each."""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all sections."""


class Tls(Section, frozen=True, kw_only=True):
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    use_spire_svid: bool = False
    authorized_spiffe_ids: tuple[str, ...] = ()


class Prometheus(Section, frozen=True, kw_only=True):
    host: str = ""
    port: int = 0
    tls: Tls | None = None


class Statsd(Section, frozen=True, kw_only=True):
    """Statsd and DogStatsd."""

    address: str = ""


class M3(Section, frozen=True, kw_only=True):
    address: str = ""
    env: str = ""


class InMem(Section, frozen=True, kw_only=True):
    pass


class Telemetry(Section, frozen=True, kw_only=True):
    prometheus: Prometheus | None = msgspec.field(default=None, name="Prometheus")
    dog_statsd: tuple[Statsd, ...] = msgspec.field(default=(), name="DogStatsd")
    statsd: tuple[Statsd, ...] = msgspec.field(default=(), name="Statsd")
    m3: tuple[M3, ...] = msgspec.field(default=(), name="M3")
    in_mem: InMem | None = msgspec.field(default=None, name="InMem")
    metric_prefix: str = msgspec.field(default="", name="MetricPrefix")
    enable_trust_domain_label: bool | None = msgspec.field(default=None, name="EnableTrustDomainLabel")
    enable_hostname_label: bool | None = msgspec.field(default=None, name="EnableHostnameLabel")
    allowed_prefixes: tuple[str, ...] = msgspec.field(default=(), name="AllowedPrefixes")
    blocked_prefixes: tuple[str, ...] = msgspec.field(default=(), name="BlockedPrefixes")
    allowed_labels: tuple[str, ...] = msgspec.field(default=(), name="AllowedLabels")
    blocked_labels: tuple[str, ...] = msgspec.field(default=(), name="BlockedLabels")


class HealthChecks(Section, frozen=True, kw_only=True):
    listener_enabled: bool = False
    bind_address: str = ""
    bind_port: str = ""
    ready_path: str = ""
    live_path: str = ""


UNAVAILABLE: Unavailable = {
    "telemetry.m3": "use Prometheus, which M3 takes by remote write",
}
"""Of the shared sections."""


def read(model: type[T], path: str, default_path: str, *, expand_env: bool) -> tuple[T, Body]:
    """Read and bind a configuration file. Raises ConfigurationError; SPIRE's own words when the file is missing."""
    path = path or default_path
    if not Path(path).exists():
        reason = f"there is no configuration file {Path(path).absolute()}: name it with -config"
        raise ConfigurationError(reason)
    body = hcl.load(path, expand_env=expand_env)
    return config.bind(model, body), body


def unavailable(file: msgspec.Struct, body: Body, table: Unavailable) -> list[ConfigurationError]:
    """One error for each key that has been given a value and has no effect in this version."""
    problems: list[ConfigurationError] = []
    for path, advice in table.items():
        value: object = file
        keys: list[str] = []
        for name in path.split("."):
            keys.append(_key(value, name))
            value = getattr(value, name, None)
        if value not in (None, False, "", 0, ()):
            problems.append(body.find(*keys).error(f"{'.'.join(keys)} {NOT_AVAILABLE}: {advice}"))
    return problems


def _key(model: object, name: str) -> str:
    """What the field is called in the file."""
    if not isinstance(model, msgspec.Struct):
        return name
    return dict(zip(model.__struct_fields__, model.__struct_encode_fields__, strict=True)).get(name, name)


def absolute(path: str) -> str:
    """The path, from the root, without asking the file system."""
    return os.path.normpath(Path.cwd() / path)
