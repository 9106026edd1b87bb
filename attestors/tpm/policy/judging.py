"""Whether what a node has proven satisfies the policies that are for it. Pure, and fails closed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attestors.tpm.policy.judging_events import judge_events
from attestors.tpm.policy.judging_ima import judge_ima
from attestors.tpm.policy.model import Judgement, Observed
from attestors.tpm.policy.reasons import Reasons
from attestors.tpm.policy.rules import FirmwareRule, Policies, Policy
from attestors.tpm.policy.values import firmware_text

MEANINGS: Final[Mapping[int, str]] = MappingProxyType(
    {
        0: "the firmware's code is another",
        1: "the firmware's settings have changed; this register differs from machine to machine",
        2: "option ROMs or the cards that bring them have changed",
        3: "settings of option ROMs have changed",
        4: "another boot loader or kernel was started",
        5: "the partition table or the boot loader's settings have changed",
        6: "what the machine's maker measures there has changed",
        7: "Secure Boot's state or its keys have changed",
        8: "the boot loader's commands or the kernel's command line have changed",
        9: "files that the boot loader read have changed: kernel, initrd, configuration",
        10: "this is IMA's register, which grows with each file: use a block ima",
        11: "the unified kernel image is another, or the machine is in another phase of its boot",
        12: "the kernel's command line or what was added to the unified kernel image has changed",
        13: "system extensions of the initrd have changed",
        14: "the machine owner's keys have changed",
        15: "the root volume or the machine's identity is another",
    }
)
"""What a register that changed says (PC Client Platform Firmware Profile, 3.3.4; UAPI's Linux TPM PCR Registry)."""


def judge(policies: Policies, observed: Observed) -> Judgement:
    """All policies that are for the node are judged; one that holds is enough."""
    satisfied: list[str] = []
    ima: list[str] = []
    failures: dict[str, tuple[str, ...]] = {}
    for policy in policies.policies:
        if not policy.is_for(observed.selectors):
            continue
        reasons = Reasons(policy.name)
        _judge(policy, observed, reasons)
        if reasons:
            failures[policy.name] = reasons.lines()
        else:
            satisfied.append(policy.name)
            if policy.ima is not None:
                ima.append(policy.name)
    return Judgement(tuple(satisfied), tuple(ima), failures)


def _judge(policy: Policy, observed: Observed, reasons: Reasons) -> None:
    quoted = observed.pcrs.values
    if missing := sorted(policy.pcrs - quoted.keys()):
        reasons(f"the quote is without PCR {', '.join(map(str, missing))}, which its rules need")
    if policy.events is not None:
        judge_events(policy.events, observed.facts, reasons)
    for number in sorted(policy.pcr):
        if number in quoted and quoted[number] not in policy.pcr[number]:
            reasons(_other_value(number, quoted[number], policy.pcr[number], observed.pcrs.bank))
    if policy.tpm_firmware is not None:
        _judge_firmware(policy.tpm_firmware, observed.tpm_firmware, reasons)
    if policy.ima is not None:
        judge_ima(policy.ima, observed, reasons, stands=policy.name in observed.standing)


def _other_value(number: int, value: bytes, allowed: frozenset[bytes], bank: str) -> str:
    if all(len(each) != len(value) for each in allowed):
        return f"PCR {number} of the bank {bank} has {2 * len(value)} digits, and its rule none of that length"
    count = f"not one of the {len(allowed)} allowed values" if len(allowed) > 1 else "not the allowed value"
    meaning = f"; {MEANINGS[number]}" if number in MEANINGS else ""
    return f"PCR {number} is {value.hex()}, {count}{meaning}"


def _judge_firmware(rule: FirmwareRule, version: int, reasons: Reasons) -> None:
    if rule.minimum is not None and version < rule.minimum:
        minimum = firmware_text(rule.minimum)
        reasons(f"the TPM's firmware is {firmware_text(version)}, older than tpm_firmware.minimum {minimum}: update it")
    if rule.allow and version not in rule.allow:
        reasons(f"the TPM's firmware is {firmware_text(version)}, which tpm_firmware.allow does not have")
