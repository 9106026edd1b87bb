"""Stored evidence, proven anew: the quote's signature, then both logs against the registers. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attestors.tpm.event_log import facts, parser
from attestors.tpm.event_log import replay as event_log
from attestors.tpm.event_log.model import REGISTERS, BootFacts, EventLog
from attestors.tpm.evidence import Evidence
from attestors.tpm.ima import aggregate
from attestors.tpm.ima import replay as ima
from attestors.tpm.ima.model import ImaEntry, Prefix
from attestors.tpm.messages import Activate, Proof
from attestors.tpm.pcrs import IMA_PCR, PcrValues
from attestors.tpm.policy.model import Observed
from attestors.tpm.policy.rules import Policies
from attestors.tpm.verification import quote
from operations.errors import Refused


@dataclass(frozen=True, slots=True)
class Machine:
    """What evidence proves. `quoted` is whether a TPM signed it: else its registers are taken as they are."""

    evidence: Evidence
    quoted: bool
    tpm_firmware: int
    log: EventLog | None
    facts: BootFacts | None
    ima: tuple[ImaEntry, ...] | None

    def observed(self, policies: Policies) -> Observed:
        """As an attestation from the boot's beginning has it."""
        return Observed(
            selectors=self.evidence.selectors,
            pcrs=self.evidence.values,
            facts=self.facts,
            ima=self.ima,
            tpm_firmware=self.tpm_firmware,
            standing=frozenset(policies.names),
        )


def replay(evidence: Evidence) -> Machine:
    """Raises Refused for what does not hold together, InvalidArgument for logs that are none."""
    quoted, firmware = False, evidence.tpm_firmware
    if evidence.quote or evidence.signature:
        quoted, firmware = True, _quoted_firmware(evidence)
    log = _believed(evidence) if evidence.event_log else None
    return Machine(
        evidence=evidence,
        quoted=quoted,
        tpm_firmware=firmware,
        log=log,
        facts=facts.facts(log, evidence.bank) if log is not None else None,
        ima=_ima(evidence) if evidence.ima else None,
    )


def _believed(evidence: Evidence) -> EventLog:
    """The log's events of the registers that it has to replay to; others the system goes on extending while it runs."""
    log = parser.parse(evidence.event_log)
    event_log.verify(
        log,
        PcrValues(evidence.bank, {number: evidence.pcrs[number] for number in REGISTERS & evidence.pcrs.keys()}),
    )
    return replace(log, events=tuple(event for event in log.events if event.pcr in REGISTERS))


def _quoted_firmware(evidence: Evidence) -> int:
    """The firmwareVersion of a quote that holds."""
    key = quote.attestation_key(evidence.ak_public)
    asked = Activate(
        credential=b"", secret=b"", nonce=evidence.nonce, bank=evidence.bank, pcrs=tuple(sorted(evidence.pcrs))
    )
    proof = Proof(secret=b"", quote=evidence.quote, signature=evidence.signature, pcrs=evidence.pcrs)
    return quote.verify(key, proof, asked).tpm_firmware


def _ima(evidence: Evidence) -> tuple[ImaEntry, ...]:
    register = evidence.pcrs.get(IMA_PCR)
    if register is None:
        raise Refused(f"an IMA list without PCR {IMA_PCR}, which would prove it: have the evidence made anew")
    entries = ima.replay(evidence.ima, Prefix(), register, evidence.bank).entries
    if not entries:
        raise Refused("an IMA list, but its PCR was not extended yet: have the evidence made anew")
    aggregate.verify(entries[0], evidence.values)
    return entries
