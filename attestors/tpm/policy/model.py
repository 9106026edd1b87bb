"""What a judgement is made of, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attestors.tpm.event_log.model import BootFacts
from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.pcrs import PcrValues


@dataclass(frozen=True, slots=True)
class Observed:
    """What a node has proven. `selectors` are those of its identity, without the type (`ek:…`, `manufacturer:…`).

    `facts` is None where no event log was given; `ima` None where no list was, else the entries that were not judged
    before: all those before them satisfied the policies in `standing`. `tpm_firmware` is the quote's firmwareVersion.
    """

    selectors: Sequence[str]
    pcrs: PcrValues
    facts: BootFacts | None
    ima: Sequence[ImaEntry] | None
    tpm_firmware: int
    standing: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Judgement:
    """The policies that the node satisfies, those among them that judged its files, and for each other one why not.

    Reasons are lines for people, the gravest first; each names the PCR, the rule or the file. A policy that is not
    for this node is in none of them.
    """

    satisfied: tuple[str, ...]
    ima: tuple[str, ...]
    failures: Mapping[str, tuple[str, ...]]

    @property
    def passed(self) -> bool:
        """Whether the node may have an identity: some policy is satisfied."""
        return bool(self.satisfied)
