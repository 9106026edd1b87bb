"""What a judgement is made of, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from attestors.tpm.event_log.model import BootFacts
from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.pcrs import PcrValues

NOT_FOR_IT: Final = "no policy is for this node: give one the selectors of its TPM, or none at all"


@dataclass(frozen=True, slots=True)
class Observed:
    """What a node has proven. `selectors` are those of its identity, without the type (`ek:…`, `manufacturer:…`).

    `facts` is None where no event log was given; `ima` None where no list was, else the entries that were not judged
    before: all those before them satisfied the policies in `standing`, at the list's beginning therefore all policies
    (Policies.names). `tpm_firmware` is the quote's firmwareVersion.
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

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the node may not, in the order of the file; empty when it may."""
        if self.passed:
            return ()
        if not self.failures:
            return (NOT_FOR_IT,)
        return tuple(reason for reasons in self.failures.values() for reason in reasons)
