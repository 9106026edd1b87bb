"""What a policy is made of: a file of Rego, and a file of JSON that it may read as `data`."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from operations.errors import ConfigurationError

MAX_REGO = 1 << 20
MAX_DATA = 16 << 20
"""Bytes. A policy is read by people, and its data is in the worker's memory several times over."""


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """Paths; without a `data` the policy has an empty object."""

    rego: str
    data: str = ""


@dataclass(frozen=True, slots=True)
class Sources:
    """`path` is the Rego file's, for errors; `data` the text of a JSON object."""

    path: str
    module: str
    data: str


def read(files: PolicyFiles) -> Sources:
    """Raises ConfigurationError with the path of what cannot be used."""
    module = _text(files.rego, MAX_REGO, "rego_path")
    return Sources(files.rego, module, _data(files.data) if files.data else "{}")


def _data(path: str) -> str:
    text = _text(path, MAX_DATA, "policy_data_path")
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"the policy's data is no JSON: {error}", file=path) from error
    except RecursionError as error:
        raise ConfigurationError("the policy's data is nested too deeply", file=path) from error
    if not isinstance(found, dict):
        raise ConfigurationError("the policy's data has to be a JSON object, as {\"apis\": […]}", file=path)
    return text


def _text(path: str, limit: int, key: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{key} cannot be read: {error.strerror}", file=path) from error
    if len(content) > limit:
        raise ConfigurationError(f"{key} names a file of more than {limit} bytes", file=path)
    if b"\0" in content:
        raise ConfigurationError(f"{key} names a file that is no text: it has a NUL byte", file=path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{key} names a file that is no UTF-8: {error.reason} at byte {error.start}", file=path) from error
