"""What a configuration says of profiling. Apart from what does it, which is loaded only where it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from operations.checks import Checks
from operations.quoting import quote

NAMES: Final = ("cpu", "heap", "goroutine", "threadcreate")
_GO_ONLY: Final = ("block", "mutex", "trace")


@dataclass(frozen=True, slots=True)
class Profiling:
    """`port` is 0 for none, `frequency` is in seconds, 0 for no files, of the profiles `names`."""

    port: int
    frequency: int
    names: tuple[str, ...]


class Section(Protocol):
    """The keys, in server and agent alike."""

    @property
    def profiling_enabled(self) -> bool: ...
    @property
    def profiling_port(self) -> int: ...
    @property
    def profiling_freq(self) -> int: ...
    @property
    def profiling_names(self) -> Sequence[str]: ...


def read(section: Section, checks: Checks) -> Profiling | None:
    """None where profiling is off. Faults are noted."""
    port, frequency = section.profiling_port, section.profiling_freq
    checks.require(0 <= port < 65536, f"profiling_port {port} is no TCP port: use 1 to 65535", "profiling_port")
    checks.require(frequency >= 0, f"profiling_freq {frequency} is no number of seconds", "profiling_freq")
    if not section.profiling_enabled:
        return None
    known = tuple(name for name in dict.fromkeys(section.profiling_names) if name in NAMES)
    return Profiling(port, frequency if known else 0, known)


def warnings(section: Section) -> Sequence[str]:
    """Lines for the log."""
    if not section.profiling_enabled:
        return ()
    lines: list[str] = []
    for name in section.profiling_names:
        if name not in NAMES:
            what = "a profile of Go's runtime" if name in _GO_ONLY else "unknown"
            lines.append(f"profiling_names: {quote(name)} is {what} and is left out: use {', '.join(NAMES)}")
    if not section.profiling_port and not (section.profiling_freq and section.profiling_names):
        lines.append("profiling_enabled has no effect without profiling_port, or profiling_freq and profiling_names")
    return lines
