"""CPU time of issuing, without server, network or device: `python bench/issue_rate.py`.

Prints milliseconds of CPU per X509-SVID, spliced from the template and by cryptography's builder, per CSR check, and
per JWT-SVID, with a P-256 key in memory.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from identity.bundles import Bundle, JwtAuthority, WitAuthority
from identity.spiffeid import SpiffeId, TrustDomain
from keystores.memory import MemoryKeyManager
from plugins.keymanager import Key
from server.ca import checks, names, signing, template
from server.ca.certificate_authority import CaSettings, CertificateAuthority
from server.ca.checks import ApprovedX509
from server.ca.template import Leaf

TRUST_DOMAIN = TrustDomain("example.org")
ROUNDS = 5
BATCH = 200


@dataclass(frozen=True)
class Entry:
    spiffe_id: str
    dns_names: Sequence[str] = ()
    x509_svid_ttl: int = 0


class NoStore:
    """Keeps nothing but the root."""

    root = b""

    async def load_journal(self) -> bytes | None:
        return None

    async def save_journal(self, data: bytes) -> None:
        pass

    async def bundle(self) -> Bundle | None:
        return None

    async def edit(self, change: Callable[[Bundle], Bundle]) -> Bundle:
        return change(Bundle(TRUST_DOMAIN))

    async def append_x509_authority(self, der: bytes) -> None:
        self.root = der

    async def append_jwt_authority(self, authority: JwtAuthority) -> None:
        pass

    async def append_wit_authority(self, authority: WitAuthority) -> None:
        pass

    async def prune(self, expires_before: int) -> None:
        pass


async def measure(name: str, count: int, work: Callable[[], Awaitable[object]]) -> float:
    """The best of some rounds, in milliseconds of CPU per item."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        await work()
        best = min(best, (time.process_time() - start) / count * 1000)
    print(f"{name:<44} {best:.3f} ms")
    return best


async def issuing(authority: CertificateAuthority) -> None:
    """The whole path: what a server does for a batch, for single requests, and for tokens."""
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    batch = [(request, Entry(f"spiffe://example.org/workload/{number}")) for number in range(BATCH)]

    async def check() -> list[ApprovedX509]:
        approved = await checks.approve_workloads(batch, TRUST_DOMAIN)
        return [each for each in approved if isinstance(each, ApprovedX509)]

    async def check_and_issue() -> None:
        await authority.issue_x509(await check())

    async def one_by_one() -> None:
        for csr, entry in batch:
            await authority.issue_x509([checks.approve_workload(csr, entry, TRUST_DOMAIN)])

    async def tokens() -> None:
        spiffe_id = SpiffeId(TRUST_DOMAIN, "/workload")
        for _ in range(BATCH):
            await authority.issue_jwt(checks.approve_jwt(spiffe_id, ["audience"]))

    await measure("CSR check", BATCH, check)
    await measure(f"X509-SVID, whole path, batches of {BATCH}", BATCH, check_and_issue)
    await measure("X509-SVID, whole path, one by one", BATCH, one_by_one)
    await measure("JWT-SVID, whole path", BATCH, tokens)


async def template_and_builder(root: bytes, key: Key) -> None:
    """Making and signing a certificate, either way."""
    issuer = x509.load_der_x509_certificate(root)
    issuer_key = ec.generate_private_key(ec.SECP256R1())
    subject = names.leaf_name()
    now = int(time.time())
    leaves = [
        Leaf(
            serial=signing.new_serial(),
            not_before=now,
            not_after=now + 3600,
            subject=subject.public_bytes(),
            spiffe_id=f"spiffe://example.org/workload/{number}",
            dns_names=(),
            public_key=key.public_key,
        )
        for number in range(BATCH)
    ]
    spliced = template.LeafTemplate(issuer, key.key_type)
    scheme = signing.SCHEMES[key.key_type]

    async def build() -> None:
        for leaf in leaves:
            built = template.builder(issuer, leaf, subject).sign(issuer_key, hashes.SHA256())
            built.public_bytes(serialization.Encoding.DER)

    async def splice() -> None:
        bodies = [spliced.tbs(leaf) for leaf in leaves]
        signatures = await key.sign_batch([signing.digest(body, scheme) for body in bodies], scheme)
        for body, signature in zip(bodies, signatures, strict=True):
            signing.certificate(body, spliced.algorithm, signature)

    by_template = await measure("X509-SVID by template, signed", BATCH, splice)
    by_builder = await measure("X509-SVID by cryptography's builder, signed", BATCH, build)
    print(f"builder / template: {by_builder / by_template:.1f}")


async def main() -> None:
    store = NoStore()
    keys = MemoryKeyManager()
    authority = CertificateAuthority(CaSettings(trust_domain=TRUST_DOMAIN), keys, store)
    await authority.start()
    await template_and_builder(store.root, await keys.get("x509-CA-A"))
    await issuing(authority)


if __name__ == "__main__":
    asyncio.run(main())
