"""The server half of NodeAttestor "tpm": a node is its TPM's endorsement key, in a state that the policies allow.

Cheap proofs come first: what a node says of itself is looked at once its TPM has opened a secret, and its logs once
its quote holds. Only what comes after the secret is the node's own fault: before, anybody can claim any TPM.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from dataclasses import dataclass
from dataclasses import replace as changed
from datetime import UTC, datetime
from typing import Final, Protocol

from msgspec.structs import replace

from attestors.threads import Threads
from attestors.tpm import records, selectors
from attestors.tpm.appraisal import Appraisal, Appraiser, Case, PrefixBroken, registers
from attestors.tpm.budget import Budget
from attestors.tpm.configuration import Configuration
from attestors.tpm.evidence import Evidence
from attestors.tpm.evidence_store import EvidenceStore
from attestors.tpm.exchange import Exchange
from attestors.tpm.messages import HELLO_LIMIT, NONCE_SIZE, VERSION, Activate, Hello, Proof, decode
from attestors.tpm.pcrs import IMA_PCR, PcrValues
from attestors.tpm.policy import loading
from attestors.tpm.policy.rules import Policies
from attestors.tpm.records import Record
from attestors.tpm.sources import Source, policy_files
from attestors.tpm.verification import certify, clock, credential, endorsement, platform, quote
from attestors.tpm.verification.endorsement import Endorsement, Trust
from attestors.tpm.verification.quote import AttestationKey, Quote
from attestors.turns import Turns
from identity.selectors import Selector
from operations.errors import Corrupt, InvalidArgument, Refused, SpireError, TemporarilyUnavailable
from operations.logs import Logger
from plugins.nodeattestor import AttestedNode, Challenge, NodeRecords

NAME: Final = "tpm"

_THREADS: Final = 4
_SECRET_SIZE: Final = 32
_WIRE_REASON: Final = 300
"""Characters of a reason that the agent is told."""


class Context(Protocol):
    """What a server gives to this plugin."""

    @property
    def trust_domain(self) -> str: ...
    @property
    def log(self) -> Logger: ...
    @property
    def node_records(self) -> NodeRecords: ...


class Unfit(Refused):
    """A node whose evidence is good, and shows what the policies do not allow. The text is for the wire."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        first = reasons[0]
        super().__init__(first if len(first) <= _WIRE_REASON else f"{first[: _WIRE_REASON - 1]}…")
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class _Guest:
    """Who says that it is which TPM, what it was asked, and the secret that only this TPM can have read."""

    endorsement: Endorsement
    key: AttestationKey
    ak_public: bytes
    asked: Activate
    secret: bytes
    identity: tuple[str, ...]


@dataclass(slots=True)
class _Findings:
    """What is known at the moment of a refusal, `record` being of before, None where none was kept."""

    proof: Proof
    record: Record | None
    quote: Quote | None = None
    appraisal: Appraisal | None = None


class TpmAttestor:
    name = NAME

    def __init__(
        self,
        configuration: Configuration,
        trust: Source[Trust],
        platforms: Source[Trust] | None,
        policies: Source[Policies] | None,
        evidence: EvidenceStore | None,
        context: Context,
    ) -> None:
        self._configuration = configuration
        self._trust = trust
        self._platforms = platforms
        self._policies = policies
        self._evidence = evidence
        self._context = context
        self._log = context.log
        self._records = context.node_records
        self._threads = Threads("tpm-attestation", most=_THREADS, each=1)
        self._turns = Turns(1)
        self._budget = Budget(configuration.max_logs_size)
        self._appraiser = Appraiser(configuration, self._threads)

    async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        """`payload` is messages.Hello. Raises InvalidArgument, Refused, TemporarilyUnavailable, and as `challenge`."""
        try:
            async with asyncio.timeout(self._configuration.timeout.total_seconds()):
                return await self._attest(payload, Exchange(challenge))
        except TimeoutError as error:
            seconds = self._configuration.timeout.total_seconds()
            raise TemporarilyUnavailable(f"the attestation did not end within {seconds:g} s (timeout)") from error

    async def _attest(self, payload: bytes, exchange: Exchange) -> AttestedNode:
        trust = await self._trust.get()
        platforms = await self._platforms.get() if self._platforms is not None else None
        policies = await self._policies.get() if self._policies is not None else None
        guest = await self._threads.run(exchange, lambda: self._introduced(payload, trust, platforms, policies))
        proof = await exchange.activate(guest.asked)
        if not hmac.compare_digest(guest.secret, proof.secret):
            raise Refused(
                "the credential was not opened: the attestation key is not in the TPM that the endorsement key is of"
            )
        agent_id = f"spiffe://{self._context.trust_domain}/spire/agent/{NAME}/{guest.endorsement.hash}"
        async with self._turns.of(agent_id):
            findings = _Findings(proof, await self._record(agent_id))
            try:
                return await self._judged(agent_id, exchange, guest, policies, findings)
            except (Refused, InvalidArgument) as error:
                await self._refused(agent_id, guest, findings, error)
                raise

    def _introduced(self, payload: bytes, trust: Trust, platforms: Trust | None, policies: Policies | None) -> _Guest:
        hello = decode(Hello, payload, HELLO_LIMIT)
        if hello.version != VERSION:
            raise Refused(f"the agent speaks version {hello.version} of this attestation, and this server {VERSION}")
        endorsed = endorsement.verify(hello, trust, datetime.now(UTC))
        key = quote.attestation_key(hello.ak_public, endorsed.public)
        secret = secrets.token_bytes(_SECRET_SIZE)
        hidden, seed = credential.make(endorsed.public, key.name, secret)
        asked = Activate(
            credential=hidden,
            secret=seed,
            nonce=secrets.token_bytes(NONCE_SIZE),
            bank=self._configuration.pcr_bank,
            pcrs=registers(policies, ima=self._appraiser.wants_ima(policies)),
        )
        identity = selectors.of_identity(endorsed)
        if platforms is not None and endorsed.certified:
            identity += self._platform(hello, platforms, endorsed.hash)
        return _Guest(endorsed, key, hello.ak_public, asked, secret, identity)

    def _platform(self, hello: Hello, platforms: Trust, name: str) -> tuple[str, ...]:
        """What a platform certificate that holds calls the machine. One that does not says nothing."""
        if not hello.platform_certificates:
            return ()
        try:
            found = platform.verify(hello.platform_certificates, platforms, hello.ek_certificates[0], datetime.now(UTC))
        except (InvalidArgument, Refused) as error:
            self._log.warning("No platform certificate of the node counts", ek=name, reason=str(error))
            return ()
        return selectors.of_platform(found)

    async def _record(self, agent_id: str) -> Record | None:
        data = await self._records.get(agent_id)
        if data is None:
            return None
        try:
            return records.load(data)
        except Corrupt as error:
            self._log.error("The node is attested as if it were unknown", agent_id=agent_id, error=str(error))
            return Record()

    async def _judged(
        self,
        agent_id: str,
        exchange: Exchange,
        guest: _Guest,
        policies: Policies | None,
        findings: _Findings,
    ) -> AttestedNode:
        record = findings.record or Record()
        found, public_key = await self._threads.run(exchange, lambda: self._proven(guest, findings.proof))
        findings.quote = found
        if record.clock is not None:
            clock.require_later(found.clock, record.clock)
        digest = policies.digest if policies is not None else b""
        known = record.boot_of(guest.key.name, found.clock, found.pcrs, digest)
        kept: Evidence | None = None
        if self._evidence is not None:
            store = self._evidence
            kept = await self._threads.run(exchange, lambda: store.latest(guest.endorsement.hash)) or Evidence(
                taken_at=0, bank=found.pcrs.bank, pcrs={}
            )
        case = Case(exchange, guest.identity, findings.proof, found, policies, known, kept)
        appraisal = await self._appraised(case)
        findings.appraisal = appraisal
        if appraisal.refusals:
            if self._configuration.enforced:
                raise Unfit(appraisal.refusals)
            self._log.warning(
                "A node that would be refused is let in, as mode is observe",
                agent_id=agent_id,
                reasons="; ".join(appraisal.refusals),
                evidence=await self._keep(agent_id, guest, findings, refused=True),
            )
        await self._keep(agent_id, guest, findings, refused=False)
        failure = records.failure(int(time.time()), appraisal.refusals) if appraisal.refusals else record.failure
        accepted = Record(ak=guest.key.name, clock=found.clock, boot=appraisal.boot, failure=failure)
        return AttestedNode(
            agent_id,
            self._selectors(guest, found, policies, appraisal),
            can_reattest=True,
            public_key=public_key,
            record=records.dump(accepted),
        )

    def _proven(self, guest: _Guest, proof: Proof) -> tuple[Quote, bytes | None]:
        """The quote, and the key that the SVID has to be of, if that is bound."""
        found = quote.verify(guest.key, proof, guest.asked)
        if proof.certification is not None:
            return found, certify.verify(guest.key, proof.certification, guest.asked.nonce)
        if self._configuration.require_tpm_key:
            raise Refused(
                "the TPM has not certified the SVID's key, which require_tpm_key asks for: "
                'give the agent KeyManager "tpm"'
            )
        return found, None

    async def _appraised(self, case: Case) -> Appraisal:
        """As the appraiser says; once more from the beginning where the IMA list does not go on from its prefix."""
        try:
            async with self._budget.of(self._appraiser.room(case)):
                return await self._appraiser.appraise(case)
        except PrefixBroken as error:
            self._log.info("The node's logs are asked for anew", identity=case.identity[0], reason=str(error))
        again = changed(case, known=None)
        async with self._budget.of(self._appraiser.room(again)):
            return await self._appraiser.appraise(again)

    def _selectors(
        self, guest: _Guest, found: Quote, policies: Policies | None, appraisal: Appraisal
    ) -> list[Selector]:
        values = dict(found.pcrs.values)
        if self._appraiser.wants_ima(policies):
            values.pop(IMA_PCR, None)
        judgement = appraisal.judgement
        satisfied = judgement.satisfied if judgement is not None else ()
        ima = [name for name in judgement.ima if name in satisfied] if judgement is not None else ()
        state = selectors.of_state(PcrValues(found.pcrs.bank, values), appraisal.boot.facts, satisfied, ima)
        return [Selector(NAME, value) for value in (*guest.identity, *state)]

    async def _refused(
        self, agent_id: str, guest: _Guest, findings: _Findings, error: Refused | InvalidArgument
    ) -> None:
        """Write down why, and evict the node if that is configured. The refusal stands, whatever becomes of this."""
        reasons = error.reasons if isinstance(error, Unfit) else (str(error),)
        file = await self._keep(agent_id, guest, findings, refused=True)
        self._log.error("Node is refused", agent_id=agent_id, reasons="; ".join(reasons), evidence=file)
        if findings.record is None:
            return  # of a node that never was let in, nothing is there to be changed
        failed = replace(findings.record, failure=records.failure(int(time.time()), reasons))
        try:
            if self._configuration.evict_on_failure:
                await self._records.evict(agent_id)
                self._log.warning("Node is evicted, as evict_on_failure is set", agent_id=agent_id)
            await self._records.put(agent_id, records.dump(failed))
        except SpireError as away:
            self._log.error("The refusal of a node is not written down", agent_id=agent_id, error=str(away))

    async def _keep(self, agent_id: str, guest: _Guest, findings: _Findings, *, refused: bool) -> str:
        """The file with the evidence; empty where none is kept."""
        store, found, appraisal = self._evidence, findings.quote, findings.appraisal
        if store is None or found is None:
            return ""
        evidence = Evidence(
            taken_at=int(time.time()),
            agent_id=agent_id,
            selectors=guest.identity,
            bank=found.pcrs.bank,
            pcrs=dict(found.pcrs.values),
            tpm_firmware=found.tpm_firmware,
            nonce=guest.asked.nonce,
            quote=findings.proof.quote,
            signature=findings.proof.signature,
            ak_public=guest.ak_public,
            event_log=appraisal.event_log if appraisal is not None else b"",
            ima=appraisal.ima if appraisal is not None else b"",
        )
        name = guest.endorsement.hash
        try:
            path = await self._threads.run(agent_id, lambda: store.keep(name, evidence, refused=refused))
        except (SpireError, OSError) as error:
            self._log.error("The node's evidence is not kept", agent_id=agent_id, error=str(error))
            return ""
        return str(path)


async def load(configuration: Configuration, context: Context) -> TpmAttestor:
    """Raises ConfigurationError for files that cannot be used."""
    return await asyncio.to_thread(_load, configuration, context)


def _load(configuration: Configuration, context: Context) -> TpmAttestor:
    ca_path, hash_path, policy_path = (
        configuration.endorsement_ca_path,
        configuration.endorsement_hash_path,
        configuration.policy_path,
    )
    anchors = [path for path in (ca_path, hash_path) if path]
    trust = Source("endorsement trust", lambda: endorsement.load(ca_path, hash_path), lambda: anchors, context.log)
    platforms = policies = None
    if platform_path := configuration.platform_ca_path:
        platforms = Source("platform trust", lambda: platform.load(platform_path), lambda: [platform_path], context.log)
    if policy_path:
        policies = Source(
            "boot policy", lambda: loading.load(policy_path), lambda: policy_files(policy_path), context.log
        )
    evidence = None
    if configuration.evidence_path:
        evidence = EvidenceStore(
            configuration.evidence_path, most=configuration.max_evidence_files, size=configuration.max_evidence_size
        )
    return TpmAttestor(configuration, trust, platforms, policies, evidence, context)
