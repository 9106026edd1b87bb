"""What a `plugins` section says: which plugins, in which order, with which data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from operations import config, hcl
from operations.checks import Checks
from operations.errors import ConfigurationError, raise_problems
from operations.hcl import Attribute, Block, Body, Position, name_of
from operations.quoting import quote


@dataclass(frozen=True, slots=True)
class PluginBlock:
    """One plugin. `data` is the inside of plugin_data, or of the file that plugin_data_file names.

    An external plugin has a `command`; `checksum` is the hex SHA-256 of its executable. Its data is its own business:
    it gets the text of plugin_data (None where there is no such block or nothing in it) or of `data_file`, read when
    the plugin is loaded and again on demand, and `data` is empty.
    """

    type: str
    name: str
    data: Body
    position: Position
    enabled: bool = True
    command: str | None = None
    args: tuple[str, ...] = ()
    checksum: str | None = None
    data_text: str | None = None
    data_file: str | None = None

    def __str__(self) -> str:
        return f"{self.type} {quote(self.name)}"

    def error(self, reason: str) -> ConfigurationError:
        return self.position.error(f"{self}: {reason}")


def key_manager_of(blocks: Sequence[PluginBlock]) -> str:
    """The name of the key manager, "" without one."""
    return next((block.name for block in blocks if block.type == "KeyManager" and block.enabled), "")


class _Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of every plugin's block."""

    plugin_cmd: str | None = None
    plugin_args: tuple[str, ...] = ()
    plugin_checksum: str | None = None
    plugin_data: Body | None = None
    plugin_data_file: str | None = None
    enabled: bool = True


def read(plugins: Body) -> Sequence[PluginBlock]:
    """The plugins of a section, in the order written. Raises ConfigurationError with file and line.

    SPIRE takes `KeyManager "disk" { … }` as well as `KeyManager { disk { … } }`.
    """
    problems: list[ConfigurationError] = []
    blocks = _read(plugins, problems)
    raise_problems(problems)
    return blocks


def _read(plugins: Body, problems: list[ConfigurationError]) -> tuple[PluginBlock, ...]:
    """Those that can be read; what is wrong with the others goes to `problems`."""
    blocks: dict[tuple[str, str], PluginBlock] = {}
    for type_, name, body, position in _declarations(plugins, problems):
        try:
            block = _block(type_, name, body, position)
        except ConfigurationError as error:
            problems.append(error)
            continue
        if (type_, name) in blocks:
            problems.append(position.error(f"{type_} {quote(name)} is configured twice: keep one block"))
        blocks[type_, name] = block
    return tuple(blocks.values())


def read_section(plugins: Body | None, checks: Checks) -> tuple[PluginBlock, ...]:
    """Those that can be read, of a configuration that must have the section; faults go to `checks`."""
    if plugins is None:
        checks.note(checks.place().error("plugins section must be configured"))
        return ()
    problems: list[ConfigurationError] = []
    blocks = _read(plugins, problems)
    checks.note(*problems)
    return blocks


def _declarations(plugins: Body, problems: list[ConfigurationError]) -> Iterator[tuple[str, str, Body, Position]]:
    for labels, body, position in _blocks(plugins, (), problems):
        yield labels[0], labels[1], body, position


def _blocks(
    body: Body, outer: tuple[str, ...], problems: list[ConfigurationError]
) -> Iterator[tuple[tuple[str, ...], Body, Position]]:
    """Blocks by type and name, whether these stand in one line or are nested."""
    for item in body.items:
        for labels, inside in _bodies(item, problems):
            names = (*outer, *labels)
            if len(names) < 2:
                yield from _blocks(inside, names, problems)
            else:
                yield names[:2], _nested(names[2:], inside, item.position), item.position


def _bodies(item: Attribute | Block, problems: list[ConfigurationError]) -> Iterator[tuple[tuple[str, ...], Body]]:
    if isinstance(item, Block):
        yield (item.type, *item.labels), item.body
        return
    values = item.value if isinstance(item.value, tuple) else (item.value,)
    for value in values:
        if isinstance(value, Body):
            yield (item.name,), value
        else:
            reason = f'expected a plugin such as KeyManager "disk" {{ … }}, found {quote(name_of(item))} = …'
            problems.append(item.position.error(reason))


def _nested(labels: tuple[str, ...], body: Body, position: Position) -> Body:
    """`KeyManager "disk" plugin_data {` is short for a plugin_data block inside."""
    if not labels:
        return body
    return Body((Block(labels[0], labels[1:], body, position),), position, body.source)


def _block(type_: str, name: str, body: Body, position: Position) -> PluginBlock:
    settings = config.bind(_Settings, body, section=f"{type_} {quote(name)}")
    data = settings.plugin_data
    if data is not None and settings.plugin_data_file is not None:
        raise body.find("plugin_data_file").error(
            f"{type_} {quote(name)}: plugin_data and plugin_data_file exclude each other: keep one"
        )
    external = bool(settings.plugin_cmd)
    if settings.plugin_data_file is not None and settings.enabled and not external:
        data = _load(settings.plugin_data_file, body.find("plugin_data_file"))
    return PluginBlock(
        type=type_,
        name=name,
        data=Body((), position, "") if data is None or external else data,
        position=position,
        enabled=settings.enabled,
        command=settings.plugin_cmd or None,
        args=settings.plugin_args,
        checksum=settings.plugin_checksum or None,
        data_text=data.source.strip() if data is not None and data.items else None,
        data_file=settings.plugin_data_file,
    )


def _load(path: str, position: Position) -> Body:
    try:
        return hcl.load(path)
    except ConfigurationError as error:
        if error.line is not None:
            raise
        # SPIRE's words.
        cause = error.__cause__
        reason = (cause.strerror or str(cause)).lower() if isinstance(cause, OSError) else error.reason
        raise position.error(f"failed to read plugin configuration: open {path}: {reason}") from error
