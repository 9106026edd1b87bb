"""What a proven quote and the logs behind it are worth, by the policies.

The logs are asked for here, and no more of them than is not known yet. What a log says counts only as far as it
replays to the quoted registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from attestors.threads import Threads
from attestors.tpm.configuration import Configuration
from attestors.tpm.event_log import facts as boot_facts
from attestors.tpm.event_log import parser
from attestors.tpm.event_log import replay as event_log_replay
from attestors.tpm.event_log.model import REGISTERS, BootFacts
from attestors.tpm.evidence import Evidence
from attestors.tpm.exchange import Exchange
from attestors.tpm.ima import aggregate
from attestors.tpm.ima import replay as ima_replay
from attestors.tpm.ima.model import Prefix, Replayed
from attestors.tpm.messages import Proof
from attestors.tpm.pcrs import IMA_PCR, PcrValues
from attestors.tpm.policy.judging import judge
from attestors.tpm.policy.model import Judgement, Observed
from attestors.tpm.policy.rules import Policies
from attestors.tpm.records import Boot, state_of
from attestors.tpm.verification.quote import Quote
from operations.errors import InvalidArgument, Refused


class PrefixBroken(Refused):
    """What is new of the IMA list does not go on from what was verified before: ask for all of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """A quote that is proven to be the node's, and what is known of its boot. `kept` is the evidence to add to."""

    exchange: Exchange
    identity: tuple[str, ...]
    proof: Proof
    quote: Quote
    policies: Policies | None
    known: Boot | None
    kept: Evidence | None = None

    @property
    def pcrs(self) -> PcrValues:
        return self.quote.pcrs


@dataclass(frozen=True, slots=True)
class Appraisal:
    """`refusals` are why the node may have no identity, the gravest first; empty when it may.

    The logs are whole where evidence is kept.
    """

    refusals: tuple[str, ...]
    judgement: Judgement | None
    boot: Boot
    event_log: bytes
    ima: bytes


def registers(policies: Policies | None, *, ima: bool) -> tuple[int, ...]:
    """The PCRs to quote."""
    wanted = REGISTERS | (policies.pcrs if policies is not None else frozenset[int]())
    return tuple(sorted(wanted | {IMA_PCR} if ima else wanted))


class Appraiser:
    def __init__(self, configuration: Configuration, threads: Threads) -> None:
        self._configuration = configuration
        self._threads = threads

    def wants_ima(self, policies: Policies | None) -> bool:
        return self._configuration.ima or (policies is not None and policies.wants_ima)

    def _wants_event_log(self, policies: Policies | None) -> bool:
        return self._configuration.event_log or (policies is not None and policies.wants_event_log)

    def room(self, case: Case) -> int:
        """Bytes of logs that the appraisal will hold: those that are too long are not asked for."""
        start = case.known.ima.size if case.known is not None else 0
        event_log, ima = case.proof.event_log_size, max(case.proof.ima_size - start, 0)
        needed = event_log if event_log <= self._configuration.max_event_log_size else 0
        needed += ima if ima <= self._configuration.max_ima_size else 0
        return needed if case.kept is None else needed + len(case.kept.event_log) + len(case.kept.ima)

    async def appraise(self, case: Case) -> Appraisal:
        """Raises InvalidArgument for answers that are none, and PrefixBroken where all is to be asked for anew."""
        faults: list[str] = []
        facts: BootFacts | None = None
        event_log, ima = b"", b""
        if self._wants_event_log(case.policies) and case.proof.event_log_size:
            try:
                event_log, facts = await self._event_log(case)
            except _Unusable as error:
                faults.append(str(error))
                event_log = error.data
        replayed: Replayed | None = None
        if self.wants_ima(case.policies) and case.proof.ima_size and not (faults and self._configuration.enforced):
            try:
                ima, replayed = await self._ima(case)
            except _Unusable as error:
                faults.append(str(error))
                ima = error.data
        judgement: Judgement | None = None
        if case.policies is not None and not (faults and self._configuration.enforced):
            judgement = await self._judge(case, case.policies, facts, replayed)
        boot = Boot(
            policies=_digest(case.policies),
            state=state_of(case.pcrs),
            event_log=case.proof.event_log_hash if facts is not None else b"",
            facts=facts,
            ima=replayed.prefix if replayed is not None else Prefix(),
            standing=judgement.ima if judgement is not None else (),
        )
        return Appraisal(
            (*faults, *(judgement.reasons if judgement is not None else ())), judgement, boot, event_log, ima
        )

    async def _event_log(self, case: Case) -> tuple[bytes, BootFacts]:
        proof, known, kept = case.proof, case.known, case.kept
        data = kept.event_log if kept is not None else b""
        same = known is not None and known.event_log == proof.event_log_hash
        if same and kept is not None:
            same = sha256(data).digest() == proof.event_log_hash
        if same and known is not None and known.facts is not None:
            return data, known.facts
        limit = self._configuration.max_event_log_size
        if proof.event_log_size > limit:
            raise _Unusable(
                f"event log: it has {proof.event_log_size} bytes, and may have {limit} (max_event_log_size)"
            )
        data = await case.exchange.log("event_log", 0, proof.event_log_size)
        try:
            facts = await self._threads.run(case.exchange, lambda: _facts(data, proof.event_log_hash, case.pcrs))
        except (InvalidArgument, Refused) as error:
            raise _Unusable(str(error), data) from error
        return data, facts

    async def _ima(self, case: Case) -> tuple[bytes, Replayed]:
        size = case.proof.ima_size
        start, old = Prefix(), b""
        if case.known is not None and case.known.ima.size <= size:
            start = case.known.ima
        if case.kept is not None:
            old = case.kept.ima[: start.size]
            if len(old) < start.size:
                start, old = Prefix(), b""
        limit = self._configuration.max_ima_size
        if size - start.size > limit:
            raise _Unusable(
                f"IMA list: it has {size - start.size} bytes that were not verified before, and may have {limit} "
                "(max_ima_size)"
            )
        data = await case.exchange.log("ima", start.size, size)
        try:
            replayed = await self._threads.run(case.exchange, lambda: _replayed(data, start, case.pcrs))
        except (InvalidArgument, Refused) as error:
            if start.size:
                raise PrefixBroken(str(error)) from error
            raise _Unusable(str(error), data) from error
        # What is kept is what was quoted, and not how the list went on.
        return old + data[: replayed.prefix.size - start.size] if case.kept is not None else b"", replayed

    async def _judge(
        self, case: Case, policies: Policies, facts: BootFacts | None, replayed: Replayed | None
    ) -> Judgement:
        # Before the first entry of a list there is none that a policy could object to.
        first = replayed is None or replayed.prefix.entries == len(replayed.entries)
        standing = policies.names if first else case.known.standing if case.known is not None else ()
        observed = Observed(
            selectors=case.identity,
            pcrs=case.pcrs,
            facts=facts,
            ima=None if replayed is None else replayed.entries,
            tpm_firmware=case.quote.tpm_firmware,
            standing=frozenset(standing),
        )
        return await self._threads.run(case.exchange, lambda: judge(policies, observed))


class _Unusable(Refused):
    """A log that says nothing; `data` is what came of it."""

    def __init__(self, reason: str, data: bytes = b"") -> None:
        super().__init__(reason)
        self.data = data


def _digest(policies: Policies | None) -> bytes:
    return policies.digest if policies is not None else b""


def _facts(data: bytes, announced: bytes, pcrs: PcrValues) -> BootFacts:
    """What the log says, if it is the announced one and replays. Raises InvalidArgument and Refused."""
    if sha256(data).digest() != announced:
        raise Refused("event log: it is not the one that the agent announced by its hash")
    log = parser.parse(data)
    event_log_replay.verify(log, pcrs)
    return boot_facts.facts(log, pcrs.bank)


def _replayed(data: bytes, start: Prefix, pcrs: PcrValues) -> Replayed:
    """Raises InvalidArgument and Refused."""
    replayed = ima_replay.replay(data, start, pcrs.values[IMA_PCR], pcrs.bank)
    if not start.entries:
        if not replayed.entries:
            raise Refused("IMA list: PCR 10 is as a reset leaves it: no entry of the list was extended")
        aggregate.verify(replayed.entries[0], pcrs)
    return replayed
