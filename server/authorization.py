"""Who may call what on the server, checked before every call.

A caller on the private Unix socket is `local`. A caller over TCP is known by the X509-SVID its TLS handshake proved;
the chain is verified here, once for as long as the bundle stays the same, and its expiry at every call. What a method
allows stands in POLICY; a method that is not there is denied.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Flag, auto
from typing import Protocol

from google.protobuf.message import Message

from generated.spire.api.types import status_pb2
from identity import der, x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, NotFound, Refused, SpireError
from operations.logs import Logger
from server.datastore.records import Entry, EntryFilter
from server.datastore.store import DataStore
from server.nodes import AttestedNodes
from server.rpc.failures import code_of, failure, text_of
from transport.peer import Peer
from transport.status import Code, RpcError

REVOKED_GRACE = 60.0
"""Seconds for which a chain that was good stays so when its authority leaves the server's own bundle. An agent that
learned of the taint only now renews meanwhile, over whatever connection; without, a revocation that follows a taint too
soon would shut nodes out that can attest only once. SPIRE lets a connection that is open go on for as long as it lasts.
"""

MAX_VERIFIED_CHAINS = 8192
MAX_REMEMBERED_CHAIN = 8192
"""Bytes. Longer chains, such as nobody needs, are verified at every call rather than kept."""

Reason = status_pb2.PermissionDeniedDetails.Reason


class Role(Flag):
    """What a caller may be. ANY is everybody, with a certificate or without."""

    ANY = auto()
    LOCAL = auto()
    ADMIN = auto()
    AGENT = auto()
    DOWNSTREAM = auto()


def _policy() -> Mapping[str, Role]:
    operators = Role.LOCAL | Role.ADMIN
    services: Mapping[str, Mapping[Role, str]] = {
        "spire.api.server.svid.v1.SVID": {
            operators: "MintX509SVID MintJWTSVID MintWITSVID",
            Role.AGENT: "BatchNewX509SVID NewJWTSVID BatchNewWITSVID",
            Role.DOWNSTREAM: "NewDownstreamX509CA",
        },
        "spire.api.server.bundle.v1.Bundle": {
            Role.ANY: "GetBundle",
            operators: "AppendBundle CountBundles ListFederatedBundles BatchCreateFederatedBundle "
            "BatchUpdateFederatedBundle BatchSetFederatedBundle BatchDeleteFederatedBundle",
            Role.DOWNSTREAM: "PublishJWTAuthority PublishWITAuthority",
            operators | Role.AGENT: "GetFederatedBundle",
        },
        "spire.api.server.entry.v1.Entry": {
            operators: "CountEntries ListEntries GetEntry BatchCreateEntry BatchUpdateEntry BatchDeleteEntry",
            Role.AGENT: "GetAuthorizedEntries SyncAuthorizedEntries",
        },
        "spire.api.server.agent.v1.Agent": {
            Role.ANY: "AttestAgent",
            operators: "CountAgents ListAgents GetAgent DeleteAgent BanAgent CreateJoinToken",
            Role.AGENT: "RenewAgent PostStatus",
        },
        "spire.api.server.trustdomain.v1.TrustDomain": {
            operators: "ListFederationRelationships GetFederationRelationship BatchCreateFederationRelationship "
            "BatchUpdateFederationRelationship BatchDeleteFederationRelationship RefreshBundle",
        },
        "spire.api.server.localauthority.v1.LocalAuthority": {
            operators: "GetJWTAuthorityState PrepareJWTAuthority ActivateJWTAuthority TaintJWTAuthority "
            "RevokeJWTAuthority GetX509AuthorityState PrepareX509Authority ActivateX509Authority "
            "TaintX509Authority TaintX509UpstreamAuthority RevokeX509Authority RevokeX509UpstreamAuthority "
            "GetWITAuthorityState PrepareWITAuthority ActivateWITAuthority TaintWITAuthority RevokeWITAuthority",
        },
        "spire.api.server.debug.v1.Debug": {Role.LOCAL: "GetInfo"},
        "spire.api.server.logger.v1.Logger": {Role.LOCAL: "GetLogger SetLogLevel ResetLogLevel"},
        "grpc.health.v1.Health": {Role.LOCAL: "Check List Watch"},
        # Ours, beyond SPIRE's.
        "spire.keys.v1.Keys": {Role.LOCAL: "ListKeys VerifyKeys DisposeKey"},
    }
    return {
        f"/{service}/{name}": role
        for service, roles in services.items()
        for role, names in roles.items()
        for name in names.split()
    }


POLICY = _policy()


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """What a verified X509-SVID says: its ID, its serial number in decimal, its chain's end in unix seconds."""

    id: SpiffeId
    serial: str
    not_after: float


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller that may make its call, and why. `identity` is None on the Unix socket or without a certificate."""

    identity: PeerIdentity | None
    authorized_as: str = "nobody"
    authorized_via: str = ""
    downstream: tuple[Entry, ...] = ()


Roots = Callable[[TrustDomain], Awaitable[Sequence[bytes]]]
"""X.509 authorities of a trust domain, DER. The same object as long as nothing changed. Raises NotFound."""


@dataclass(slots=True)
class _Verdict:
    """What a chain was found to be, by which roots, and since when (monotonic seconds) it is so no more."""

    roots: Sequence[bytes]
    identity: PeerIdentity
    revoked_at: float | None = None


class PeerIdentities:
    """Verifies the chains of peers and remembers the verdict while the bundle it rests on stays.

    `monotonic` gives seconds.
    """

    def __init__(
        self,
        trust_domain: TrustDomain,
        admin_ids: Collection[SpiffeId],
        roots: Roots,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trust_domain = trust_domain
        self._admin_ids = frozenset(admin_ids)
        self._roots = roots
        self._monotonic = monotonic
        self._verified: OrderedDict[tuple[bytes, ...], _Verdict] = OrderedDict()

    async def of(self, peer: Peer) -> PeerIdentity | None:
        """The peer's identity, None without a certificate. Raises RpcError UNAUTHENTICATED."""
        chain = peer.certificates
        if not chain:
            return None
        try:
            known = self._verified.get(chain)
            claimed = known.identity.id if known is not None else x509svid.leaf_id(chain[0])
            if claimed.trust_domain != self._trust_domain and claimed not in self._admin_ids:
                raise Refused(f'unexpected trust domain in ID "{claimed}"')
            roots = await self._roots(claimed.trust_domain)
            if known is not None and known.roots is roots:
                self._verified.move_to_end(chain)
                return self._still_good(known, claimed)
            try:
                identity = _verify(chain, claimed.trust_domain, roots)
            except Refused:
                if known is None:
                    raise
                known.roots = roots
                if known.revoked_at is None:
                    known.revoked_at = self._monotonic()
                return self._still_good(known, claimed)
        except (InvalidArgument, NotFound, Refused) as error:
            raise RpcError(Code.UNAUTHENTICATED, f"client certificate is not accepted: {error}") from error
        if sum(map(len, chain)) > MAX_REMEMBERED_CHAIN:
            return identity
        self._verified[chain] = _Verdict(roots, identity)
        if len(self._verified) > MAX_VERIFIED_CHAINS:
            self._verified.popitem(last=False)
        return identity

    def _still_good(self, verdict: _Verdict, claimed: SpiffeId) -> PeerIdentity:
        """The identity, if its authority is in the bundle, or left it a moment ago. Raises Refused."""
        if verdict.revoked_at is None:
            return verdict.identity
        own = claimed.trust_domain == self._trust_domain
        if own and self._monotonic() - verdict.revoked_at < REVOKED_GRACE:
            return verdict.identity
        raise Refused("could not verify leaf certificate: its authority is in the bundle no more")


def _verify(chain: Sequence[bytes], trust_domain: TrustDomain, roots: Sequence[bytes]) -> PeerIdentity:
    spiffe_id, end = x509svid.verify_until(chain, {trust_domain: roots}, datetime.now(UTC))
    return PeerIdentity(spiffe_id, str(der.certificate(chain[0]).serial_number), end.timestamp())


class Policy(Protocol):
    """An operator's policy, in the place of the built-in table."""

    async def roles(self, path: str, peer: Peer, caller: str, request: Message | None) -> Role:
        """Who may make the call. `caller` is a SPIFFE ID or empty. Raises SpireError when there is no answer."""
        ...


class Authorizer:
    """Answers, for a method and a peer, with the Caller, or raises RpcError."""

    def __init__(
        self,
        identities: PeerIdentities,
        store: DataStore,
        nodes: AttestedNodes,
        admin_ids: Collection[SpiffeId],
        now: Callable[[], float] = time.time,
        policy: Policy | None = None,
    ) -> None:
        """Without a `policy` of the operator's the built-in table decides."""
        self._policy = policy
        self._identities = identities
        self._store = store
        self._nodes = nodes
        self._admin_ids = frozenset(admin_ids)
        self._now = now

    @property
    def judges_requests(self) -> bool:
        """Whether `authorize` wants to see requests."""
        return self._policy is not None

    async def authorize(self, path: str, peer: Peer, log: Logger, request: Message | None = None) -> Caller:
        """Raises RpcError: UNAUTHENTICATED for a bad certificate, PERMISSION_DENIED with details for agents, UNKNOWN,
        as SPIRE's, when the operator's policy has no answer.
        """
        if peer.process is not None:
            allowed = await self._allowed(path, peer, None, log, request)
            if Role.ANY in allowed:
                return Caller(None)
            if Role.LOCAL in allowed:
                return Caller(None, "local", "transport")
            raise _denied(log, path)
        identity = await self._identities.of(peer)
        allowed = await self._allowed(path, peer, identity, log, request)
        if Role.ANY in allowed:
            return Caller(identity)
        if identity is None:
            raise _denied(log, path)
        log = log.bind(caller_id=str(identity.id))
        caller = await self._entitled(allowed, identity, log)
        if caller is not None:
            return caller
        if Role.AGENT not in allowed:
            raise _denied(log, path)
        reason = await self._fault_of_agent(identity, log)
        if reason is not None:
            raise _denied(log, path, reason)
        return Caller(identity, "agent", "datastore")

    async def _allowed(
        self, path: str, peer: Peer, identity: PeerIdentity | None, log: Logger, request: Message | None
    ) -> Role:
        if self._policy is None:
            return POLICY.get(path, Role(0))
        caller = "" if identity is None else str(identity.id)
        try:
            return await self._policy.roles(path, peer, caller, request)
        except SpireError as error:
            log = log.bind(caller_id=caller) if caller else log
            log.error("Authorization policy failed", error=text_of(error))
            raise RpcError(Code.UNKNOWN, f"authorization policy failed for method {path}") from error

    async def _entitled(self, allowed: Role, identity: PeerIdentity, log: Logger) -> Caller | None:
        """The caller as an admin or a downstream server, or None."""
        if not allowed & (Role.ADMIN | Role.DOWNSTREAM) or self._now() > identity.not_after:
            return None
        if Role.ADMIN in allowed and identity.id in self._admin_ids:
            return Caller(identity, "admin", "config")
        try:
            entries = (await self._store.list_entries(EntryFilter(spiffe_id=str(identity.id)))).items
        except SpireError as error:
            raise failure(log, code_of(error), "failed to fetch caller entries", error) from error
        # Expired entries are deleted now and then only.
        entries = tuple(entry for entry in entries if not entry.expires_at or entry.expires_at > self._now())
        if Role.ADMIN in allowed and any(entry.admin for entry in entries):
            return Caller(identity, "admin", "entries")
        downstream = tuple(entry for entry in entries if entry.downstream)
        if Role.DOWNSTREAM in allowed and downstream:
            return Caller(identity, "downstream", "entries", downstream)
        return None

    async def _fault_of_agent(self, identity: PeerIdentity, log: Logger) -> Reason.ValueType | None:
        """Why this is not an active agent, or None. A renewed agent's new SVID becomes current at its first use."""
        if self._now() > identity.not_after:
            log.error("Agent SVID is expired")
            return Reason.AGENT_EXPIRED
        try:
            node = await self._nodes.get(str(identity.id))
        except SpireError as error:
            raise failure(log, code_of(error), "unable to look up agent information", error) from error
        if node is not None and node.new_serial_number == identity.serial:
            try:
                node = await self._nodes.activate(str(identity.id), identity.serial)
            except SpireError as error:
                log.warning("Unable to activate the new agent SVID", error=text_of(error))
                raise RpcError(code_of(error), f"unable to activate the new agent SVID: {text_of(error)}") from error
        if node is None:
            log.error("Agent is not attested")
            return Reason.AGENT_NOT_ATTESTED
        if node.banned:
            log.error("Agent is banned")
            return Reason.AGENT_BANNED
        if node.serial_number != identity.serial:
            log.error("Agent SVID is not active", svid_serial_num=identity.serial, serial_num=node.serial_number)
            return Reason.AGENT_NOT_ACTIVE
        return None


def _denied(log: Logger, path: str, reason: Reason.ValueType | None = None) -> RpcError:
    details = () if reason is None else (status_pb2.PermissionDeniedDetails(reason=reason),)
    error = RpcError(Code.PERMISSION_DENIED, f"authorization denied for method {path}", details)
    log.error("Failed to authenticate caller", error=error)
    return error
