"""Command lines in the manner of SPIRE's programs: Go's flag package below a tree of commands.

Texts, streams and statuses are what scripts and operators know: usage goes to standard error, help ends with 0, a
wrong flag with 1, an unknown command with 127.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from operations import duration
from operations.errors import InvalidArgument, SpireError
from operations.quoting import quote

T = TypeVar("T")
HELP_REQUESTED = "flag: help requested"
UNKNOWN_COMMAND = 127
COLUMNS = 80
_INDENT = "\n    \t"
_GLUE = "\0"
"""A blank at which no line ends."""


class FlagError(InvalidArgument):
    """A command line that cannot be used. The reason and the usage were printed already."""


class HelpRequested(FlagError):
    """-h or -help. The usage was printed already."""


@dataclass(slots=True)
class Flag(Generic[T]):
    """One flag and, after parsing, its value. `given` says whether the command line had it."""

    name: str
    usage: str
    value: T
    read: Callable[[str, T], T]
    placeholder: str
    default: str = ""
    boolean: bool = False
    given: bool = False

    def set(self, text: str) -> None:
        self.value = self.read(text, self.value)
        self.given = True

    def help(self) -> str:
        """Go's layout; a description that is wider than a terminal goes on below itself."""
        placeholder, usage = self.described()
        line = f"  -{self.name}" + (f" {placeholder}" if placeholder else "")
        line += "\t" if len(line) <= 4 else _INDENT
        if self.default:
            usage += " " + f"(default {self.default})".replace(" ", _GLUE)
        return line + _INDENT.join(_wrapped(usage)).replace(_GLUE, " ")

    def described(self) -> tuple[str, str]:
        """What stands for the value, "" for a switch, and the usage. A name in back quotes inside the usage is it."""
        match = re.search(r"`([^`]*)`", self.usage)
        if match is None:
            return self.placeholder, self.usage
        return match[1], self.usage.replace(match[0], match[1], 1)


class FlagSet:
    """The flags of one command. Each method declares a flag and returns it; its `.value` is read after `parse`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._flags: dict[str, Flag[Any]] = {}

    def string(self, name: str, default: str, usage: str) -> Flag[str]:
        return self._add(Flag(name, usage, default, lambda text, _: text, "string", quote(default) if default else ""))

    def integer(self, name: str, default: int, usage: str) -> Flag[int]:
        return self._add(Flag(name, usage, default, lambda text, _: _integer(text), "int", str(default or "")))

    def boolean(self, name: str, usage: str, *, default: bool = False) -> Flag[bool]:
        shown = "true" if default else ""
        return self._add(Flag(name, usage, default, lambda text, _: _boolean(text), "", shown, boolean=True))

    def duration(self, name: str, default: timedelta, usage: str, *, placeholder: str = "value") -> Flag[timedelta]:
        """SPIRE's own duration flags show `value`; those of Go's flag package show `duration`."""
        shown = duration.text(default) if default else ""
        return self._add(Flag(name, usage, default, lambda text, _: duration.parse(text), placeholder, shown))

    def strings(self, name: str, usage: str) -> Flag[tuple[str, ...]]:
        """A flag that may be given more than once."""
        return self._add(Flag(name, usage, (), lambda text, earlier: (*earlier, text), "value"))

    def comma_strings(self, name: str, usage: str) -> Flag[tuple[str, ...]]:
        """A list in one value, separated by commas; the last one given counts."""
        return self._add(Flag(name, usage, (), lambda text, _: tuple(text.split(",")), "value"))

    def custom(self, name: str, default: T, usage: str, read: Callable[[str, T], T], *, shown: str = "") -> Flag[T]:
        """`read` takes the text and the value so far; its ValueError ends the command with that text."""
        return self._add(Flag(name, usage, default, read, "value", shown))

    def parse(self, args: Sequence[str]) -> list[str]:
        """Set the flags from `args` and return what follows them. Raises FlagError, after printing, as Go does."""
        rest = list(args)
        while rest and len(rest[0]) > 1 and rest[0].startswith("-"):
            argument = rest.pop(0)
            if argument == "--":
                break
            self._one(argument, rest)
        return rest

    def usage(self) -> str:
        head = f"Usage of {self.name}:" if self.name else "Usage:"
        return "\n".join([head, *(flag.help() for flag in self)])

    def __iter__(self) -> Iterator[Flag[Any]]:
        """The flags in the order in which help shows them."""
        return (self._flags[name] for name in sorted(self._flags))

    def _add(self, flag: Flag[T]) -> Flag[T]:
        if flag.name in self._flags:
            raise ValueError(f"flag -{flag.name} is declared twice")
        self._flags[flag.name] = flag
        return flag

    def _one(self, argument: str, rest: list[str]) -> None:
        name, equals, value = argument[2 if argument.startswith("--") else 1 :].partition("=")
        if not name or name.startswith("-"):
            raise self._failure(f"bad flag syntax: {argument}")
        flag = self._flags.get(name)
        if flag is None:
            if name in ("h", "help"):
                print(self.usage(), file=sys.stderr)
                raise HelpRequested(HELP_REQUESTED)
            raise self._failure(f"flag provided but not defined: -{name}")
        if flag.boolean:
            self._set(flag, value if equals else "true", f"invalid boolean value {quote(value)} for -{name}")
            return
        if not equals:
            if not rest:
                raise self._failure(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        self._set(flag, value, f"invalid value {quote(value)} for flag -{name}")

    def _set(self, flag: Flag[Any], value: str, complaint: str) -> None:
        try:
            flag.set(value)
        except ValueError as error:
            raise self._failure(f"{complaint}: {error}") from error

    def _failure(self, reason: str) -> FlagError:
        print(f"{reason}\n{self.usage()}", file=sys.stderr)
        return FlagError(reason)


Run = Callable[[list[str]], int]
"""What a command does, given the arguments after its flags; returns the exit status."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command by its full name, such as `entry create`.

    `build` declares the flags and returns what runs after they were parsed: the imports a command needs belong
    inside, so that the others do not pay for them. `usage_name` is what stands after `Usage of`, where it differs;
    `help_note` is the line that SPIRE prints after the usage, and `complaint` the one after the usage when a flag was
    wrong, with {} for the reason; some commands have none.
    """

    name: str
    synopsis: str
    build: Callable[[FlagSet], Run]
    usage_name: str | None = None
    help_note: str = HELP_REQUESTED
    complaint: str | None = None

    def flags(self) -> tuple[FlagSet, Run]:
        flags = FlagSet(self.name if self.usage_name is None else self.usage_name)
        return flags, self.build(flags)


class Program:
    """A program made of commands, whose first words name groups. `groups` says what each of these is about."""

    def __init__(
        self, name: str, version: str, commands: Sequence[Command], groups: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.version = version
        self._synopses = {**(groups or {}), **{command.name: command.synopsis for command in commands}}
        self._commands: Mapping[str, Command] = {command.name: command for command in commands}
        self._groups = {
            " ".join(words[:length])
            for words in (name.split(" ") for name in self._commands)
            for length in range(1, len(words))
        } - self._commands.keys()

    def run(self, args: Sequence[str]) -> int:
        """Run the command that `args` name. A SpireError becomes one line, `Error: …`, and status 1."""
        line = _read_line(args, [*self._commands, *self._groups])
        if line.version:
            print(self.version, file=sys.stderr)
            return 0
        if line.help and not line.command:
            self._print_overview()
            return 0
        if line.command not in self._commands and line.command not in self._groups:
            self._print_overview()
            return UNKNOWN_COMMAND
        if line.help:
            self._print_help(line.command)
            return 0
        if line.flags_before:
            print(f"Flags go behind the command: {self.name} {line.command} -flag …\n", file=sys.stderr)
            self._print_help(line.command)
            return 1
        if line.command in self._groups:
            self._print_help(line.command)
            return 1
        return self._start(self._commands[line.command], line.args)

    @staticmethod
    def _start(command: Command, args: Sequence[str]) -> int:
        flags, run = command.flags()
        try:
            return run(flags.parse(args))
        except FlagError as error:
            if command.complaint is not None:
                print(command.complaint.format(error), file=sys.stderr)
            return 1
        except SpireError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1

    def _children(self, group: str) -> list[str]:
        prefix = f"{group} " if group else ""
        names = (name for name in (*self._commands, *self._groups) if name.startswith(prefix))
        return sorted(name for name in names if " " not in name[len(prefix) :])

    def _print_overview(self) -> None:
        print(f"Usage: {self.name} [--version] [--help] <command> [<args>]\n\nAvailable commands are:", file=sys.stderr)
        self._print_children("")
        print(file=sys.stderr)

    def _print_help(self, name: str) -> None:
        """A command's usage; for a group also that of each of its commands, as SPIRE prints it."""
        children = self._children(name)
        for command in [name, *children]:
            if command in self._commands:
                print(self._commands[command].flags()[0].usage(), file=sys.stderr)
        if name in self._commands:
            print(self._commands[name].help_note, file=sys.stderr)
        else:
            print(f"{self.name} {name} is a group: add one of its commands.", file=sys.stderr)
        if children:
            print("\nSubcommands:", file=sys.stderr)
            self._print_children(name)

    def _print_children(self, group: str) -> None:
        children = self._children(group)
        skip = len(group) + 1 if group else 0
        width = max((len(name) - skip for name in children), default=0)
        for name in children:
            print(f"    {name[skip:]:{width}}    {self._synopses.get(name, '')}", file=sys.stderr)


@dataclass(slots=True)
class _Line:
    """A command line, taken apart."""

    command: str = ""
    args: Sequence[str] = ()
    flags_before: bool = False
    help: bool = False
    version: bool = False


def _read_line(args: Sequence[str], names: Sequence[str]) -> _Line:
    line = _Line()
    for index, argument in enumerate(args):
        if argument == "--":
            break
        if argument in ("-h", "-help", "--help"):
            line.help = True
        elif line.command or not argument:
            continue
        elif argument in ("-v", "-version", "--version"):
            line.version = True
        elif argument.startswith("-"):
            line.flags_before = True
        else:
            line.command = _longest_name(args[index:], names)
            line.args = args[index + 1 + line.command.count(" ") :]
    return line


def _longest_name(args: Sequence[str], names: Sequence[str]) -> str:
    """The longest known name that the first words of `args` make.

    When there is none, the first argument in quotes, which is no name: a name's words are arguments of their own.
    """
    words: list[str] = []
    for argument in args:
        if not argument or " " in argument or argument.startswith("-"):
            break
        words.append(argument)
    for length in range(len(words), 0, -1):
        if (name := " ".join(words[:length])) in names:
            return name
    return quote(args[0])


def _wrapped(usage: str) -> list[str]:
    """Lines that fit between the tab and the last column."""
    wrapper = textwrap.TextWrapper(COLUMNS - 8, break_long_words=False, break_on_hyphens=False)
    return [part for line in usage.split("\n") for part in wrapper.wrap(line) or [""]]


def _boolean(text: str) -> bool:
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError("parse error")


def _integer(text: str) -> int:
    """An integer in Go's notation: 0x, 0o and 0b prefixes, a leading 0 for octal, underscores between digits."""
    digits = text.lstrip("+-") if text[:1] in ("+", "-") and text[1:2] not in ("+", "-") else text
    octal = re.fullmatch(r"0_?([0-7_]+)", digits)
    try:
        value = int(octal[1], 8) if octal else int(digits if digits[:1].isdigit() else "", 0)
    except ValueError:
        raise ValueError("parse error") from None
    value = -value if text.startswith("-") else value
    if not -(2**63) <= value < 2**63:
        raise ValueError("value out of range")
    return value
