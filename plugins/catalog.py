"""The catalogue: which plugin types a program has, which plugins are built in, and how one is made from its block.

A program's own catalogue is a table of `Builtin`s; a module is imported when a configuration names its plugin.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from operations import config
from operations.errors import ConfigurationError, ConfigurationErrors, raise_problems
from operations.quoting import quote
from plugins.blocks import PluginBlock, read
from plugins.context import PluginContext
from plugins.external import loading
from plugins.external.loading import Facades

__all__ = [
    "AGENT", "SERVER", "Builtin", "Builtins", "Count", "Facades", "PluginBlock", "PluginContext", "check", "load",
    "read",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Builtin:
    """Names `module:attribute` of a msgspec Struct and of `async def load(configuration, context) -> plugin`."""

    configuration: str
    load: str


@runtime_checkable
class NamesFiles(Protocol):
    """A configuration that names files which must be there before anything is loaded."""

    def check_files(self) -> None:
        """Raises ConfigurationError, without its place, for files that cannot be used."""
        ...


Builtins = Mapping[str, Mapping[str, Builtin]]
"""Built-in plugins by type and name."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many enabled plugins of a type there may be."""

    least: int = 0
    most: int | None = None

    def fault(self, number: int) -> str | None:
        """What is wrong with a number of plugins, and what to do."""
        if self.least == self.most and number != self.least:
            return f"enable exactly {self.least}, not {number}"
        if number < self.least:
            return f"enable {self.least} or more, not {number}"
        if self.most is not None and number > self.most:
            return f"enable {self.most} or fewer, not {number}"
        return None


_EXACTLY_ONE = Count(1, 1)

SERVER: Mapping[str, Count] = {
    "BundlePublisher": Count(),
    "CredentialComposer": Count(),
    "DataStore": _EXACTLY_ONE,
    "KeyManager": _EXACTLY_ONE,
    "NodeAttestor": Count(),
    "Notifier": Count(),
    "UpstreamAuthority": Count(0, 1),
}
"""The server's plugin types."""

AGENT: Mapping[str, Count] = {
    "KeyManager": _EXACTLY_ONE,
    "NodeAttestor": _EXACTLY_ONE,
    "SVIDStore": Count(),
    "WorkloadAttestor": Count(1),
}
"""The agent's plugin types."""


_NO_FACADES: Facades = {}


def check(
    blocks: Sequence[PluginBlock],
    types: Mapping[str, Count],
    builtins: Builtins,
    file: str,
    facades: Facades = _NO_FACADES,
    *,
    files: bool = False,
) -> None:
    """Check types, names, numbers and every key of the enabled plugins, without loading any.

    With `files`, those that a configuration names are read, too. Of an external plugin it is checked that its type may
    be external (`facades`) and that it can be started.

    Raises ConfigurationError, or ConfigurationErrors, with file and line.
    """
    problems: list[ConfigurationError] = []
    for block in blocks:
        try:
            _check_type(block, types)
            if block.enabled and block.command is not None:
                loading.check(block, facades)
            elif block.enabled:
                configuration = _configuration(block, _builtin(block, builtins))
                if files and isinstance(configuration, NamesFiles):
                    _check_files(block, configuration)
        except ConfigurationErrors as errors:
            problems.extend(errors.problems)
        except ConfigurationError as error:
            problems.append(error)
    for name, count in types.items():
        enabled = [block for block in blocks if block.type == name and block.enabled]
        if fault := count.fault(len(enabled)):
            line = enabled[-1].position.line if enabled else None
            reason = f"plugins of type {name}: {fault}"
            problems.append(ConfigurationError(reason, file=file, line=line))
    raise_problems(problems)


async def load(block: PluginBlock, builtins: Builtins, context: PluginContext) -> Any:
    """Make the plugin that a block describes.

    Raises ConfigurationError with file and line for a plugin that does not exist or a setting that is wrong, and
    whatever SpireError the plugin's own start raises.
    """
    if block.command is not None:
        return await loading.load(block, context.external, context.trust_domain)
    builtin = _builtin(block, builtins)
    configuration = _configuration(block, builtin)
    try:
        return await _attribute(builtin.load)(configuration, context)
    except ConfigurationError as error:
        if error.file is not None:
            raise
        raise block.error(error.reason) from error


def _check_type(block: PluginBlock, types: Mapping[str, Count]) -> None:
    if block.type not in types:
        known = ", ".join(types)
        raise block.position.error(f"unsupported plugin type {quote(block.type)}: use one of {known}")


def _builtin(block: PluginBlock, builtins: Builtins) -> Builtin:
    known = builtins.get(block.type, {})
    builtin = known.get(block.name)
    if builtin is None:
        advice = f"this version has {', '.join(sorted(known))}" if known else "this version has none"
        reason = f"no built-in plugin {quote(block.name)} for type {quote(block.type)}: {advice}"
        raise block.position.error(reason)
    return builtin


def _configuration(block: PluginBlock, builtin: Builtin) -> object:
    return config.bind(_attribute(builtin.configuration), block.data, section=str(block))


def _check_files(block: PluginBlock, configuration: NamesFiles) -> None:
    try:
        configuration.check_files()
    except ConfigurationError as error:
        raise block.error(error.reason) from error


def _attribute(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
