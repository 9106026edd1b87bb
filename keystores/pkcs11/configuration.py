"""The settings of KeyManager "pkcs11", and what they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote

import msgspec

from keystores.pkcs11.profiles import ProfileName
from operations import duration
from operations.errors import ConfigurationError

_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_URI_ATTRIBUTES = {"token": "label", "serial": "serial", "manufacturer": "manufacturer", "model": "model"}


@dataclass(frozen=True, slots=True)
class TokenName:
    """The attributes that a token must have; None matches any. `text` is how the configuration names it."""

    text: str
    label: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of token_label, token_serial and token_uri, and one of pin_file and pin_credential, must be set.

    `namespace` tells the keys of several servers on one token apart; it is "server" or "agent" when unset.
    `keys_path` is pkcs11-keys.json in the data directory when unset. `grace` is a Go duration.
    """

    module_path: str
    token_label: str | None = None
    token_serial: str | None = None
    token_uri: str | None = None
    pin_file: str | None = None
    pin_credential: str | None = None
    namespace: str | None = None
    shared_keys: bool = False
    profile: ProfileName = ProfileName.AUTO
    keys_path: str | None = None
    grace: str = "24h"


def token_name(configuration: Configuration) -> TokenName:
    """Raises ConfigurationError unless exactly one setting names the token."""
    settings = ("token_label", "token_serial", "token_uri")
    named = [setting for setting in settings if getattr(configuration, setting)]
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


def grace(configuration: Configuration) -> timedelta:
    try:
        period = duration.parse(configuration.grace)
    except ValueError as error:
        raise ConfigurationError(f"grace: {error}") from error
    if period < timedelta():
        raise ConfigurationError("grace: it must not be negative")
    return period
