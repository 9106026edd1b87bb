"""What a node's identity and state are called in selectors, without the type "tpm"."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from attestors.tpm.event_log.model import BootFacts
from attestors.tpm.pcrs import PcrValues


class Endorsed(Protocol):
    """What is read of an endorsement."""

    @property
    def hash(self) -> str: ...
    @property
    def manufacturer(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def firmware(self) -> str: ...


def of_identity(endorsement: Endorsed) -> tuple[str, ...]:
    """The EK, and what its certificate says of the TPM, where there is one."""
    told = (
        ("manufacturer", endorsement.manufacturer),
        ("model", endorsement.model),
        ("firmware", endorsement.firmware),
    )
    return (f"ek:{endorsement.hash}", *(f"{name}:{value}" for name, value in told if value))


class Built(Protocol):
    """What is read of a platform certificate."""

    @property
    def manufacturer(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def serial(self) -> str: ...


def of_platform(platform: Built) -> tuple[str, ...]:
    """The machine that the TPM was built into, as its maker calls it."""
    told = (
        ("manufacturer", platform.manufacturer),
        ("model", platform.model),
        ("version", platform.version),
        ("serial", platform.serial),
    )
    return tuple(f"platform:{name}:{value}" for name, value in told if value)


def of_state(
    pcrs: PcrValues, facts: BootFacts | None, satisfied: Collection[str], ima: Collection[str]
) -> Iterator[str]:
    """`satisfied` are the policies that the node satisfies, `ima` those that judged its files."""
    for number, value in sorted(pcrs.values.items()):
        yield f"pcr:{pcrs.bank}:{number}:{value.hex()}"
    if facts is not None and facts.secure_boot is not None:
        yield f"secureboot:{str(facts.secure_boot).lower()}"
    for name in satisfied:
        yield f"policy:{name}"
    for name in ima:
        yield f"ima:{name}"
