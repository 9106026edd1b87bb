"""Rules about what an event log proves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from attestors.tpm.event_log.model import BootFacts, Measured
from attestors.tpm.policy.patterns import Patterns
from attestors.tpm.policy.reasons import Reasons, shown
from attestors.tpm.policy.rules import DigestRule, EventRules

DRIVER_PCR: Final = 2
"""Drivers that came with cards; whatever else was started, wherever it was measured, is an image."""
_COMMAND_PCRS: Final = (8, 9, 12)
"""Of GRUB, of the kernel's own EFI stub, and of systemd's."""
OPTIONAL: Final = frozenset({"MokList", "MokListX"})
"""Variables that shim measures only where they exist."""

_MEANINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "PK": "the platform key",
        "KEK": "a key exchange key",
        "db": "a key or image that Secure Boot trusts",
        "dbx": "a revocation",
        "MokList": "the list of the machine owner's keys",
        "MokListX": "the machine owner's revocations",
        "SbatLevel": "the revocation of boot loaders by generation (SBAT)",
    }
)


def judge_events(rules: EventRules, facts: BootFacts | None, reasons: Reasons) -> None:
    if facts is None:
        reasons("there is no event log, and its events rules need one: has the machine UEFI firmware that keeps one?")
        return
    if rules.secure_boot is not None and facts.secure_boot is not rules.secure_boot:
        state = {True: "on", False: "off", None: "not proven by the event log"}[facts.secure_boot]
        doubt = next((f" ({each})" for each in facts.doubts if each.startswith("PCR 7")), "")
        reasons(f"Secure Boot is {state}{doubt}: secure_boot wants it {'on' if rules.secure_boot else 'off'}")
    for name, rule in rules.variables.items():
        _judge_variable(name, rule, facts, reasons)
    if rules.authorities is not None:
        _require_proven(facts, 7, "authorities", reasons)
        named = dict.fromkeys(facts.authorities, "an authority by which an image was verified")
        _judge_digests("authorities", rules.authorities, named, reasons)
    _judge_measured(rules, facts, reasons)
    if rules.firmware_version is not None:
        versions = () if facts.firmware_version is None else (facts.firmware_version,)
        _judge_texts("firmware_version", rules.firmware_version, versions, "firmware version", reasons)
    if rules.command_line is not None:
        for pcr in _COMMAND_PCRS:
            _require_proven(facts, pcr, "command_line", reasons)
        _judge_texts("command_line", rules.command_line, facts.command_lines, "command line", reasons)


def _judge_variable(name: str, rule: DigestRule, facts: BootFacts, reasons: Reasons) -> None:
    hashes = facts.variables.get(name)
    if hashes is None and name not in OPTIONAL:
        reasons(f"the event log does not prove the variable {name}")
        return
    if name in OPTIONAL:
        _require_proven(facts, 14, name, reasons)
    _judge_digests(name, rule, dict.fromkeys(hashes or (), _MEANINGS[name]), reasons)


def _require_proven(facts: BootFacts, pcr: int, key: str, reasons: Reasons) -> None:
    """A rule about all of a kind cannot be met while an event might be of the kind, and does not prove what it is."""
    for each in facts.unproven:
        if each.pcr == pcr:
            reasons(
                f"{key} cannot be judged: PCR {pcr} has an event ({each.digest.hex()}) that does not prove its data"
            )


def _judge_measured(rules: EventRules, facts: BootFacts, reasons: Reasons) -> None:
    drivers, images = _started(facts.images)
    if rules.drivers is not None:
        _judge_digests("drivers", rules.drivers, drivers, reasons)
    # Firmware need not start a driver, but what booted the machine was measured, or the log does not tell.
    booted = (("images", rules.images, images), ("files", rules.files, _named(facts.files)))
    for key, rule, found in booted:
        if rule is None:
            continue
        if not found and rule.allow_only:
            reasons(f"the event log has no {key}: it does not say what was booted")
        _judge_digests(key, rule, found, reasons)


def _judge_digests(key: str, rule: DigestRule, found: Mapping[bytes, str], reasons: Reasons) -> None:
    """`found` says of each digest what it is of."""
    for digest in found:
        if digest in rule.forbid:
            reasons(f"{found[digest]} is {digest.hex()}, which {key}.forbid has")
        elif rule.allow_only is not None and digest not in rule.allow_only:
            reasons(f"{found[digest]} is {digest.hex()}, which {key}.allow_only has not")
    for digest in sorted(rule.require - found.keys()):
        reasons(f"{key} is without {digest.hex()}, which {key}.require has")
    if rule.require_any and rule.require_any.isdisjoint(found):
        reasons(f"{key} has none of the {len(rule.require_any)} digests of {key}.require_any")


def _judge_texts(key: str, patterns: Patterns, texts: Sequence[str], what: str, reasons: Reasons) -> None:
    if not texts:
        reasons(f"the event log proves no {what}, which {key} wants")
    for text in texts:
        if not patterns.match(text):
            reasons(f"the {what} {shown(text)} matches no pattern of {key}")


def _started(measured: Sequence[Measured]) -> tuple[Mapping[bytes, str], Mapping[bytes, str]]:
    """Drivers and images."""
    drivers = [each for each in measured if each.pcr == DRIVER_PCR]
    return _named(drivers, "the driver"), _named([each for each in measured if each.pcr != DRIVER_PCR], "the image")


def _named(measured: Sequence[Measured], kind: str = "the file") -> Mapping[bytes, str]:
    return {each.digest: f"{kind} {shown(each.name)}" if each.name else kind for each in measured}
