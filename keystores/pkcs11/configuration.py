"""The settings of KeyManager "pkcs11", and what they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import msgspec

from keystores.pkcs11.profiles import ProfileName
from keystores.pkcs11.protocol import TokenName
from operations.errors import ConfigurationError

_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_URI_ATTRIBUTES = {"token": "label", "serial": "serial", "manufacturer": "manufacturer", "model": "model"}


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """Which token, by which module. `sessions` None: as many as the profile says."""

    module_path: str
    name: TokenName
    profile: ProfileName = ProfileName.AUTO
    sessions: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


class TokenConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token, for key managers and for roots.

    One of token_label, token_serial and token_uri, and one of pin_file, pin_credential and pin_prompt, must be set; a
    program that is started on a terminal asks for the PIN there if none of them is. `sessions` is
    how many to sign with, as the profile says when unset. `environment` is what the module's process has besides the
    program's own, such as SOFTHSM2_CONF or YUBIHSM_PKCS11_CONF.
    """

    module_path: str
    token_label: str | None = None
    token_serial: str | None = None
    token_uri: str | None = None
    pin_file: str | None = None
    pin_credential: str | None = None
    pin_prompt: bool = False
    profile: ProfileName = ProfileName.AUTO
    sessions: int | None = None
    environment: Mapping[str, str] = {}


class CloneConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further token that has clones of the same keys. What is unset is as for the first one, but for its name."""

    module_path: str | None = None
    token_label: str | None = None
    token_serial: str | None = None
    token_uri: str | None = None
    pin_file: str | None = None
    pin_credential: str | None = None
    pin_prompt: bool = False
    profile: ProfileName | None = None
    sessions: int | None = None
    environment: Mapping[str, str] = {}


class Configuration(TokenConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`namespace` tells the keys of several servers on one token apart; it is "server" or "agent" when unset.

    `keys_path` is pkcs11-keys.json in the data directory when unset. `grace` is a Go duration. `clone` blocks, by names
    of the operator's choice, are tokens to sign with while the first is away, in the order of the file.
    """

    namespace: str | None = None
    shared_keys: bool = False
    keys_path: str | None = None
    grace: str = "24h"
    clone: Mapping[str, CloneConfiguration] = {}


_NAMES = ("token_label", "token_serial", "token_uri")
_PINS = ("pin_file", "pin_credential", "pin_prompt")
MOST_SESSIONS = 32


def clone(configuration: Configuration, name: str) -> TokenConfiguration:
    """The settings of a clone, with those of the first token where it has none of its own.

    Raises ConfigurationError for one that is the first token itself.
    """
    own = configuration.clone[name]
    named = any(getattr(own, setting) for setting in _NAMES)
    pinned = any(getattr(own, setting) for setting in _PINS)
    if not named and own.module_path is None and not own.environment:
        raise ConfigurationError(f"clone {name!r}: it names the first token again: set its token_label or token_serial")
    return TokenConfiguration(
        module_path=own.module_path or configuration.module_path,
        **{setting: getattr(own if named else configuration, setting) for setting in _NAMES},
        **{setting: getattr(own if pinned else configuration, setting) for setting in _PINS},
        profile=own.profile or configuration.profile,
        sessions=own.sessions if own.sessions is not None else configuration.sessions,
        environment={**configuration.environment, **own.environment},
    )


def token_spec(configuration: TokenConfiguration) -> TokenSpec:
    """Raises ConfigurationError."""
    if configuration.sessions is not None and not 1 <= configuration.sessions <= MOST_SESSIONS:
        raise ConfigurationError(f"sessions: {configuration.sessions} must be from 1 to {MOST_SESSIONS}")
    for name, value in configuration.environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise ConfigurationError(f"environment: {name!r} cannot be the name of a variable with that value")
    return TokenSpec(
        module_path=configuration.module_path,
        name=token_name(configuration),
        profile=configuration.profile,
        sessions=configuration.sessions,
        environment=configuration.environment,
    )


def token_name(configuration: TokenConfiguration) -> TokenName:
    """Raises ConfigurationError unless exactly one setting names the token."""
    named = [setting for setting in _NAMES if getattr(configuration, setting)]
    if len(named) != 1:
        raise ConfigurationError("pkcs11: set one of token_label, token_serial and token_uri")
    if configuration.token_uri:
        attributes = token_uri_attributes(configuration.token_uri)
        return TokenName(f"token_uri {configuration.token_uri!r}", **attributes)
    if configuration.token_serial:
        return TokenName(f"token_serial {configuration.token_serial!r}", serial=configuration.token_serial)
    return TokenName(f"token_label {configuration.token_label!r}", label=configuration.token_label)


def token_uri_attributes(uri: str) -> dict[str, str]:
    """The token's attributes of a PKCS#11 URI (RFC 7512, 2.3): token, serial, manufacturer, model.

    Raises ConfigurationError for other attributes: what is not compared must not look as if it were.
    """
    scheme, _, path = uri.partition(":")
    if scheme != "pkcs11" or "?" in path:
        raise ConfigurationError(f"token_uri: {uri!r} is not of the form pkcs11:token=…;serial=… without a query")
    attributes: dict[str, str] = {}
    for part in path.split(";"):
        name, separator, value = part.partition("=")
        if not separator or name not in _URI_ATTRIBUTES or _URI_ATTRIBUTES[name] in attributes:
            known = ", ".join(_URI_ATTRIBUTES)
            raise ConfigurationError(f"token_uri: {part!r} in {uri!r} is not one of {known}, each given once")
        attributes[_URI_ATTRIBUTES[name]] = unquote(value)
    return attributes


def namespace(configuration: Configuration, default: str) -> str:
    name = default if configuration.namespace is None else configuration.namespace
    if not _NAMESPACE.fullmatch(name):
        raise ConfigurationError(f"namespace: {name!r} must have 1 to 64 letters, digits, dots, dashes or underscores")
    return name


def keys_path(configuration: Configuration, data_dir: str | None) -> Path:
    if configuration.keys_path:
        return Path(configuration.keys_path)
    if data_dir:
        return Path(data_dir) / "pkcs11-keys.json"
    raise ConfigurationError("pkcs11: set keys_path, the file that says which key in the token has which id")
