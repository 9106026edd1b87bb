"""Callers of a server with X509-SVIDs: workloads of its own trust domain, and those of a foreign one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2
from tests.simulators import pki
from tests.simulators.house import SVID, House, csr
from transport.client import Channel
from transport.tls import InProcessIdentity


async def minted(house: House, path: str) -> Channel:
    """A caller with an X509-SVID of a workload."""
    key = pki.ec_key()
    request = svid_pb2.MintX509SVIDRequest(csr=csr(key, uris=[f"spiffe://example.org{path}"]))
    svid = (await house.local.unary(SVID + "MintX509SVID", request, svid_pb2.MintX509SVIDResponse)).svid
    return await house.remote(InProcessIdentity(tuple(svid.cert_chain), pki.pkcs8(key)))


@dataclass(frozen=True)
class ForeignDomain:
    """A trust domain with an authority that is good now."""

    name: str
    authority: pki.Authority

    @classmethod
    def of(cls, name: str) -> ForeignDomain:
        now = datetime.now(UTC)
        content = pki.Certificate(
            uris=(f"spiffe://{name}",),
            subject=name,
            ca=True,
            usage=("key_cert_sign",),
            not_before=now - pki.HOUR,
            not_after=now + pki.HOUR,
        )
        return cls(name, pki.Authority.root(f"spiffe://{name}").sub(content))

    def bundle(self) -> bundle_pb2.Bundle:
        authorities = [bundle_pb2.X509Certificate(asn1=self.authority.der)]
        return bundle_pb2.Bundle(trust_domain=self.name, x509_authorities=authorities)

    async def caller(self, house: House, path: str, *, lifetime: float = 0.5) -> Channel:
        """A workload of this trust domain; its SVID is good for `lifetime` hours."""
        key = pki.ec_key()
        now = datetime.now(UTC)
        content = pki.Certificate(
            uris=(f"spiffe://{self.name}{path}",), not_before=now - pki.HOUR, not_after=now + lifetime * pki.HOUR
        )
        return await house.remote(InProcessIdentity((self.authority.sign(content, key),), pki.pkcs8(key)))
