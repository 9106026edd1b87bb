"""A root server with a Workload API that gives the SVID of a downstream server, as the agent beside one would."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from generated.spiffe.workload import workload_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from tests.simulators.canned import Canned
from tests.simulators.house import SVID, AgentClient, House, csr, new_entry, running
from tests.simulators.pki import ec_key, pkcs8


@dataclass
class Nest:
    """`plugin` is the block of a server below `root`; `given` is what the Workload API answers."""

    root: House
    agent: AgentClient
    entry_id: str
    workload_api: Canned
    given: workload_pb2.X509SVIDResponse = field(default_factory=workload_pb2.X509SVIDResponse)

    @property
    def plugin(self) -> str:
        return (
            f'UpstreamAuthority "spire" {{ plugin_data {{ server_address = "127.0.0.1"\n'
            f' server_port = "{self.root.port}"\n workload_api_socket = "{self.workload_api.path}" }} }}'
        )

    async def renew(self) -> None:
        """The Workload API gives a fresh SVID, and the bundle as it is now."""
        key = ec_key()
        params = [svid_pb2.NewX509SVIDParams(entry_id=self.entry_id, csr=csr(key))]
        request = svid_pb2.BatchNewX509SVIDRequest(params=params)
        made = await self.agent.channel.unary(SVID + "BatchNewX509SVID", request, svid_pb2.BatchNewX509SVIDResponse)
        self.given = workload_pb2.X509SVIDResponse()
        self.given.svids.add(
            spiffe_id="spiffe://example.org/downstream",
            x509_svid=b"".join(made.results[0].svid.cert_chain),
            x509_svid_key=pkcs8(key),
            bundle=b"".join(each.asn1 for each in (await self.root.bundle()).x509_authorities),
        )
        self.workload_api.answers["FetchX509SVID"] = [self.given]


@asynccontextmanager
async def nest(folder: Path) -> AsyncGenerator[Nest]:
    (folder / "root").mkdir()
    service = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
    async with running(folder / "root") as root, Canned.serve(folder / "workload.sock", [service]) as workload_api:
        agent = await root.attest()
        entry = new_entry("/downstream", agent.id)
        entry.downstream = True
        [made] = await root.create(entry)
        found = Nest(root, agent, made.id, workload_api)
        await found.renew()
        yield found
