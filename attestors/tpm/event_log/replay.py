"""A log against the registers: what its events come to, and whether that is what the TPM has quoted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attestors.tpm.event_log.entries import entries, hashed
from attestors.tpm.event_log.event_types import EXIT_BOOT_SERVICES, EXIT_FAILED, EXIT_SUCCEEDED
from attestors.tpm.event_log.model import REGISTERS, EventLog
from attestors.tpm.pcrs import PcrValues, extend, initial
from operations.errors import Refused

_EXIT_PCR: Final = 5
_EXITS: Final = (
    (EXIT_BOOT_SERVICES, EXIT_SUCCEEDED),
    (EXIT_BOOT_SERVICES, EXIT_FAILED, EXIT_BOOT_SERVICES, EXIT_SUCCEEDED),
    (EXIT_BOOT_SERVICES, EXIT_FAILED, EXIT_SUCCEEDED),
)

_HINTS: Final[Mapping[int, str]] = {
    5: "firmware that does not log what it measures while it hands over to the kernel leaves it short",
    8: "if the boot loader's commands filled the log's area, have it measure less",
    9: "if the boot loader's files filled the log's area, have it measure less",
}
_HINT: Final = "the log is cut short (a full buffer: see the kernel's log and the firmware's updates), or was altered"


def replay(log: EventLog, bank: str) -> PcrValues:
    """The values of the registers that have events. Raises Refused for a bank that the log has not."""
    return PcrValues(
        bank,
        {
            number: extend(bank, initial(bank, number, log.locality), digests)
            for number, digests in _digests(log, bank).items()
        },
    )


def verify(log: EventLog, quoted: PcrValues) -> None:
    """Raises Refused, with the first register that is not what the log says.

    All of REGISTERS must be quoted, and those without an event be as a reset leaves them. Others are not looked at, and
    no fact comes of them: PCR 10 is IMA's, and 11, 13 and 15 are extended while the system runs, systemd's phases say,
    in logs that are none of the firmware's.
    """
    missing = REGISTERS - quoted.values.keys()
    if missing:
        raise Refused(
            f"event log: not believed without a quote of PCRs {_listed(missing)}; have the policy ask for them"
        )
    digests = _digests(log, quoted.bank)
    for number in sorted(REGISTERS):
        _verify(log, quoted, number, digests.get(number, []))


def _verify(log: EventLog, quoted: PcrValues, number: int, digests: Sequence[bytes]) -> None:
    bank, value = quoted.bank, quoted.values[number]
    states = [initial(bank, number, log.locality)]
    for digest in digests:
        states.append(extend(bank, states[-1], (digest,)))
    if value == states[-1] or (number == _EXIT_PCR and value in _handed_over(bank, states[-1])):
        return
    name = f"event log: PCR {number} ({bank}) does not replay"
    if not digests:
        raise Refused(f"{name}: the log has no event for it, and the TPM quotes {_short(value)}; {_HINT}")
    if value in states:
        more = len(digests) - states.index(value)
        raise Refused(f"{name}: the last {more} of its {len(digests)} events in the log were never extended")
    raise Refused(
        f"{name}: its {len(digests)} events come to {_short(states[-1])}, the TPM quotes {_short(value)}; "
        f"{_HINTS.get(number, _HINT)}"
    )


def _handed_over(bank: str, value: bytes) -> set[bytes]:
    """PCR 5 after ExitBootServices, of a log that ends before.

    The firmware measures these texts when the kernel has its copy of the log already; kernels before 5.3, and
    firmware without the table of final events (TCG EFI Protocol 2.0, 7), have a log without them.
    """
    return {extend(bank, value, [hashed(bank, text) for text in texts]) for texts in _EXITS}


def _digests(log: EventLog, bank: str) -> dict[int, list[bytes]]:
    """What was extended, by register."""
    found: dict[int, list[bytes]] = {}
    for entry in entries(log, bank):
        found.setdefault(entry.event.pcr, []).append(entry.digest)
    return found


def _listed(numbers: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _short(value: bytes) -> str:
    return f"{value[:8].hex()}…"
