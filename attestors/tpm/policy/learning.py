"""A policy from golden machines: the text that all of them satisfy, with what each rule protects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from attestors.tpm.event_log.model import BootFacts, Measured
from attestors.tpm.ima import aggregate
from attestors.tpm.policy import allow_lists, writing
from attestors.tpm.policy.judging_events import DRIVER_PCR
from attestors.tpm.policy.patterns import literal
from attestors.tpm.policy.replaying import Machine
from attestors.tpm.policy.values import firmware_text, policy_name
from attestors.tpm.policy.writing import Block, Comment, Line, Node, Rule
from operations.errors import InvalidArgument

INLINE: Final = 32
"""Files that the policy itself lists; more go to a file beside it."""
MACHINE_SPECIFIC: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "it has the machine's settings and serial numbers",
        5: "it has the partition table",
        6: "makers of machines measure serial numbers there",
        10: "it grows with each file that IMA measures",
        11: "it grows with the phases of the boot",
        15: "it has the root volume and the machine's identity",
    }
)
"""Registers that differ from machine to machine, or with time, by what they are for."""
JUDGED_BY: Final[Mapping[int, frozenset[str]]] = MappingProxyType(
    {
        4: frozenset({"images"}),
        7: frozenset({"secure_boot", "db"}),
        8: frozenset({"command_line"}),
        9: frozenset({"files"}),
        12: frozenset({"command_line"}),
    }
)
"""Registers whose events these rules judge instead: values change with each update."""
LAST: Final = 15
"""Of the registers that the firmware and the boot chain extend."""

_MAKE: Final = ("manufacturer:", "model:", "platform:manufacturer:", "platform:model:")
_ABOUT_FILES: Final = (
    "What the boot loader read: kernel, initrd, configuration. "
    "Where each machine builds its own initrd, leave this out."
)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_VARIABLES: Final = (
    ("PK", "the owner of the machine's Secure Boot"),
    ("KEK", "who may change db and dbx"),
    ("db", "whose images Secure Boot starts"),
)


@dataclass(frozen=True, slots=True)
class Learned:
    """`allowed` is the content of the list of allowed files; None where there is none, or the policy has it."""

    policy: str
    allowed: str | None


def learn(name: str, machines: Sequence[Machine], allow_file: str = "") -> Learned:
    """A policy that all the machines satisfy. `allow_file` is what a longer list of files will be called.

    Without one, the policy lists every file itself. Raises InvalidArgument.
    """
    policy_name(name)
    banks = {machine.evidence.bank for machine in machines}
    if len(banks) != 1:
        raise InvalidArgument(f"the evidence is of several PCR banks ({', '.join(sorted(banks))}): give that of one")
    allowed = _allowed(machines)
    beside = allowed if allow_file and len(allowed) > INLINE else None
    facts = [machine.facts for machine in machines if machine.facts is not None]
    events = list(_events(facts)) if len(facts) == len(machines) else []
    rules = {node.name if isinstance(node, Rule) else node.head for node in events if isinstance(node, Rule | Block)}
    judged = frozenset(number for number, names in JUDGED_BY.items() if names <= rules)
    nodes: list[Node] = [
        *_selectors(machines),
        *_pcrs(machines, judged),
        *(_block(events) if rules else [Comment("No events: not every machine has an event log that proves any.")]),
        *_firmware(machines),
        *_ima(machines, allowed, allow_file if beside is not None else ""),
    ]
    if not any(isinstance(node, Block) for node in nodes):
        raise InvalidArgument("nothing can be learned: the machines have no event log and no register in common")
    head = f"Learned from {len(machines)} {'machine' if len(machines) == 1 else 'machines'}: review it, then observe."
    text = writing.text([Comment(head), Block(f'policy "{name}"', nodes)])
    lines = "".join(f"{line}\n" for line in _lines(allowed)) if beside is not None else None
    return Learned(text, lines)


def _selectors(machines: Sequence[Machine]) -> Iterator[Node]:
    """The make, where all share it: a policy is for a model, of TPM and of machine."""
    shared = set(machines[0].evidence.selectors).intersection(*(machine.evidence.selectors for machine in machines))
    found = [each for each in sorted(shared) if each.startswith(_MAKE)]
    if found:
        yield Comment("Which nodes it is for: of each kind of selector, one must be the node's.")
        yield Rule("selectors", found)
    else:
        yield Comment('For all nodes. Where other models have policies of their own: selectors = ["manufacturer:…"]')


def _pcrs(machines: Sequence[Machine], judged: frozenset[int]) -> Iterator[Node]:
    common = frozenset(range(LAST + 1)).intersection(*(machine.evidence.pcrs for machine in machines))
    values = {number: {machine.evidence.pcrs[number] for machine in machines} for number in sorted(common)}
    pinned = [number for number in values if number not in MACHINE_SPECIFIC and number not in judged]
    stable = [number for number in pinned if len(values[number]) == 1]
    yield Comment("Registers whose value is the same on every machine.")
    for number, why in MACHINE_SPECIFIC.items():
        if number in common:
            yield Comment(f"PCR {number} is left out: {why}.")
    if varying := [str(number) for number in pinned if number not in stable]:
        yield Comment(f"PCR {', '.join(varying)} left out: the values differ between the machines.")
    if by_events := [str(number) for number in values if number in judged]:
        yield Comment(f"PCR {', '.join(by_events)} left out: their events are judged, below.")
    if stable:
        yield Block("pcr", [Rule(f'"{number}"', values[number].pop().hex()) for number in stable])


def _block(events: Sequence[Node]) -> Iterator[Node]:
    yield Comment("What the event log must prove. Only digests are proven; names are told by who measured.")
    yield Block("events", events)


def _events(facts: Sequence[BootFacts]) -> Iterator[Node]:
    if all(each.secure_boot is True for each in facts):
        yield Comment("Only signed boot loaders and kernels are started.")
        yield Rule("secure_boot", value=True)
    else:
        yield Comment("Secure Boot is not on everywhere: switch it on, then add secure_boot = true.")
    for name, what in _VARIABLES:
        if all(name in each.variables for each in facts):
            hashes = _union(each.variables[name] for each in facts)
            yield from _allow_only(name, f"{name}, {what}: nobody else.", dict.fromkeys(hashes, ""))
    if all("dbx" in each.variables for each in facts):
        revoked = sorted(set(facts[0].variables["dbx"]).intersection(*(each.variables["dbx"] for each in facts)))
        if revoked:
            about = "dbx, what is revoked: none of it may be taken back. Updates may add to it."
            yield Comment(about)
            yield Block("dbx", [Line("require", [(each.hex(), "") for each in revoked])])
    if any(each.unproven for each in facts):
        yield Comment("No authorities and no command_line: events that prove nothing of theirs might be such.")
    elif all(each.authorities for each in facts):
        found = _union(each.authorities for each in facts)
        about = "By whose keys, or hashes, the boot loaders and kernels were verified."
        yield from _allow_only("authorities", about, dict.fromkeys(found, ""))
    yield from _measured(facts, "drivers", "Drivers on cards, which run before any boot loader.", _drivers)
    yield from _measured(facts, "images", "Boot loaders and kernels that the firmware started.", _images)
    yield from _measured(facts, "files", _ABOUT_FILES, _files)
    yield from _command_lines(facts)
    if all(each.firmware_version is not None for each in facts):
        versions = sorted({literal(each.firmware_version or "") for each in facts})
        yield Comment("The firmware's version, as it tells it.")
        yield Rule("firmware_version", versions)


def _drivers(facts: BootFacts) -> list[Measured]:
    return [each for each in facts.images if each.pcr == DRIVER_PCR]


def _images(facts: BootFacts) -> list[Measured]:
    return [each for each in facts.images if each.pcr != DRIVER_PCR]


def _files(facts: BootFacts) -> list[Measured]:
    return list(facts.files)


def _measured(
    facts: Sequence[BootFacts], key: str, about: str, choose: Callable[[BootFacts], list[Measured]]
) -> Iterator[Node]:
    measured = [choose(machine) for machine in facts]
    # A machine without any may have what the others have; but what booted it must be told.
    if all(measured) or (key == "drivers" and any(measured)):
        yield from _allow_only(key, about, {each.digest: each.name for found in measured for each in found})


def _command_lines(facts: Sequence[BootFacts]) -> Iterator[Node]:
    if not all(each.command_lines for each in facts) or any(each.unproven for each in facts):
        return
    lines = {_UUID.sub("[0-9a-fA-F-]{36}", literal(line)) for each in facts for line in each.command_lines}
    yield Comment("The kernel's command line, as a whole. UUIDs of disks differ from machine to machine.")
    yield Rule("command_line", sorted(lines))


def _allow_only(key: str, about: str, found: Mapping[bytes, str]) -> list[Node]:
    digests = [(digest.hex(), name) for digest, name in found.items()]
    return [Comment(about), Block(key, [Line("allow_only", digests)])]


def _firmware(machines: Sequence[Machine]) -> Iterator[Node]:
    versions = [machine.tpm_firmware for machine in machines]
    makers = {each for machine in machines for each in machine.evidence.selectors if each.startswith("manufacturer:")}
    if all(versions) and len(makers) <= 1:
        yield Comment("The TPM's own firmware: not an older one, whose faults are known.")
        yield Block("tpm_firmware", [Rule("minimum", firmware_text(min(versions)))])


Allowed = dict[tuple[str, str, bytes], None]
"""Path, algorithm, digest; in order."""


def _allowed(machines: Sequence[Machine]) -> Allowed:
    found = {
        (entry.path, entry.algorithm, entry.digest): None
        for machine in machines
        for entry in machine.ima or ()
        if entry.path != aggregate.NAME and not entry.violation
    }
    return dict.fromkeys(sorted(found))


def _lines(allowed: Allowed) -> Iterator[str]:
    return (allow_lists.line(algorithm, digest, path) for path, algorithm, digest in allowed)


def _ima(machines: Sequence[Machine], allowed: Allowed, allow_file: str) -> Iterator[Node]:
    if not all(machine.ima is not None for machine in machines):
        yield Comment("No ima: not every machine has an IMA list.")
        return
    nodes: list[Node] = []
    if allow_file:
        nodes.append(Rule("allow_file", allow_file))
    elif allowed:
        by_path: dict[str, list[str]] = {}
        for path, algorithm, digest in allowed:
            by_path.setdefault(path, []).append(f"{algorithm}:{digest.hex()}")
        nodes.append(Block("allow", [Rule(writing.quoted(path), digests) for path, digests in by_path.items()]))
    violations = sum(entry.violation for machine in machines for entry in machine.ima or ())
    if violations:
        nodes.append(
            Comment(f"{violations} files changed while they were measured, logs perhaps. Nothing proves which.")
        )
        nodes.append(Rule("violations", "allow"))
    if nodes:
        yield Comment('Every file that IMA measures must be one of these. Exclude what changes: exclude = ["/var/.*"]')
        yield Block("ima", nodes)


def _union(lists: Iterable[Sequence[bytes]]) -> list[bytes]:
    return sorted({each for found in lists for each in found})
