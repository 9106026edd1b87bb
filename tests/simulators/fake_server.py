"""A server as an agent sees it: a CA in memory and the few calls that agents make, on a TCP port of this process."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_rpc_pb2
from generated.spire.api.server.entry.v1 import entry_pb2 as entry_rpc_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2, entry_pb2, jwtsvid_pb2, selector_pb2, status_pb2, x509svid_pb2
from identity import x509svid
from identity.spiffeid import SpiffeId, TrustDomain, server_id
from operations.errors import InvalidArgument
from tests.simulators import pki
from transport import tls
from transport.peer import Peer
from transport.router import Context, Method, Router
from transport.server import Server
from transport.status import Code, RpcError

_BACKDATE = 10.0
_OPEN = frozenset(("AttestAgent", "GetBundle"))
_Reason = status_pb2.PermissionDeniedDetails


class Authority:
    """A CA, self-signed or below a parent, that signs leaves for SPIFFE IDs. `above` goes along with each."""

    def __init__(self, trust_domain: TrustDomain, lifetime: float = 3600, *, parent: Authority | None = None) -> None:
        self.root = parent or self
        self._key = pki.ec_key()
        self._name = x509.Name(
            [
                x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, uuid.uuid4().hex),
            ]
        )
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self.root._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=_BACKDATE))
            .not_valid_after(now + timedelta(seconds=lifetime))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(pki.key_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.id)]), False)
            .sign(self.root._key, hashes.SHA256())
        )
        self.above = (self.der,) if parent else ()

    @property
    def der(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def sign(self, spiffe_id: str, public_key: ec.EllipticCurvePublicKey, ttl: float) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "US")]))
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=_BACKDATE))
            .not_valid_after(now + timedelta(seconds=ttl))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(pki.key_usage("digital_signature"), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), False)
            .sign(self._key, hashes.SHA256())
        )

    def sign_request(self, csr: bytes, spiffe_id: str, ttl: float) -> x509.Certificate:
        request = x509.load_der_x509_csr(csr)
        if not request.is_signature_valid:
            raise InvalidArgument("invalid CSR: signature verify failed")
        public_key = request.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        return self.sign(spiffe_id, public_key, ttl)

    def identity(self, spiffe_id: str, ttl: float = 3600) -> tls.InProcessIdentity:
        key = pki.ec_key()
        leaf = _der(self.sign(spiffe_id, key.public_key(), ttl))
        return tls.InProcessIdentity((leaf, *self.above), pki.pkcs8(key))


@dataclass
class _Node:
    serial: int
    next_serial: int | None = None


@dataclass
class FakeServer:
    """Behaves as SPIRE's does, as far as agents can tell. Times are in seconds.

    `failing` is raised by every call but attestation. `calls` counts calls by method name. `below_upstream` puts its CA
    below a root, which then is what its bundle has.
    """

    trust_domain: TrustDomain = field(default_factory=lambda: TrustDomain("example.org"))
    svid_ttl: float = 3600
    agent_ttl: float = 3600
    reattestable: bool = False
    by_revision: bool = True
    below_upstream: bool = False
    page_size: int = 2
    failing: RpcError | None = None
    banned: bool = False
    refused_entries: set[str] = field(default_factory=set[str])
    calls: Counter[str] = field(default_factory=Counter[str])
    tokens: set[str] = field(default_factory=lambda: {"token"})
    port: int = 0

    def __post_init__(self) -> None:
        self.authority = self._new_authority()
        self.tainted: Authority | None = None
        self.entries: dict[str, entry_pb2.Entry] = {}
        self.federated: dict[str, bundle_pb2.Bundle] = {}
        self.jwt_authorities: list[bundle_pb2.JWTKey] = []
        self.jwt_count = 0
        self._nodes: dict[str, _Node] = {}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[FakeServer, None]:
        router = Router()
        router.before = self._authorize
        self._add_services(router)
        identity = self.authority.identity(str(server_id(self.trust_domain)))
        context = tls.server_context(identity)
        server = Server(router)
        self.port = await server.listen_tcp("127.0.0.1", self.port, lambda: context)
        try:
            yield self
        finally:
            await server.drain(0.1)

    def add_entry(
        self,
        entry_id: str,
        path: str = "/workload",
        selectors: Iterable[str] = ("unix:uid:1000",),
        **more: object,
    ) -> entry_pb2.Entry:
        entry = entry_pb2.Entry(
            id=entry_id,
            spiffe_id=SpiffeId(self.trust_domain, path).to_proto(),
            selectors=[
                selector_pb2.Selector(type=each.partition(":")[0], value=each.partition(":")[2]) for each in selectors
            ],
            created_at=1,
        )
        for name, value in more.items():
            if isinstance(value, list):
                getattr(entry, name).extend(value)
            else:
                setattr(entry, name, value)
        self.entries[entry_id] = entry
        return entry

    def evict(self) -> None:
        self._nodes.clear()

    def supersede(self) -> None:
        """As after an attestation whose SVID the agent was killed over: what it has is not the last one."""
        for node in self._nodes.values():
            node.serial, node.next_serial = 0, None

    def rotate_authority(self) -> None:
        """A new CA signs from now on; the old one is tainted."""
        self.tainted, self.authority = self.authority, self._new_authority()

    def _new_authority(self) -> Authority:
        return Authority(self.trust_domain, parent=Authority(self.trust_domain) if self.below_upstream else None)

    def bundle(self) -> bundle_pb2.Bundle:
        authorities = [bundle_pb2.X509Certificate(asn1=self.authority.root.der)]
        if self.tainted is not None:
            authorities.append(bundle_pb2.X509Certificate(asn1=self.tainted.root.der, tainted=True))
        return bundle_pb2.Bundle(
            trust_domain=self.trust_domain.name,
            x509_authorities=authorities,
            jwt_authorities=self.jwt_authorities,
            sequence_number=1,
        )

    def _add_services(self, router: Router) -> None:
        router.add(
            agent_pb2.DESCRIPTOR.services_by_name["Agent"],
            {"AttestAgent": self._attest, "RenewAgent": self._renew, "PostStatus": self._post_status},
        )
        router.add(
            bundle_rpc_pb2.DESCRIPTOR.services_by_name["Bundle"],
            {"GetBundle": self._get_bundle, "GetFederatedBundle": self._get_federated_bundle},
        )
        router.add(
            entry_rpc_pb2.DESCRIPTOR.services_by_name["Entry"],
            {"GetAuthorizedEntries": self._get_entries, "SyncAuthorizedEntries": self._sync_entries},
        )
        router.add(
            svid_pb2.DESCRIPTOR.services_by_name["SVID"],
            {"BatchNewX509SVID": self._new_x509_svids, "NewJWTSVID": self._new_jwt_svid},
        )

    async def _authorize(self, method: Method, peer: Peer, context: Context) -> None:
        del context
        self.calls[method.name] += 1
        if method.name in _OPEN:
            return
        if self.failing is not None:
            raise self.failing
        if self.banned:
            raise _denied(_Reason.AGENT_BANNED)
        if not peer.certificates:
            raise RpcError(Code.PERMISSION_DENIED, "authorization denied")
        roots = [each.root.der for each in (self.authority, self.tainted) if each is not None]
        spiffe_id = x509svid.verify(peer.certificates, {self.trust_domain: roots}, datetime.now(UTC))
        node = self._nodes.get(str(spiffe_id))
        if node is None:
            raise _denied(_Reason.AGENT_NOT_ATTESTED)
        serial = x509.load_der_x509_certificate(peer.certificates[0]).serial_number
        if serial == node.next_serial:
            node.serial, node.next_serial = serial, None
        elif serial != node.serial:
            raise _denied(_Reason.AGENT_NOT_ACTIVE)

    async def _attest(
        self, requests: AsyncIterator[agent_pb2.AttestAgentRequest], peer: Peer, context: Context
    ) -> AsyncIterator[agent_pb2.AttestAgentResponse]:
        del peer, context
        async for request in requests:
            token = request.params.data.payload.decode()
            if token not in self.tokens:
                raise RpcError(Code.INVALID_ARGUMENT, "failed to attest: join token does not exist")
            if not self.reattestable:
                self.tokens.remove(token)
            spiffe_id = f"{self.trust_domain.id}/spire/agent/{request.params.data.type}/{token}"
            certificate = self.authority.sign_request(request.params.params.csr, spiffe_id, self.agent_ttl)
            self._nodes[spiffe_id] = _Node(certificate.serial_number)
            result = agent_pb2.AttestAgentResponse.Result(svid=self._svid(certificate), reattestable=self.reattestable)
            yield agent_pb2.AttestAgentResponse(result=result)
            return

    async def _renew(
        self, request: agent_pb2.RenewAgentRequest, peer: Peer, context: Context
    ) -> agent_pb2.RenewAgentResponse:
        del context
        spiffe_id = str(x509svid.leaf_id(peer.certificates[0]))
        certificate = self.authority.sign_request(request.params.csr, spiffe_id, self.agent_ttl)
        self._nodes[spiffe_id].next_serial = certificate.serial_number
        return agent_pb2.RenewAgentResponse(svid=self._svid(certificate))

    async def _post_status(
        self, request: agent_pb2.PostStatusRequest, peer: Peer, context: Context
    ) -> agent_pb2.PostStatusResponse:
        del request, peer, context
        return agent_pb2.PostStatusResponse()

    async def _get_bundle(
        self, request: bundle_rpc_pb2.GetBundleRequest, peer: Peer, context: Context
    ) -> bundle_pb2.Bundle:
        del request, peer, context
        return self.bundle()

    async def _get_federated_bundle(
        self, request: bundle_rpc_pb2.GetFederatedBundleRequest, peer: Peer, context: Context
    ) -> bundle_pb2.Bundle:
        del peer, context
        if request.trust_domain not in self.federated:
            raise RpcError(Code.NOT_FOUND, "bundle not found")
        return self.federated[request.trust_domain]

    async def _get_entries(
        self, request: entry_rpc_pb2.GetAuthorizedEntriesRequest, peer: Peer, context: Context
    ) -> entry_rpc_pb2.GetAuthorizedEntriesResponse:
        del request, peer, context
        return entry_rpc_pb2.GetAuthorizedEntriesResponse(entries=self.entries.values())

    async def _sync_entries(
        self, requests: AsyncIterator[entry_rpc_pb2.SyncAuthorizedEntriesRequest], peer: Peer, context: Context
    ) -> AsyncIterator[entry_rpc_pb2.SyncAuthorizedEntriesResponse]:
        del peer, context
        if not self.by_revision:
            raise RpcError(Code.UNIMPLEMENTED, "unknown method SyncAuthorizedEntries")
        await anext(requests)
        if len(self.entries) <= self.page_size:
            yield entry_rpc_pb2.SyncAuthorizedEntriesResponse(entries=self.entries.values())
            return
        revisions = [
            entry_rpc_pb2.EntryRevision(id=each.id, revision_number=each.revision_number, created_at=each.created_at)
            for each in self.entries.values()
        ]
        for start in range(0, len(revisions), self.page_size):
            page = revisions[start : start + self.page_size]
            yield entry_rpc_pb2.SyncAuthorizedEntriesResponse(
                entry_revisions=page, more=start + self.page_size < len(revisions)
            )
        async for request in requests:
            wanted = [self.entries[each] for each in request.ids if each in self.entries]
            self.calls["entries asked for"] += len(wanted)
            # In two parts, as a server may.
            yield entry_rpc_pb2.SyncAuthorizedEntriesResponse(entries=wanted[:1], more=True)
            yield entry_rpc_pb2.SyncAuthorizedEntriesResponse(entries=wanted[1:])

    async def _new_x509_svids(
        self, request: svid_pb2.BatchNewX509SVIDRequest, peer: Peer, context: Context
    ) -> svid_pb2.BatchNewX509SVIDResponse:
        del peer, context
        response = svid_pb2.BatchNewX509SVIDResponse()
        for each in request.params:
            entry = self.entries.get(each.entry_id)
            if entry is None or each.entry_id in self.refused_entries:
                response.results.add(status=status_pb2.Status(code=Code.NOT_FOUND, message="entry not found"))
                continue
            spiffe_id = str(SpiffeId.from_proto(entry.spiffe_id))
            svid = self._svid(self.authority.sign_request(each.csr, spiffe_id, self.svid_ttl))
            response.results.add(status=status_pb2.Status(code=Code.OK), svid=svid)
        return response

    async def _new_jwt_svid(
        self, request: svid_pb2.NewJWTSVIDRequest, peer: Peer, context: Context
    ) -> svid_pb2.NewJWTSVIDResponse:
        del peer, context
        self.jwt_count += 1
        now = int(datetime.now(UTC).timestamp())
        svid = jwtsvid_pb2.JWTSVID(
            token=f"token-{self.jwt_count}-for-{request.entry_id}-{'-'.join(request.audience)}",
            id=self.entries[request.entry_id].spiffe_id,
            issued_at=now,
            expires_at=now + int(self.svid_ttl),
        )
        return svid_pb2.NewJWTSVIDResponse(svid=svid)

    def _svid(self, certificate: x509.Certificate) -> x509svid_pb2.X509SVID:
        return x509svid_pb2.X509SVID(
            cert_chain=[_der(certificate), *self.authority.above],
            expires_at=int(certificate.not_valid_after_utc.timestamp()),
        )


def _denied(reason: status_pb2.PermissionDeniedDetails.Reason.ValueType) -> RpcError:
    return RpcError(Code.PERMISSION_DENIED, "authorization denied", [_Reason(reason=reason)])


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
