"""The federation block: where this trust domain's bundle is served, and where those of others are fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import msgspec

from identity.spiffeid import SpiffeId, TrustDomain
from operations import config, duration
from operations.checks import Checks
from operations.errors import ConfigurationError, ConfigurationErrors, InvalidArgument
from operations.hcl import Attribute, Block, Body, Position, name_of
from operations.quoting import quote
from server.config import file

DEFAULT_REFRESH_HINT = timedelta(minutes=5)
SHORTEST_REFRESH = timedelta(minutes=1)
"""SPIRE fetches no bundle more often."""
LONGEST_REFRESH = timedelta(hours=24)
DEFAULT_SYNC_INTERVAL = timedelta(hours=1)

_BLOCK = "federation.bundle_endpoint"
_T = TypeVar("_T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class ServingFiles:
    """Certificate and key in PEM files that are looked at again after each interval."""

    cert_file_path: str
    key_file_path: str
    file_sync_interval: timedelta


@dataclass(frozen=True, slots=True)
class Acme:
    """An account that certificates are ordered with (RFC 8555). No `directory_url` means Let's Encrypt's."""

    directory_url: str
    domain_name: str
    email: str
    tos_accepted: bool


@dataclass(frozen=True, slots=True)
class HttpsSpiffe:
    """The endpoint shows the server's own X509-SVID."""


HttpsWeb = ServingFiles | Acme
"""The endpoint shows a certificate of the web's CAs."""


@dataclass(frozen=True, slots=True)
class BundleEndpoint:
    address: str
    port: int
    refresh_hint: timedelta
    profile: HttpsSpiffe | HttpsWeb


@dataclass(frozen=True, slots=True)
class Federated:
    """Another trust domain's bundle endpoint. With an `endpoint_id` it is https_spiffe, without it https_web."""

    trust_domain: TrustDomain
    url: str
    endpoint_id: SpiffeId | None = None


@dataclass(frozen=True, slots=True)
class Federation:
    bundle_endpoint: BundleEndpoint | None = None
    federates_with: tuple[Federated, ...] = ()


def read(section: file.Federation | None, own: TrustDomain, checks: Checks) -> Federation:
    """The block of the trust domain `own`; its faults go to `checks`."""
    if section is None:
        return Federation()
    endpoint = None if section.bundle_endpoint is None else _endpoint(section.bundle_endpoint, checks)
    return Federation(endpoint, _federates_with(section.federates_with, own, checks))


def warnings(section: file.Federation | None, federation: Federation) -> Sequence[str]:
    """What may stand in the block and is better put otherwise."""
    lines: list[str] = []
    endpoint = federation.bundle_endpoint
    if section is None or section.bundle_endpoint is None or endpoint is None:
        return lines
    if section.bundle_endpoint.acme is not None:
        lines.append(f'{_BLOCK}.acme is deprecated: put the acme block into profile "https_web" {{ }}')
    elif section.bundle_endpoint.profile is None:
        lines.append(f'{_BLOCK} has no profile, so it is https_spiffe: write profile "https_spiffe" {{ }}')
    if not endpoint.port:
        lines.append(f"{_BLOCK}.port is not set, so each start takes another one: set it")
    if endpoint.refresh_hint >= LONGEST_REFRESH:
        lines.append(f"{_BLOCK}.refresh_hint is long: others see a sudden change of the bundle that late; 5m is usual")
    if endpoint.refresh_hint < SHORTEST_REFRESH:
        lines.append(f"{_BLOCK}.refresh_hint is too short: SPIRE fetches a bundle once a minute at most")
    return lines


def _endpoint(section: file.BundleEndpoint, checks: Checks) -> BundleEndpoint:
    keys = _BLOCK.split(".")
    port = section.port
    checks.require(0 <= port < 65536, f"{_BLOCK}.port {port} is no TCP port: use 1 to 65535", *keys, "port")
    if section.acme is not None and section.profile is not None:
        checks.fault(f"{_BLOCK}: acme and profile exclude each other: keep the profile", *keys, "acme")
    profile: HttpsSpiffe | HttpsWeb | None = HttpsSpiffe()
    if section.profile is not None:
        profile = _profile(section.profile, checks)
    elif section.acme is not None:
        profile = _acme(section.acme, f"{_BLOCK}.acme", checks, email_needed=True)
    return BundleEndpoint(
        address=(section.address or "0.0.0.0").strip("[]"),  # noqa: S104 SPIRE's default
        port=port,
        refresh_hint=_refresh_hint(section.refresh_hint, checks),
        profile=profile or HttpsSpiffe(),
    )


def _refresh_hint(text: str, checks: Checks) -> timedelta:
    if not text:
        return DEFAULT_REFRESH_HINT
    key = f"{_BLOCK}.refresh_hint"
    words = f"{key} {quote(text)} is no duration such as 5m: "
    hint = checks.attempt(lambda: duration.parse(text), DEFAULT_REFRESH_HINT, key, words)
    checks.require(hint >= timedelta(), f"{key} must not be less than 0: it is {quote(text)}", *key.split("."))
    return hint


def _profile(body: Body, checks: Checks) -> HttpsSpiffe | HttpsWeb | None:
    """None after a fault."""
    path = f"{_BLOCK}.profile"
    section = _one_profile(file.EndpointProfile, body, path, checks)
    if section is None or section.https_web is None:
        return None if section is None else HttpsSpiffe()
    web, inside = section.https_web, f'{path} "https_web"'
    if web.acme is not None and web.serving_cert_file is not None:
        checks.note(body.position.error(f"{inside}: acme and serving_cert_file exclude each other: keep one"))
    elif web.acme is not None:
        return _acme(web.acme, f"{inside}.acme", checks)
    elif web.serving_cert_file is not None:
        return _serving_files(web.serving_cert_file, f"{inside}.serving_cert_file", checks)
    else:
        checks.note(body.position.error(f"{inside} needs an acme or a serving_cert_file block"))
    return None


def _acme(body: Body, path: str, checks: Checks, *, email_needed: bool = False) -> Acme | None:
    """SPIRE wants a contact in the deprecated block alone."""
    section = _bind(file.Acme, body, path, checks)
    if section is None:
        return None
    for name in ("domain_name", "email") if email_needed else ("domain_name",):
        _require(getattr(section, name), body, path, name, checks)
    if section.domain_name:
        from transport.acme.settings import AcmeSettings

        try:
            AcmeSettings(section.directory_url, section.domain_name, section.email, section.tos_accepted)
        except ConfigurationError as error:
            checks.note(body.position.error(f"{path}: {error.reason.removeprefix('acme: ')}"))
    return Acme(section.directory_url, section.domain_name, section.email, section.tos_accepted)


def _serving_files(body: Body, path: str, checks: Checks) -> ServingFiles | None:
    section = _bind(file.ServingCertFile, body, path, checks)
    if section is None:
        return None
    for name in ("cert_file_path", "key_file_path"):
        _require(getattr(section, name), body, path, name, checks)
    text = section.file_sync_interval
    if not text:
        # SPIRE documents a default and then cannot read it.
        checks.note(body.position.error(f'{path}.file_sync_interval must be configured, for example "1h"'))
        return None
    where = body.find("file_sync_interval")
    try:
        interval = duration.parse(text) or DEFAULT_SYNC_INTERVAL
    except ValueError as error:
        reason = f"{path}.file_sync_interval {quote(text)} is no duration such as 1h: {error}"
        checks.note(where.error(reason))
        return None
    if interval < timedelta():
        checks.note(where.error(f"{path}.file_sync_interval must be longer than 0: it is {quote(text)}"))
    return ServingFiles(section.cert_file_path, section.key_file_path, interval)


def _federates_with(bodies: Mapping[str, Body], own: TrustDomain, checks: Checks) -> tuple[Federated, ...]:
    found: dict[TrustDomain, Federated] = {}
    for name, body in bodies.items():
        path = f"federation.federates_with {quote(name)}"
        try:
            trust_domain = TrustDomain.parse(name)
        except InvalidArgument as error:
            checks.note(body.position.error(f"{path} names no trust domain: {error}"))
            continue
        if trust_domain == own:
            checks.note(body.position.error(f"{path} is this server's own trust domain: remove the block"))
        if trust_domain in found:
            checks.note(body.position.error(f"{path} is configured twice: keep one block"))
        federated = _federated(trust_domain, body, path, checks)
        if federated is not None:
            found[trust_domain] = federated
    return tuple(found.values())


def _federated(trust_domain: TrustDomain, body: Body, path: str, checks: Checks) -> Federated | None:
    section = _bind(file.FederatesWith, body, path, checks)
    if section is None:
        return None
    url, at = section.bundle_endpoint_url, f"{path}.bundle_endpoint_url"
    if _require(url, body, path, "bundle_endpoint_url", checks):
        checks.note(*_url_faults(url, at, body.find("bundle_endpoint_url")))
    if section.bundle_endpoint_profile is None:
        advice = '"https_web" { } or "https_spiffe" { endpoint_spiffe_id = "spiffe://…" }'
        checks.note(body.position.error(f"{path}.bundle_endpoint_profile must be configured: {advice}"))
        return None
    inside = section.bundle_endpoint_profile
    profile = _one_profile(file.FederatedProfile, inside, f"{path}.bundle_endpoint_profile", checks)
    if profile is None:
        return None
    if profile.https_spiffe is None:
        return Federated(trust_domain, url)
    text = profile.https_spiffe.endpoint_spiffe_id
    where = f"{path}.endpoint_spiffe_id"
    try:
        return Federated(trust_domain, url, SpiffeId.parse(text))
    except InvalidArgument as error:
        line = inside.find("https_spiffe", "endpoint_spiffe_id")
        checks.note(line.error(f"{where} {quote(text)} is no SPIFFE ID: {error}" if text else f"{where} is missing"))
        return None


def _one_profile(model: type[_T], body: Body, path: str, checks: Checks) -> _T | None:
    known = ("https_spiffe", "https_web")
    if len(body.items) != 1 or name_of(body.items[0]).lower() not in known:
        found = ", ".join(quote(name_of(item)) for item in body.items) or "nothing"
        checks.note(body.position.error(f'{path} takes one profile, "https_spiffe" or "https_web": it has {found}'))
        return None
    return _bind(model, Body((_nested(body.items[0]),), body.position, body.source), path, checks)


def _nested(item: Attribute | Block) -> Attribute | Block:
    """`profile "https_web" "acme" {` is short for `profile "https_web" { acme {`."""
    if isinstance(item, Attribute) or not item.labels:
        return item
    inner = _nested(Block(item.labels[0], item.labels[1:], item.body, item.position))
    return Block(item.type, (), Body((inner,), item.position, item.source), item.position)


def _bind(model: type[_T], body: Body, path: str, checks: Checks) -> _T | None:
    try:
        return config.bind(model, body, section=path)
    except ConfigurationErrors as errors:
        checks.note(*errors.problems)
    except ConfigurationError as error:
        checks.note(error)
    return None


def _require(value: object, body: Body, path: str, name: str, checks: Checks) -> bool:
    if not value:
        checks.note(body.find(name).error(f"{path}.{name} must be configured"))
    return bool(value)


def _url_faults(text: str, words: str, where: Position) -> Sequence[ConfigurationError]:
    from transport.web.urls import Url

    try:
        url = Url.parse(text)
    except InvalidArgument as error:
        return [where.error(f"{words}: {error}")]
    if url.scheme != "https":
        return [where.error(f"{words} must use HTTPS: it is {quote(text)}")]
    return []
