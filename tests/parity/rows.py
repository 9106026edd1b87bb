"""What SPIRE 1.16 has, by name, and how each of it stands here: read off the code, never claimed by hand."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import msgspec

import server.rpc
from agent.catalog import BUILTINS as AGENT_BUILTINS
from agent.cli.main import COMMANDS as AGENT_COMMANDS
from agent.config.file import AgentFile
from agent.config.settings import UNAVAILABLE as AGENT_UNAVAILABLE
from operations.hcl import Body
from plugins.blocks import PluginBlock
from plugins.catalog import Builtins
from server.authorization import POLICY, Role
from server.catalog import BUILTINS as SERVER_BUILTINS
from server.cli.main import COMMANDS as SERVER_COMMANDS
from server.config import caches
from server.config.file import ServerFile
from server.config.settings import UNAVAILABLE as SERVER_UNAVAILABLE
from server.rpc.services import Service

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CODE = ("operations", "transport", "plugins", "keystores", "attestors", "authorities", "governance", "server", "agent")
CHECKED_ONLY = {
    *(f"server experimental.{name}" for name in caches.DURATIONS),
}
"""What is read to see whether it can be, or to say that it does nothing."""

ANSWERED_NO: dict[str, str] = {"spire.api.server.bundle.v1.Bundle/PublishWITAuthority": "Unimplemented"}
"""What is there so as to say by name that it is not, and how."""
MODELS = ("server/config/file.py", "agent/config/file.py", "operations/sections.py")


class Standing(Enum):
    WORKS = "works"
    REFUSED = "refused by name"
    NO_EFFECT = "accepted, without effect"


@dataclass(frozen=True)
class Row:
    """One name on a list of SPIRE's, such as `server ca_ttl`. `missing` says what of it is not there."""

    name: str
    standing: Standing
    missing: str = ""


def rows() -> Mapping[str, list[Row]]:
    """All rows by list."""
    return {
        "Commands": list(commands()),
        "Server methods": list(methods()),
        "Settings": list(settings()),
        "Plugins": list(plugins()),
    }


def commands() -> Iterator[Row]:
    """A command works when it is there with each flag that SPIRE's has."""
    known = {"spire-server": SERVER_COMMANDS, "spire-agent": AGENT_COMMANDS}
    for name, flags in _list("commands"):
        program, _, command = name.partition(" ")
        found = next((each for each in known[program] if each.name == command), None)
        if found is None:
            yield Row(name, Standing.REFUSED, "the command")
            continue
        lacking = ", ".join(sorted(set(flags) - {flag.name for flag in found.flags()[0]}))
        refusal = lacking or ANSWERED_NO.get(name, "")
        yield Row(name, Standing.REFUSED if refusal else Standing.WORKS, refusal)


def methods() -> Iterator[Row]:
    """A method works when a service serves it, to the callers that SPIRE serves it to."""
    served = set(_served())
    roles = {"any": Role.ANY, "local": Role.LOCAL, "admin": Role.ADMIN, "agent": Role.AGENT}
    roles["downstream"] = Role.DOWNSTREAM
    for name, callers in _list("methods"):
        allowed = functools.reduce(Role.__or__, (roles[caller] for caller in callers))
        assert POLICY[f"/{name}"] == allowed, f"{name} is for {callers}"
        refused = name not in served or name in ANSWERED_NO
        yield Row(name, Standing.REFUSED if refused else Standing.WORKS, "Unimplemented" if refused else "")


def settings() -> Iterator[Row]:
    """A setting works when its file's model has it, it is not refused, and some line of code reads it."""
    for line, _ in _list("settings"):
        section, key = line.split(" ")
        standing = Standing.NO_EFFECT if line in CHECKED_ONLY else _setting(section, key)
        if refusal := ANSWERED_NO.get(line, ""):
            standing = Standing.REFUSED
        yield Row(line, standing, refusal)


def plugins() -> Iterator[Row]:
    """A plugin works when it is built in with each setting that SPIRE's has."""
    known: Mapping[str, Builtins] = {"server": SERVER_BUILTINS, "agent": AGENT_BUILTINS}
    for line, keys in _list("plugins"):
        program, kind, name = line.split(" ")
        builtin = known[program].get(kind, {}).get(name)
        if builtin is None:
            yield Row(line, Standing.REFUSED, "the plugin")
            continue
        module, _, attribute = builtin.configuration.partition(":")
        model: type[msgspec.Struct] = getattr(importlib.import_module(module), attribute)
        lacking = set(keys) - set(_names(model))
        yield Row(line, Standing.REFUSED if lacking else Standing.WORKS, ", ".join(sorted(lacking)))


def _names(model: type[msgspec.Struct]) -> Iterator[str]:
    """The settings of a plugin, with those of its blocks: the lists have them side by side."""
    hints = typing.get_type_hints(model)
    for field, name in zip(model.__struct_fields__, model.__struct_encode_fields__, strict=True):
        yield name
        inner = _inner(hints[field])
        if inner is not None and inner is not Body:
            yield from _names(inner)


def reasons() -> dict[str, str]:
    """Why what does not work does not, by the beginning of the row's name; the longest that fits counts."""
    found: dict[str, str] = {}
    for line in (HERE / "reasons.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, reason = line.partition(": ")
            found[name] = reason
    return found


def _list(name: str) -> Iterator[tuple[str, list[str]]]:
    for line in (HERE / "lists" / f"{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            row, _, rest = line.partition(":")
            yield row, rest.split()


def _served() -> Iterator[str]:
    for info in pkgutil.iter_modules(server.rpc.__path__, "server.rpc."):
        for service in vars(importlib.import_module(info.name)).values():
            if isinstance(service, type) and service.__module__ == info.name and hasattr(service, "DESCRIPTOR"):
                # The table of handlers does not depend on what the service was made with.
                yield from _methods(cast("Service", object.__new__(service)))


def _methods(service: Service) -> Iterator[str]:
    return (f"{service.DESCRIPTOR.full_name}/{method}" for method in service.handlers())


def _setting(section: str, key: str) -> Standing:
    if section == "plugin":
        field = {"plugin_cmd": "command", "plugin_args": "args", "plugin_checksum": "checksum", "plugin_data": "data"}
        there = field.get(key, key) in {*PluginBlock.__slots__, "plugin_data_file"}
        return Standing.WORKS if there else Standing.REFUSED
    programs: list[tuple[type[msgspec.Struct], Mapping[str, str]]] = []
    if section != "agent":
        programs.append((ServerFile, SERVER_UNAVAILABLE))
    if section != "server":
        programs.append((AgentFile, AGENT_UNAVAILABLE))
    found = {_standing(model, unavailable, section, key) for model, unavailable in programs}
    return next(each for each in (Standing.REFUSED, Standing.NO_EFFECT, Standing.WORKS) if each in found)


def _standing(model: type[msgspec.Struct], unavailable: Mapping[str, str], section: str, key: str) -> Standing:
    path = ""
    attribute = ""
    kind: Any = model
    for name in (section, *(part for part in key.split(".") if part != "*")):
        if kind is Body:
            break  # read by hand, or refused whole
        fields = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
        if name not in fields:
            return Standing.REFUSED
        attribute = fields[name]
        path = f"{path}.{attribute}".lstrip(".")
        if path in unavailable:
            return Standing.REFUSED
        kind = _inner(typing.get_type_hints(kind)[attribute])
    if any(each.startswith(f"{path}.") for each in unavailable) and _all_refused(kind, path, unavailable):
        return Standing.REFUSED
    return Standing.WORKS if attribute in _read() or kind is not None else Standing.NO_EFFECT


def _all_refused(kind: Any, path: str, unavailable: Mapping[str, str]) -> bool:
    return (
        kind is not None
        and kind is not Body
        and all(f"{path}.{each}" in unavailable for each in kind.__struct_fields__)
    )


def _inner(hint: Any) -> Any:
    """The section in a type such as `Tls | None` or a tuple of sections; None for a plain value."""
    if isinstance(hint, type) and (hint is Body or issubclass(hint, msgspec.Struct)):
        return hint
    if isinstance(hint, types.GenericAlias | types.UnionType) or typing.get_origin(hint) is not None:
        return next((found for each in typing.get_args(hint) if (found := _inner(each)) is not None), None)
    return None


@functools.cache
def _read() -> frozenset[str]:
    """Names of attributes that code reads, besides the models themselves."""
    found: set[str] = set()
    for package in CODE:
        for path in (ROOT / package).rglob("*.py"):
            if str(path.relative_to(ROOT)) in MODELS:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    found.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)  # getattr(server, "ca_ttl")
    return frozenset(found)
