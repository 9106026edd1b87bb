"""What an attestation by a TPM costs the server: AttestAgent without its transport, from payload to SVID.

    python -m bench.tpm_attest [--ima-mib 20] [--event-log-kib 200] [--renewals 200]

CPU of the process, without that of the node, which is in it too. The server verifies quote and certification, replays
the logs, judges each file by an allow-list, signs the SVID and writes node, selectors and record to SQLite, synced.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from attestors.tpm.server import TpmAttestor
from generated.spire.api.server.agent.v1 import agent_pb2 as api
from identity.spiffeid import TrustDomain
from keystores.memory import MemoryKeyManager
from operations import logs
from server.authority_store import DatastoreAuthorities
from server.authorization import Caller
from server.ca.certificate_authority import CaSettings, CertificateAuthority
from server.datastore.store import DataStore
from server.nodes import AttestedNodes, StoredNodeRecords
from server.rpc.attest import AgentSigner, Attestation
from server.rpc.call import Call
from tests.simulators.house import csr
from tests.simulators.measured_boot import IPL
from tests.simulators.pki import ec_key
from tests.simulators.tpm_node import Attesting, TpmNode

TRUST_DOMAIN = TrustDomain("example.org")
AIM = 60.0
"""Milliseconds of CPU: 1,000 renewals in a minute on one core."""


@dataclass
class Bench:
    nodes: AttestedNodes
    signer: AgentSigner
    attestor: TpmAttestor
    node: TpmNode
    apart: float = 0.0
    costs: list[float] = field(default_factory=list[float])

    async def attest(self) -> float:
        """Milliseconds of CPU."""
        call = Call(logs.get(), Caller(None), None, "127.0.0.1:1", "127.0.0.1", None, None)
        attestation = Attestation(TRUST_DOMAIN, self.nodes, self.signer, call)
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        first = api.AttestAgentRequest()
        first.params.data.type, first.params.data.payload = "tpm", self.node.payload
        assert self.node.svid_key is not None
        first.params.params.csr = csr(self.node.svid_key)

        async def requests() -> AsyncIterator[api.AttestAgentRequest]:
            yield first
            while True:
                yield api.AttestAgentRequest(challenge_response=await answers.get())

        self.apart = 0.0
        began = time.process_time()
        async for response in attestation.run({"tpm": self.attestor}, requests()):
            if response.HasField("challenge"):
                before = time.thread_time()
                answer = self.node.answer(response.challenge)
                self.apart += time.thread_time() - before
                answers.put_nowait(answer)
        return (time.process_time() - began - self.apart) * 1000

    async def rounds(self, count: int, change: Callable[[], None]) -> list[float]:
        found: list[float] = []
        for _ in range(count):
            change()
            found.append(await self.attest())
        return found


def booted(ima_mib: int, event_log_kib: int) -> TpmNode:
    node = TpmNode(svid_key=ec_key()).started()
    while len(node.boot.event_log) < event_log_kib << 10:
        node.boot.measure(9, IPL, b"a file that the boot loader read, or a command of it".ljust(120, b"."))
    node.boot.ima, node.boot.sizes = b"", []
    node.tpm.pcrs["sha256"][10] = bytes(32)
    node.boot.aggregate()
    parts = [node.boot.ima]
    number = size = 0
    while size < ima_mib << 20:
        node.boot.ima = b""
        node.boot.run(path(number))
        parts.append(node.boot.ima)
        size += len(parts[-1])
        number += 1
    node.boot.sizes = [number]
    node.boot.ima = b"".join(parts)
    return node


def path(number: int) -> str:
    return f"/usr/lib/x86_64-linux-gnu/package-{number // 100}/file-{number}.so"


async def run(options: argparse.Namespace, folder: Path) -> None:
    node = booted(options.ima_mib, options.event_log_kib)
    entries = node.boot.sizes[0]
    store = await DataStore.open(str(folder / "datastore.sqlite3"))
    nodes = AttestedNodes(store)
    authority = CertificateAuthority(
        CaSettings(trust_domain=TRUST_DOMAIN), MemoryKeyManager(), DatastoreAuthorities(store, TRUST_DOMAIN)
    )
    await authority.start()
    attesting = Attesting(folder)
    attesting.stored = StoredNodeRecords(store, nodes)
    attesting.know(node)
    allowed = [path(number) for number in range(entries + 100 * (options.renewals + 1))]
    (folder / "allowed").write_text("".join(f"{sha256(each.encode()).hexdigest()}  {each}\n" for each in allowed))
    rules = 'events { secure_boot = true }\n ima { allow_file = "allowed" }'
    attestor = await attesting.start(f'policy "golden" {{ {rules} }}', require_tpm_key=True)
    bench = Bench(nodes, AgentSigner(authority), attestor, node)
    kib, mib = len(node.boot.event_log) / 1024, len(node.boot.ima) / 2**20
    whole = await bench.attest()
    print(f"first attestation: {kib:.0f} KiB of events, {mib:.1f} MiB of IMA ({entries} entries): {whole:.0f} ms")
    at = entries

    def hundred() -> None:
        nonlocal at
        for number in range(at, at + 100):
            node.boot.run(path(number))
        at += 100

    for what, change in (("nothing new", lambda: None), ("100 new IMA entries", hundred)):
        found = await bench.rounds(options.renewals, change)
        middle = statistics.median(found)
        print(f"renewal, {what}: {middle:.1f} ms (mean {statistics.fmean(found):.1f}), aim {AIM:.0f} ms")
        print(f"    {60_000 / middle:.0f} a minute on one core")
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ima-mib", type=int, default=20)
    parser.add_argument("--event-log-kib", type=int, default=200)
    parser.add_argument("--renewals", type=int, default=200)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
