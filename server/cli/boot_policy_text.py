"""How the `tpm policy` commands word judgements, policies and evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from attestors.tpm.policy.model import Judgement
from operations import times

_LISTED: Final = 20
"""Values of a list that are shown; -output json has them all."""
_STEP: Final = "  "


@dataclass(frozen=True, slots=True)
class Outcome:
    """A machine's evidence against the policies: `judgement`, or the `error` for which it is no evidence at all."""

    file: str
    agent_id: str
    taken_at: int
    quoted: bool
    judgement: Judgement | None = None
    error: str = ""

    @property
    def passed(self) -> bool:
        return self.judgement is not None and self.judgement.passed

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.judgement.reasons if self.judgement is not None else (self.error,)


def as_object(outcome: Outcome) -> Mapping[str, Any]:
    judgement = outcome.judgement or Judgement((), (), {})
    return {
        "file": outcome.file,
        "agent_id": outcome.agent_id,
        "taken_at": outcome.taken_at,
        "quoted": outcome.quoted,
        "passed": outcome.passed,
        "satisfied": list(judgement.satisfied),
        "failures": {name: list(reasons) for name, reasons in judgement.failures.items()},
        "reasons": list(outcome.reasons),
    }


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Each machine with its policies; of several, a table at the end."""
    for number, outcome in enumerate(outcomes):
        if number:
            print()
        _print_outcome(outcome)
    if len(outcomes) > 1:
        print()
        rows = [("EVIDENCE", "VERDICT", "POLICIES")]
        rows += [(each.file, _verdict(each), ", ".join(_satisfied(each)) or "none") for each in outcomes]
        _print_table(rows)


def _print_outcome(outcome: Outcome) -> None:
    print(f"{outcome.file}: {outcome.agent_id or 'no agent'}, taken {times.text(outcome.taken_at)}")
    if outcome.judgement is None:
        print(f"{_STEP}REFUSED  {outcome.error}")
        return
    if not outcome.quoted:
        print(f"{_STEP}without a quote: its PCR values are taken as they are")
    for name in outcome.judgement.satisfied:
        print(f"{_STEP}passed   {name}")
    for name, reasons in outcome.judgement.failures.items():
        print(f"{_STEP}FAILED   {name}")
        for reason in reasons:
            print(f"{_STEP * 2}{reason}")
    if not outcome.judgement.satisfied and not outcome.judgement.failures:
        print(f"{_STEP}REFUSED  {outcome.judgement.reasons[0]}")


def _satisfied(outcome: Outcome) -> tuple[str, ...]:
    return outcome.judgement.satisfied if outcome.judgement is not None else ()


def _verdict(outcome: Outcome) -> str:
    return "passed" if outcome.passed else "REFUSED"


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def print_tree(value: Mapping[str, object], margin: str = "") -> None:
    """Names and values, a level of nesting a step to the right; what is not there is left out."""
    for name, each in value.items():
        title = f"{margin}{name}:"
        if each is None or each in ({}, []):
            continue
        if isinstance(each, dict):
            print(title)
            print_tree(cast("Mapping[str, object]", each), margin + _STEP)
        elif isinstance(each, list):
            _print_list(title, cast("Sequence[object]", each), margin + _STEP)
        else:
            print(f"{title} {_word(each)}")


def _print_list(title: str, values: Sequence[object], margin: str) -> None:
    if all(isinstance(each, int) for each in values):
        print(f"{title} {', '.join(map(str, values))}")
        return
    print(title)
    for each in values[:_LISTED]:
        if not isinstance(each, dict):
            print(f"{margin}{_word(each)}")
            continue
        entry = cast("Mapping[str, object]", each)
        if any(isinstance(part, dict | list) for part in entry.values()):
            print_tree(entry, margin)
        else:
            print(f"{margin}{'  '.join(str(part) for part in entry.values())}".rstrip())
    if len(values) > _LISTED:
        print(f"{margin}and {len(values) - _LISTED} more: -output json has them all")


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
