"""Rules about the files that IMA measured. Hot: a first attestation brings some 200,000 entries."""

from __future__ import annotations

import hashlib
from typing import Final

from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.pcrs import PcrValues
from attestors.tpm.policy.model import Observed
from attestors.tpm.policy.reasons import Reasons, shown
from attestors.tpm.policy.rules import ImaRules

AGGREGATE: Final = "boot_aggregate"


def judge_ima(rules: ImaRules, observed: Observed, reasons: Reasons, *, stands: bool) -> None:
    """`stands`: the entries before those that are observed satisfied the policy."""
    if observed.ima is None:
        reasons("there is no IMA list, and its ima rules need one: boot the kernel with an IMA policy")
        return
    if not stands:
        reasons("files that were measured earlier in this boot did not satisfy it: mend that, then reboot")
    for entry in observed.ima:
        by_path = rules.allow.get(entry.algorithm)
        if by_path is not None and not entry.violation and entry.digest in by_path.get(entry.path, ()):
            continue
        if reason := _refused(rules, entry, observed):
            reasons(reason)


def _refused(rules: ImaRules, entry: ImaEntry, observed: Observed) -> str | None:
    """Why an entry that no digest allows is refused; None for one that is let be."""
    if entry.path == AGGREGATE and _aggregates(entry, observed.pcrs):
        return None
    if rules.exclude.match(entry.path):
        return None
    if entry.violation:
        return None if rules.allow_violations else _words(entry, "changed while it was measured (a violation)")
    if rules.keys is not None and rules.keys.signed(entry):
        return None
    digest = f"{entry.algorithm}:{entry.digest.hex()}"
    if any(entry.path in paths for paths in rules.allow.values()):
        return _words(entry, f"is {digest}, which is not allowed for it: it was changed or updated")
    unsigned = "" if rules.keys is None else ", nor is it signed by a key of signed_by"
    return _words(entry, f"({digest}) is not among the allowed files{unsigned}")


def _words(entry: ImaEntry, reason: str) -> str:
    return f"the file {shown(entry.path)} {reason}"


def _aggregates(entry: ImaEntry, quoted: PcrValues) -> bool:
    """Whether it is the digest of the quoted registers that IMA begins its list with: 0 to 9, or to 7."""
    values = quoted.values
    if entry.violation or entry.algorithm != quoted.bank or not values.keys() >= set(range(10)):
        return False
    ends = (10, 8)
    return any(
        hashlib.new(quoted.bank, b"".join(values[number] for number in range(end)), usedforsecurity=False).digest()
        == entry.digest
        for end in ends
    )
