"""A node with a TPM of Python that says what a test has it say, and the server half as a server loads it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from attestors.tpm import configuration, server
from attestors.tpm.messages import Activate, Ask, Certification, Hello, Part, Proof, decode, encode
from operations import logs
from operations.errors import InvalidArgument
from operations.logs import Logger
from plugins.nodeattestor import AttestedNode
from tests.simulators.measured_boot import MeasuredBoot
from tests.simulators.pki import PrivateKey, spki
from tests.simulators.soft_tpm import SoftTpm

BIG = 1 << 24


@dataclass
class TpmNode:
    """`event_log` and `ima` are what it sends; `alter_…` change its messages before they leave."""

    tpm: SoftTpm = field(default_factory=SoftTpm)
    certificates: tuple[bytes, ...] = ()
    svid_key: PrivateKey | None = None
    alter_hello: Callable[[Hello], Hello] = lambda hello: hello
    alter_proof: Callable[[Proof, Activate], Proof] = lambda proof, asked: proof
    alter_part: Callable[[Part, Ask], Part] = lambda part, ask: part
    asked: list[Activate | Ask] = field(default_factory=list[Activate | Ask])

    def __post_init__(self) -> None:
        self.boot = MeasuredBoot(self.tpm)

    def started(self, loader: bytes = b"loader") -> TpmNode:
        """As a machine that has booted and runs a few programs."""
        self.boot.boot(loader=loader)
        self.boot.aggregate()
        for path in ("/usr/lib/systemd/systemd", "/usr/bin/sh"):
            self.boot.run(path)
        return self

    def reboot(self, loader: bytes = b"loader") -> None:
        self.tpm.reset()
        self.boot = MeasuredBoot(self.tpm)
        self.started(loader)

    @property
    def hash(self) -> str:
        return hashlib.sha256(spki(self.tpm.ek)).hexdigest()

    @property
    def id(self) -> str:
        return f"spiffe://example.org/spire/agent/tpm/{self.hash}"

    @property
    def payload(self) -> bytes:
        hello = Hello(ek_public=self.tpm.ek_public, ak_public=self.tpm.ak_public, ek_certificates=self.certificates)
        return encode(self.alter_hello(hello))

    async def respond(self, challenge: bytes) -> bytes:
        await asyncio.sleep(0)
        try:
            asked = decode(Activate, challenge, BIG)
        except InvalidArgument:
            ask = decode(Ask, challenge, BIG)
            self.asked.append(ask)
            log = self.boot.event_log if ask.log == "event_log" else self.boot.ima
            return encode(self.alter_part(Part(data=log[ask.offset : ask.offset + ask.size]), ask))
        self.asked.append(asked)
        return encode(self.alter_proof(self.proof(asked), asked))

    def proof(self, asked: Activate) -> Proof:
        quote, signature = self.tpm.quote(asked.nonce, asked.bank, asked.pcrs)
        try:
            secret = self.tpm.activate(asked)
        except ValueError:
            secret = bytes(32)  # it goes on without, as who has no right to it might
        return Proof(
            secret=secret,
            quote=quote,
            signature=signature,
            pcrs={number: self.tpm.pcrs[asked.bank][number] for number in asked.pcrs},
            certification=self.certification(asked),
            event_log_size=len(self.boot.event_log),
            event_log_hash=hashlib.sha256(self.boot.event_log).digest(),
            ima_size=len(self.boot.ima),
        )

    def certification(self, asked: Activate) -> Certification | None:
        return self.tpm.certify(self.svid_key, asked.nonce) if self.svid_key is not None else None

    @property
    def asked_for(self) -> list[tuple[str, int, int]]:
        """What parts of logs the server has asked for: log, offset, size."""
        return [(ask.log, ask.offset, ask.size) for ask in self.asked if isinstance(ask, Ask)]


@dataclass
class Records:
    """plugins.nodeattestor.NodeRecords, in memory."""

    kept: dict[str, bytes] = field(default_factory=dict[str, bytes])
    evicted: set[str] = field(default_factory=set[str])

    async def get(self, spiffe_id: str) -> bytes | None:
        return self.kept.get(spiffe_id)

    async def put(self, spiffe_id: str, record: bytes) -> None:
        if spiffe_id in self.kept:
            self.kept[spiffe_id] = record

    async def evict(self, spiffe_id: str) -> None:
        if spiffe_id in self.kept:
            self.evicted.add(spiffe_id)


@dataclass
class Attesting:
    """A server half with `settings`, which knows the endorsement keys in its hash file."""

    folder: Path
    settings: dict[str, object] = field(default_factory=dict[str, object])
    trust_domain: str = "example.org"
    records: Records = field(default_factory=Records)
    log: Logger = field(default_factory=lambda: logs.get("node_attestor"))
    attestor: server.TpmAttestor | None = None

    @property
    def node_records(self) -> Records:
        return self.records

    @property
    def hashes(self) -> Path:
        return self.folder / "ek-hashes"

    @property
    def policy(self) -> Path:
        return self.folder / "policy.hcl"

    def know(self, *nodes: TpmNode) -> None:
        self.hashes.write_text("".join(f"{node.hash}\n" for node in nodes))

    async def start(self, policy: str = "", **settings: object) -> server.TpmAttestor:
        """Load it, or load it anew with other settings."""
        self.settings |= {"endorsement_hash_path": str(self.hashes)} if self.hashes.exists() else {}
        self.settings |= settings
        if policy:
            self.policy.write_text(policy)
            self.settings["policy_path"] = str(self.policy)
        made = replace(configuration.Configuration(), **self.settings)
        self.attestor = await server.load(made, self)
        return self.attestor

    async def attest(self, node: TpmNode) -> AttestedNode:
        """An attestation, and the admission of who passes it."""
        attestor = self.attestor or await self.start()
        node.asked.clear()
        verdict = await attestor.attest(node.payload, node.respond)
        if verdict.record is not None:
            self.records.kept[verdict.spiffe_id] = verdict.record
        return verdict
