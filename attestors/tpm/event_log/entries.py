"""A log's events by register, each with whether its data are what was hashed.

Nothing else of an event is proven: its type, and what its data say beyond the digest, are words of whoever had the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from attestors.tpm.event_log.event_types import ERROR_SEPARATORS, NO_ACTION, SEPARATORS
from attestors.tpm.event_log.model import Event, EventLog
from operations.errors import Refused

_TEXT_LIMIT: Final = 128
"""Characters of a text that is known for one: no image that would run is that short, or without a control byte."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An event that was extended. `separator` is told by the digest, so that no other type hides one."""

    event: Event
    bank: str
    digest: bytes
    separator: Literal["", "separator", "error"]

    def proves(self, data: bytes) -> bool:
        return hashed(self.bank, data) == self.digest

    @property
    def proven(self) -> bool:
        """Whether the digest is of the data as they are."""
        return self.proves(self.event.data)

    @property
    def text(self) -> str:
        """The short text in ASCII that was hashed, if it is one: an action's, say."""
        data = self.event.data
        short = len(data) <= _TEXT_LIMIT and data.isascii() and data.decode("ascii").isprintable()
        return data.decode("ascii") if short and self.proven else ""


@dataclass(frozen=True, slots=True)
class Register:
    """A register's entries, in order, and where among them its separators are."""

    entries: Sequence[Entry]
    separators: Sequence[int]

    @property
    def sealed(self) -> Sequence[Entry]:
        """What was extended before the separator: by the firmware, before anything else ran. Nothing without one."""
        return self.entries[: self.separators[0]] if self.separators else ()

    @property
    def later(self) -> Sequence[Entry]:
        """What was extended after the separator; all of it without one."""
        rest = self.entries[self.separators[0] :] if self.separators else self.entries
        return [entry for entry in rest if not entry.separator]

    @property
    def failed(self) -> bool:
        return any(self.entries[place].separator == "error" for place in self.separators)


def registers(log: EventLog, bank: str) -> dict[int, Register]:
    """Those that have events. Raises Refused for a bank that the log has not."""
    found: dict[int, list[Entry]] = {}
    for entry in entries(log, bank):
        found.setdefault(entry.event.pcr, []).append(entry)
    return {
        number: Register(listed, [place for place, entry in enumerate(listed) if entry.separator])
        for number, listed in found.items()
    }


def entries(log: EventLog, bank: str) -> list[Entry]:
    """All that was extended, in the log's order. Raises Refused for a bank that the log has not."""
    if bank not in log.banks:
        raise Refused(
            f"event log: no digests of the {bank} bank, but of {', '.join(log.banks) or 'none'}; "
            "set pcr_bank to a bank that the firmware measures into"
        )
    marks = _marks(bank)
    return [
        Entry(event, bank, digest, marks.get(digest, ""))
        for event in log.events
        if event.type != NO_ACTION
        for digest in (event.digests[bank],)
    ]


def _marks(bank: str) -> Mapping[bytes, Literal["separator", "error"]]:
    marks: dict[bytes, Literal["separator", "error"]] = {hashed(bank, value): "separator" for value in SEPARATORS}
    marks.update({hashed(bank, value): "error" for value in ERROR_SEPARATORS})
    return marks


def hashed(bank: str, data: bytes) -> bytes:
    return hashlib.new(bank, data, usedforsecurity=False).digest()


def printable(text: str) -> str:
    """The text with what would move a terminal's cursor written out."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)
