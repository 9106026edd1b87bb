"""Somebody of each kind that may call a server: by what the server goes, not by what they say."""

from __future__ import annotations

from collections.abc import Mapping

from generated.spire.api.server.svid.v1 import svid_pb2
from tests.simulators.house import SVID, House, csr, new_entry, spiffe_id
from tests.simulators.pki import ec_key, pkcs8
from transport.client import Channel
from transport.tls import InProcessIdentity

OPERATOR = "/operator"
ADMIN_IDS = f'admin_ids = ["spiffe://example.org{OPERATOR}"]'
"""The setting of a server that `everybody` works with."""


async def _workload(house: House, path: str) -> Channel:
    """A caller with an X509-SVID of a workload."""
    key = ec_key()
    request = svid_pb2.MintX509SVIDRequest(csr=csr(key, uris=[f"spiffe://example.org{path}"]))
    svid = (await house.local.unary(SVID + "MintX509SVID", request, svid_pb2.MintX509SVIDResponse)).svid
    return await house.remote(InProcessIdentity(tuple(svid.cert_chain), pkcs8(key)))


async def everybody(house: House) -> Mapping[str, Channel]:
    """Callers by kind, of a server with the setting ADMIN_IDS."""
    agent = await house.attest()
    admin = new_entry("/admin", spiffe_id("/parent"))
    admin.admin = True
    downstream = new_entry("/downstream", spiffe_id("/parent"))
    downstream.downstream = True
    await house.create(admin, downstream)
    return {
        "local": house.local,
        "anonymous": await house.remote(),
        "agent": agent.channel,
        "workload": await _workload(house, "/workload"),
        "admin by entry": await _workload(house, "/admin"),
        "admin by configuration": await _workload(house, OPERATOR),
        "downstream": await _workload(house, "/downstream"),
    }
