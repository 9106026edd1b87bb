"""Rules about the files that IMA measured. Hot: a first attestation brings some 200,000 entries."""

from __future__ import annotations

from attestors.tpm.ima import aggregate
from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.pcrs import PcrValues
from attestors.tpm.policy.model import Observed
from attestors.tpm.policy.reasons import Reasons, shown
from attestors.tpm.policy.rules import ImaRules
from operations.errors import Refused


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
    if entry.path == aggregate.NAME:
        return _other_boot(entry, observed.pcrs)
    if entry.violation:  # nothing proves which file it was, so that no exclusion helps
        return None if rules.allow_violations else _words(entry, "changed while it was measured (a violation)")
    if rules.exclude.match(entry.path):
        return None
    if rules.keys is not None and rules.keys.signed(entry):
        return None
    digest = f"{entry.algorithm}:{entry.digest.hex()}"
    if any(entry.path in paths for paths in rules.allow.values()):
        return _words(entry, f"is {digest}, which is not allowed for it: it was changed or updated")
    unsigned = "" if rules.keys is None else ", nor is it signed by a key of signed_by"
    return _words(entry, f"({digest}) is not among the allowed files{unsigned}")


def _other_boot(entry: ImaEntry, quoted: PcrValues) -> str | None:
    """Its digest proves what the entry is, wherever it stands: kexec adds another one."""
    try:
        aggregate.verify(entry, quoted)
    except Refused as error:
        return str(error)
    return None


def _words(entry: ImaEntry, reason: str) -> str:
    return f"the file {shown(entry.path)} {reason}"
