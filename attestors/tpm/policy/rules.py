"""Policies, read and checked: what judging goes by. All of it is immutable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from attestors.tpm.event_log.model import REGISTERS
from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.pcrs import IMA_PCR
from attestors.tpm.policy.patterns import Patterns

AGGREGATED: Final = range(10)
"""The registers that IMA's boot_aggregate is of."""


class Keys(Protocol):
    """The keys that files may be signed with; attestors.tpm.ima.signatures has them."""

    def signed(self, entry: ImaEntry) -> bool: ...


@dataclass(frozen=True, slots=True)
class DigestRule:
    """Sets of hashes. `allow_only` is None where anything may be, and empty where nothing may."""

    require: frozenset[bytes] = frozenset()
    require_any: frozenset[bytes] = frozenset()
    allow_only: frozenset[bytes] | None = None
    forbid: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class EventRules:
    """`variables` by name; a rule that is None asks for nothing."""

    secure_boot: bool | None = None
    variables: Mapping[str, DigestRule] = field(default_factory=dict[str, DigestRule])
    authorities: DigestRule | None = None
    drivers: DigestRule | None = None
    images: DigestRule | None = None
    files: DigestRule | None = None
    command_line: Patterns | None = None
    firmware_version: Patterns | None = None


@dataclass(frozen=True, slots=True)
class FirmwareRule:
    """Versions as TPMs count them: 64 bits."""

    minimum: int | None = None
    allow: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ImaRules:
    """`allow` has, by algorithm and path, the digests that a file may have."""

    allow: Mapping[str, Mapping[str, tuple[bytes, ...]]]
    exclude: Patterns
    keys: Keys | None
    allow_violations: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """`selectors` by kind (`ek`, `manufacturer` …): a node has one of the values of each, whole selectors."""

    name: str
    selectors: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    pcr: Mapping[int, frozenset[bytes]] = field(default_factory=dict[int, frozenset[bytes]])
    events: EventRules | None = None
    tpm_firmware: FirmwareRule | None = None
    ima: ImaRules | None = None

    @property
    def pcrs(self) -> frozenset[int]:
        """The registers that must be quoted for it."""
        events = REGISTERS if self.events is not None else frozenset[int]()
        ima = frozenset({IMA_PCR, *AGGREGATED}) if self.ima is not None else frozenset[int]()
        return frozenset(self.pcr) | events | ima

    def is_for(self, selectors: Sequence[str]) -> bool:
        """Whether it is for a node with these selectors."""
        return all(not values.isdisjoint(selectors) for values in self.selectors.values())


@dataclass(frozen=True, slots=True)
class Policies:
    """`digest` is over everything that decides, the files that are named included: another one means judging anew."""

    policies: tuple[Policy, ...]
    digest: bytes

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(policy.name for policy in self.policies)

    @property
    def pcrs(self) -> frozenset[int]:
        """The registers that must be quoted."""
        return frozenset[int]().union(*(policy.pcrs for policy in self.policies))

    @property
    def wants_event_log(self) -> bool:
        return any(policy.events is not None for policy in self.policies)

    @property
    def wants_ima(self) -> bool:
        return any(policy.ima is not None for policy in self.policies)
