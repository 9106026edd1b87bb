"""What `spire-server tpm policy` does: files in, judgements and texts out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from attestors.tpm import evidence as evidence_files
from attestors.tpm.policy import describing, judging, learning, loading, replaying
from attestors.tpm.policy.replaying import Machine
from attestors.tpm.policy.rules import Policies
from operations import files, output, times
from operations.errors import AlreadyExists, ConfigurationError, InvalidArgument, Refused
from server.cli import boot_policy_text
from server.cli.boot_policy_text import Outcome

_MODE = 0o644
_ALLOWED = ".allow"
_EVIDENCE = ".json"
_REFUSED = ".refused.json"
_NAMED = 10
"""Files that an error names."""


def learn(evidence: Sequence[str], name: str, path: str, form: str) -> None:
    """Print a policy that all the machines satisfy, or write it and the list of files that it names beside it.

    Raises AlreadyExists rather than replace a file, and what is wrong with the evidence.
    """
    target, beside = Path(path), Path(path.removesuffix(".hcl") + _ALLOWED)
    for taken in (target, beside) if path else ():
        if taken.exists():
            raise AlreadyExists(f"{taken} exists: name another file with -policy, or move it away")
    learned = learning.learn(
        name, [_machine(each) for each in _files(evidence, golden=True)], beside.name if path else ""
    )
    written: list[str] = []
    if path:
        if learned.allowed is not None:  # first, so that no policy names a list that is not there
            written.append(_write(beside, learned.allowed))
        written.insert(0, _write(target, learned.policy))
    if form == output.JSON:
        output.print_object({"policy": learned.policy, "allowed_files": learned.allowed, "written": written})
    elif written:
        print(f"Wrote {' and '.join(written)}. Review it, and try it: spire-server tpm policy check -policy {path}")
    else:
        print(learned.policy, end="")


def check(path: str, evidence: Sequence[str], form: str) -> None:
    """Judge each machine's evidence. Raises Refused, after printing, unless every one would be let in."""
    policies = loading.load(path)
    outcomes = [_outcome(policies, each) for each in _files(evidence)]
    if form == output.JSON:
        passed = all(outcome.passed for outcome in outcomes)
        output.print_object({"passed": passed, "evidence": [boot_policy_text.as_object(each) for each in outcomes]})
    else:
        boot_policy_text.print_outcomes(outcomes)
    refused = [outcome.file for outcome in outcomes if not outcome.passed]
    if refused:
        count = f"{len(refused)} of {len(outcomes)} machines" if len(outcomes) > 1 else "the machine"
        more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise Refused(f"{count} would be refused: {', '.join(refused[:_NAMED])}{more}")


def show_policy(path: str, form: str) -> None:
    described = describing.policies(loading.load(path))
    if form == output.JSON:
        output.print_object(described)
    else:
        boot_policy_text.print_tree(described)


def show_evidence(evidence: Sequence[str], form: str) -> None:
    described: list[describing.Object] = [
        {"file": each, **describing.machine(_machine(each))} for each in _files(evidence)
    ]
    if form == output.JSON:
        output.print_object(described[0] if len(described) == 1 else described)
        return
    for number, each in enumerate(described):
        if number:
            print()
        boot_policy_text.print_tree({**each, "taken_at": times.text(each["taken_at"])})


def _files(paths: Sequence[str], *, golden: bool = False) -> list[str]:
    """The files, and those of folders; where machines are to be `golden`, without what a server has refused there.

    Raises ConfigurationError for a folder without evidence.
    """
    found: list[str] = []
    for path in paths:
        if not Path(path).is_dir():
            found.append(path)
            continue
        inside = sorted(str(each) for each in Path(path).glob(f"*{_EVIDENCE}"))
        inside = [each for each in inside if not (golden and each.endswith(_REFUSED))]
        if not inside:
            raise ConfigurationError(f"no evidence in this folder: its files are called …{_EVIDENCE}", file=path)
        found += inside
    return found


def _machine(path: str) -> Machine:
    """What the file proves. Errors name it; that nobody quoted goes to standard error."""
    evidence = evidence_files.read(path)
    try:
        machine = replaying.replay(evidence)
    except Refused as error:
        raise Refused(f"{path}: {error}") from error
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error}") from error
    if not machine.quoted:
        print(f"Warning: {path}: without a quote; its PCR values are taken as they are", file=sys.stderr)
    return machine


def _outcome(policies: Policies, path: str) -> Outcome:
    evidence = evidence_files.read(path)
    try:
        machine = replaying.replay(evidence)
    except (Refused, InvalidArgument) as error:
        return Outcome(path, evidence.agent_id, evidence.taken_at, quoted=False, error=str(error))
    return Outcome(
        file=path,
        agent_id=evidence.agent_id,
        taken_at=evidence.taken_at,
        quoted=machine.quoted,
        judgement=judging.judge(policies, machine.observed(policies)),
    )


def _write(path: Path, text: str) -> str:
    try:
        files.write_atomically(path, text.encode(), _MODE)
    except OSError as error:
        raise ConfigurationError(f"cannot write: {error.strerror}", file=str(path)) from error
    return str(path)
