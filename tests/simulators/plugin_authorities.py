"""The halves of the simulated external plugin (tests.simulators.plugin) that stand above and beside a server's CA."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from cryptography import x509
from google.protobuf.message import Message

from authorities import issuing
from generated.spire.plugin.server.credentialcomposer.v1 import credentialcomposer_pb2 as composer
from generated.spire.plugin.server.upstreamauthority.v1 import upstreamauthority_pb2 as upstream
from generated.spire.plugin.types import jwtkey_pb2, x509certificate_pb2
from identity.spiffeid import TrustDomain
from tests.simulators import pki
from tests.simulators.pki import Authority, Certificate, ec_key

WORDS: Final = frozenset(
    {
        # as an upstream authority
        "no-chain", "garbage-chain", "long-chain", "no-roots", "garbage-roots", "many-roots", "foreign-chain",
        "foreign-request", "rotates", "chain-in-update", "endless-updates", "dies-after-mint", "hangs-in-mint",
        "closes-in-mint", "no-publishing", "no-key-id", "bad-jwt-key",
        # as a credential composer
        "leaves-alone", "no-attributes", "no-subject", "bad-oid", "other-subject", "nan-claim", "hangs-in-compose",
    }
)  # fmt: skip


class Words(Protocol):
    def __call__(self, word: str, /) -> bool: ...


def root(name: str) -> Authority:
    key, now = ec_key(), datetime.now(UTC)
    content = Certificate(
        uris=(), subject=name, ca=True, usage=("key_cert_sign",),
        not_before=now - timedelta(hours=1), not_after=now + timedelta(days=2),
    )  # fmt: skip
    signed = Authority.root(name=name, key=key).sign(content, key)
    return Authority(key, x509.load_der_x509_certificate(signed))


def _certificates(ders: Iterable[bytes]) -> list[x509certificate_pb2.X509Certificate]:
    return [x509certificate_pb2.X509Certificate(asn1=each) for each in ders]


class UpstreamHalf:
    """A CA that it makes. Told to, it has another root besides after a moment."""

    def __init__(self, does: Words) -> None:
        self.does = does
        self.signer = root("first")
        self.other = root("second")
        self.keys: list[jwtkey_pb2.JWTKey] = []

    async def mint(self, request: upstream.MintX509CARequest) -> AsyncIterator[upstream.MintX509CAResponse]:
        if self.does("hangs-in-mint"):
            await asyncio.sleep(3600)
        if self.does("closes-in-mint"):
            return
        chain, roots = self._signed(request)
        yield upstream.MintX509CAResponse(x509_ca_chain=_certificates(chain), upstream_x509_roots=_certificates(roots))
        if self.does("dies-after-mint"):
            await asyncio.sleep(0.2)
            os._exit(9)
        if self.does("chain-in-update"):
            yield upstream.MintX509CAResponse(
                x509_ca_chain=_certificates(chain), upstream_x509_roots=_certificates(roots)
            )
        while self.does("rotates") or self.does("chain-in-update") or self.does("endless-updates"):
            yield upstream.MintX509CAResponse(upstream_x509_roots=_certificates([*roots, self.other.der]))
            if not self.does("endless-updates"):
                await asyncio.sleep(3600)

    def _signed(self, request: upstream.MintX509CARequest) -> tuple[list[bytes], list[bytes]]:
        """A chain and roots, as bad as they are to be."""
        foreign = self.does("foreign-chain")
        csr = _foreign("spiffe://other.org") if foreign else request.csr
        if self.does("foreign-request"):
            csr = _foreign("spiffe://example.org")
        ca = issuing.Ca(self.signer.certificate, self.signer.key)
        trust_domain = TrustDomain("other.org" if foreign else "example.org")
        signed = issuing.sign(ca, csr, trust_domain, request.preferred_ttl, int(time.time()))
        chains: dict[str, list[bytes]] = {"no-chain": [], "garbage-chain": [b"garbage"], "long-chain": [signed] * 33}
        roots: dict[str, list[bytes]] = {
            "no-roots": [],
            "garbage-roots": [b"garbage"],
            "many-roots": [self.signer.der] * 1001,
        }
        return (
            next((chain for word, chain in chains.items() if self.does(word)), [signed]),
            next((each for word, each in roots.items() if self.does(word)), [self.signer.der]),
        )

    async def publish(self, request: upstream.PublishJWTKeyRequest) -> AsyncIterator[upstream.PublishJWTKeyResponse]:
        self.keys.append(request.jwt_key)
        if self.does("no-key-id"):
            request.jwt_key.key_id = ""
        if self.does("bad-jwt-key"):
            request.jwt_key.public_key = b"garbage"
        yield upstream.PublishJWTKeyResponse(upstream_jwt_keys=self.keys)

    async def local_bundle(self, _request: Message) -> AsyncIterator[upstream.SubscribeToLocalBundleResponse]:
        yield upstream.SubscribeToLocalBundleResponse(
            upstream_x509_roots=_certificates([self.signer.der]), upstream_jwt_keys=self.keys
        )


def _foreign(uri: str) -> bytes:
    """A request of a key that nobody asked about."""
    return pki.csr(ec_key(), uris=[uri])


class ComposerHalf:
    """Adds a DNS name, an organizational unit, an extension or a claim."""

    def __init__(self, does: Words) -> None:
        self.does = does

    async def ca(self, request: composer.ComposeServerX509CARequest) -> composer.ComposeServerX509CAResponse:
        attributes = request.attributes
        attributes.subject.organizational_unit.append("composed")
        attributes.policy_identifiers.append("1.2.3" if not self.does("bad-oid") else "one.two")
        return composer.ComposeServerX509CAResponse(attributes=attributes)

    async def server(self, request: composer.ComposeServerX509SVIDRequest) -> composer.ComposeServerX509SVIDResponse:
        return composer.ComposeServerX509SVIDResponse(attributes=self._svid(request.attributes))

    async def agent(self, request: composer.ComposeAgentX509SVIDRequest) -> composer.ComposeAgentX509SVIDResponse:
        return composer.ComposeAgentX509SVIDResponse(attributes=self._svid(request.attributes))

    async def workload(
        self, request: composer.ComposeWorkloadX509SVIDRequest
    ) -> composer.ComposeWorkloadX509SVIDResponse:
        if self.does("hangs-in-compose"):
            await asyncio.sleep(3600)
        if self.does("no-attributes"):
            return composer.ComposeWorkloadX509SVIDResponse()
        return composer.ComposeWorkloadX509SVIDResponse(attributes=self._svid(request.attributes))

    async def jwt(self, request: composer.ComposeWorkloadJWTSVIDRequest) -> composer.ComposeWorkloadJWTSVIDResponse:
        claims = request.attributes.claims
        claims.update({"composed": True})
        if self.does("other-subject"):
            claims.update({"sub": "spiffe://example.org/another"})
        if self.does("nan-claim"):
            claims.update({"composed": float("nan")})
        return composer.ComposeWorkloadJWTSVIDResponse(attributes=request.attributes)

    def _svid(self, attributes: composer.X509SVIDAttributes) -> composer.X509SVIDAttributes:
        attributes.dns_sans.append("composed.example.org")
        oid = "one.two" if self.does("bad-oid") else "1.2.3.4"
        attributes.extra_extensions.append(composer.X509Extension(oid=oid, value=b"\x05\x00"))
        if self.does("no-subject"):
            attributes.ClearField("subject")
        return attributes
