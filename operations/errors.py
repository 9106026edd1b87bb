"""The one error tree.

Every error that a caller can act on derives from `SpireError`. Its text is one line that says what is wrong and
what to do; the cause, a vendor's code for example, is chained with `raise ... from`. transport.errors is the one
module that turns these classes into gRPC statuses, so their names follow what a caller can do about them.
"""

from __future__ import annotations

from collections.abc import Sequence


class SpireError(Exception):
    """Base of all errors that are expected to reach a person or a peer."""


class InvalidArgument(SpireError):
    """The input is malformed or breaks a rule of its standard; the same call fails again."""


class NotFound(SpireError):
    """What was named does not exist."""


class AlreadyExists(SpireError):
    """What was to be made exists already."""


class Unsupported(SpireError):
    """The device, plugin or build has no such ability."""


class TemporarilyUnavailable(SpireError):
    """The same call may go through later, without anybody's help."""


class PermanentlyUnusable(SpireError):
    """A resource is broken and stays so until somebody mends it."""


class Refused(SpireError):
    """A policy or a check said no."""


class Corrupt(PermanentlyUnusable):
    """Stored state cannot be read back; it was left as it is."""


class ConfigurationError(InvalidArgument):
    """A configuration that cannot be used, with the place of the fault.

    `file` is the path as the user gave it and `line` counts from 1; both are in the text, as `file:line: reason`,
    where they are known.
    """

    def __init__(self, reason: str, *, file: str | None = None, line: int | None = None) -> None:
        self.reason = reason
        self.file = file
        self.line = line
        place = ":".join(str(part) for part in (file, line) if part is not None)
        super().__init__(f"{place}: {reason}" if place else reason)


class ConfigurationErrors(ConfigurationError):
    """Everything found wrong in one reading of a configuration; the text has one line for each problem."""

    def __init__(self, problems: Sequence[ConfigurationError]) -> None:
        self.problems = tuple(problems)
        first = problems[0]
        super().__init__(first.reason, file=first.file, line=first.line)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def raise_problems(problems: Sequence[ConfigurationError]) -> None:
    """Raise what was found wrong, if anything was, in the order of the file's lines."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigurationErrors(sorted(problems, key=lambda problem: (problem.file or "", problem.line or 0)))
