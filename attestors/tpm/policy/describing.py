"""Policies and evidence as plain values, for people and programs to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from attestors.tpm.event_log.model import BootFacts, Measured
from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.policy.replaying import Machine
from attestors.tpm.policy.rules import DigestRule, EventRules, ImaRules, Policies, Policy
from attestors.tpm.policy.values import firmware_text

Object: TypeAlias = dict[str, Any]
"""Values for json.dumps."""


def policies(found: Policies) -> Object:
    return {
        "digest": found.digest.hex(),
        "pcrs": sorted(found.pcrs),
        "wants_event_log": found.wants_event_log,
        "wants_ima": found.wants_ima,
        "policies": [_policy(each) for each in found.policies],
    }


def machine(found: Machine) -> Object:
    evidence = found.evidence
    return {
        "agent_id": evidence.agent_id,
        "taken_at": evidence.taken_at,
        "selectors": list(evidence.selectors),
        "quoted": found.quoted,
        "tpm_firmware": firmware_text(found.tpm_firmware),
        "bank": evidence.bank,
        "pcrs": {str(number): evidence.pcrs[number].hex() for number in sorted(evidence.pcrs)},
        "event_log": _event_log(found),
        "ima": _ima(found.ima) if found.ima is not None else None,
    }


def _policy(policy: Policy) -> Object:
    firmware = policy.tpm_firmware
    return {
        "name": policy.name,
        "selectors": sorted(each for values in policy.selectors.values() for each in values),
        "pcr": {str(number): _hex(policy.pcr[number]) for number in sorted(policy.pcr)},
        "events": _events(policy.events) if policy.events is not None else None,
        "tpm_firmware": {
            "minimum": firmware_text(firmware.minimum) if firmware.minimum is not None else None,
            "allow": [firmware_text(version) for version in sorted(firmware.allow)],
        }
        if firmware is not None
        else None,
        "ima": _ima_rules(policy.ima) if policy.ima is not None else None,
    }


def _events(rules: EventRules) -> Object:
    sets: Mapping[str, DigestRule | None] = {
        **rules.variables,
        "authorities": rules.authorities,
        "drivers": rules.drivers,
        "images": rules.images,
        "files": rules.files,
    }
    return {
        "secure_boot": rules.secure_boot,
        **{name: _digest_rule(rule) for name, rule in sets.items() if rule is not None},
        "command_line": list(rules.command_line.texts) if rules.command_line is not None else None,
        "firmware_version": list(rules.firmware_version.texts) if rules.firmware_version is not None else None,
    }


def _digest_rule(rule: DigestRule) -> Object:
    return {
        "require": _hex(rule.require),
        "require_any": _hex(rule.require_any),
        "allow_only": _hex(rule.allow_only) if rule.allow_only is not None else None,
        "forbid": _hex(rule.forbid),
    }


def _ima_rules(rules: ImaRules) -> Object:
    return {
        "allowed_files": len({path for paths in rules.allow.values() for path in paths}),
        "exclude": list(rules.exclude.texts),
        "signed_by_keys": rules.keys is not None,
        "violations": "allow" if rules.allow_violations else "refuse",
    }


def _event_log(found: Machine) -> Object | None:
    if found.log is None or found.facts is None:
        return None
    return {"events": len(found.log.events), "banks": list(found.log.banks), **_facts(found.facts)}


def _facts(facts: BootFacts) -> Object:
    return {
        "secure_boot": facts.secure_boot,
        "firmware_version": facts.firmware_version,
        "variables": {name: _in_order(hashes) for name, hashes in facts.variables.items()},
        "authorities": _in_order(facts.authorities),
        "images": [_measured(each) for each in facts.images],
        "files": [_measured(each) for each in facts.files],
        "command_lines": list(facts.command_lines),
        "unproven": [_measured(each) for each in facts.unproven],
        "doubts": list(facts.doubts),
    }


def _measured(each: Measured) -> Object:
    return {"pcr": each.pcr, "digest": each.digest.hex(), "name": each.name}


def _ima(entries: Sequence[ImaEntry]) -> Object:
    return {
        "entries": len(entries),
        "files": len({entry.path for entry in entries}),
        "signed": sum(entry.signature is not None for entry in entries),
        "violations": sum(entry.violation for entry in entries),
    }


def _hex(values: Iterable[bytes]) -> list[str]:
    return sorted(value.hex() for value in values)


def _in_order(values: Iterable[bytes]) -> list[str]:
    return [value.hex() for value in values]
