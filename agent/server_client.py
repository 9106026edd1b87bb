"""The agent's calls to the server, each over a connection that proves the agent's current SVID."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from agent.entries import MASK, Entry
from agent.identity import AgentSvid, verify_server
from agent.jwt_cache import JwtSvid
from agent.received_bundles import bundle_of, own_bundle
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_rpc_pb2
from generated.spire.api.server.entry.v1 import entry_pb2 as entry_rpc_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2, entry_pb2
from identity.bundles import Bundle
from identity.spiffeid import SpiffeId, TrustDomain
from operations import logs
from operations.errors import InvalidArgument, Refused
from plugins.tls_identity import client_identity
from transport import tls
from transport.client import Bidi, Channel
from transport.status import Code, RpcError

TIMEOUT = 30.0

LARGEST_ENTRIES = 100_000
LARGEST_SYNC = 256 << 20
"""Entries, and bytes of one synchronisation, beyond which a server is no good: the agent keeps what it knows."""
MOST_BUNDLES = 1000
"""Trust domains that all entries together may federate with."""

_BUNDLES_AT_ONCE = 10
_AGENT = "/spire.api.server.agent.v1.Agent/"
_BUNDLE = "/spire.api.server.bundle.v1.Bundle/"
_ENTRY = "/spire.api.server.entry.v1.Entry/"
_SVID = "/spire.api.server.svid.v1.SVID/"

_log = logs.get("agent_client")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    host: str
    port: int
    trust_domain: TrustDomain
    require_pq_kem: bool = False


@dataclass(frozen=True, slots=True)
class EntryChanges:
    changed: Sequence[Entry]
    removed: Sequence[str]


class ServerClient:
    """One connection at a time, replaced when the agent's SVID is.

    The server forgets the old SVID as soon as it sees the new one, so calls over the old connection end before calls
    over the new one begin. Calls raise RpcError, or Refused when the server is not the one it should be.
    """

    def __init__(self, address: ServerAddress, svid: AgentSvid, authorities: Callable[[], Sequence[bytes]]) -> None:
        """`authorities` gives the trust domain's X.509 authorities (DER) at the time of a handshake."""
        self._address = address
        self._authorities = authorities
        self._svid = svid
        self._channel = self._connect(svid)
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._calls = 0

    def _connect(self, svid: AgentSvid) -> Channel:
        address = self._address
        identity = client_identity(svid.chain, svid.key)
        return Channel.tcp(
            address.host,
            address.port,
            lambda: tls.client_context(identity, require_pq_kem=address.require_pq_kem),
            lambda chain: verify_server(chain, address.trust_domain, self._authorities()),
        )

    @property
    def svid(self) -> AgentSvid:
        return self._svid

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None, None]:
        """Within, no call is under way, and new ones wait. For one task at a time."""
        self._open.clear()
        try:
            await self._idle.wait()
            yield
        finally:
            self._open.set()

    async def use(self, svid: AgentSvid) -> None:
        """Go on with this SVID. Only while paused."""
        old, self._channel, self._svid = self._channel, self._connect(svid), svid
        await old.close()

    async def close(self) -> None:
        await self._channel.close()

    @asynccontextmanager
    async def _call(self) -> AsyncGenerator[Channel, None]:
        while not self._open.is_set():
            await self._open.wait()
        self._calls += 1
        self._idle.clear()
        try:
            yield self._channel
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    # Agent

    async def renew(self, csr: bytes) -> tuple[bytes, ...]:
        """The agent's next chain, DER, leaf first, as the server sent it."""
        request = agent_pb2.RenewAgentRequest(params=agent_pb2.AgentX509SVIDParams(csr=csr))
        with _failing("failed to renew agent"):
            async with self._call() as channel:
                response = await channel.unary(
                    _AGENT + "RenewAgent", request, agent_pb2.RenewAgentResponse, timeout=TIMEOUT
                )
        return tuple(response.svid.cert_chain)

    async def post_status(self, version: str) -> None:
        request = agent_pb2.PostStatusRequest(agent_version=version)
        async with self._call() as channel:
            await channel.unary(_AGENT + "PostStatus", request, agent_pb2.PostStatusResponse, timeout=TIMEOUT)

    # Entries

    async def authorized_entries(self, known: Mapping[str, Entry]) -> EntryChanges:
        """All entries at once, compared with the known ones."""
        request = entry_rpc_pb2.GetAuthorizedEntriesRequest(output_mask=MASK)
        with _failing("failed to fetch authorized entries"):
            async with self._call() as channel:
                response = await channel.unary(
                    _ENTRY + "GetAuthorizedEntries",
                    request,
                    entry_rpc_pb2.GetAuthorizedEntriesResponse,
                    timeout=TIMEOUT,
                )
        return _changes(known, response.entries)

    async def sync_entries(self, known: Mapping[str, Entry]) -> EntryChanges:
        """Revisions first, then the entries that are new or changed."""
        with _failing("failed to fetch authorized entries"):
            async with self._call() as channel:
                opener = channel.bidi(
                    _ENTRY + "SyncAuthorizedEntries", entry_rpc_pb2.SyncAuthorizedEntriesResponse, timeout=TIMEOUT
                )
                async with opener as stream:
                    return await _sync(stream, known)

    # Bundles

    async def bundles(self, federates_with: Iterable[str]) -> dict[str, Bundle]:
        """The trust domain's own bundle and those of the named trust domains, by name; unknown ones are left out."""
        async with self._call() as channel:
            own = await channel.unary(
                _BUNDLE + "GetBundle", bundle_rpc_pb2.GetBundleRequest(), bundle_pb2.Bundle, timeout=TIMEOUT
            )
        names = sorted(set(federates_with) - {self._address.trust_domain.name})
        if len(names) > MOST_BUNDLES:
            _log.error("The entries federate with too many trust domains; leaving out the last", count=len(names))
            del names[MOST_BUNDLES:]
        found = [self._own_bundle(own), *await self._federated_bundles(names)]
        return {bundle.trust_domain.name: bundle for bundle in found if bundle is not None}

    def _own_bundle(self, message: bundle_pb2.Bundle) -> Bundle | None:
        try:
            return own_bundle(message, self._address.trust_domain)
        except (InvalidArgument, Refused) as error:
            _log.error("Refused the bundle that the server sent; keeping the one that is known", error=error)
            return None

    async def _federated_bundles(self, names: Sequence[str]) -> list[Bundle | None]:
        found: list[Bundle | None] = []
        for start in range(0, len(names), _BUNDLES_AT_ONCE):
            some = names[start : start + _BUNDLES_AT_ONCE]
            found += await asyncio.gather(*(self._federated_bundle(name) for name in some))
        return found

    async def _federated_bundle(self, name: str) -> Bundle | None:
        request = bundle_rpc_pb2.GetFederatedBundleRequest(trust_domain=name)
        try:
            async with self._call() as channel:
                message = await channel.unary(
                    _BUNDLE + "GetFederatedBundle", request, bundle_pb2.Bundle, timeout=TIMEOUT
                )
        except RpcError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            _log.warning("Federated bundle not found", federated_bundle=name)
            return None
        try:
            return bundle_of(message, TrustDomain(name))
        except (InvalidArgument, Refused) as error:
            _log.warning("Received malformed bundle from SPIRE server", trust_domain=name, error=error)
            return None

    # SVIDs

    async def new_x509_svids(self, requests: Mapping[str, bytes]) -> dict[str, tuple[bytes, ...]]:
        """Chains (DER, leaf first) by entry id for DER requests by entry id. What the server refuses is left out."""
        params = [svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=csr) for entry_id, csr in requests.items()]
        async with self._call() as channel:
            response = await channel.unary(
                _SVID + "BatchNewX509SVID",
                svid_pb2.BatchNewX509SVIDRequest(params=params),
                svid_pb2.BatchNewX509SVIDResponse,
                timeout=TIMEOUT,
            )
        chains: dict[str, tuple[bytes, ...]] = {}
        for entry_id, result in zip(requests, response.results, strict=False):
            if result.status.code != Code.OK or not result.svid.cert_chain:
                status = result.status
                _log.warning("Failed to mint X509 SVID", entry_id=entry_id, status=status.code, error=status.message)
                continue
            chains[entry_id] = tuple(result.svid.cert_chain)
        return chains

    async def new_jwt_svid(self, entry: Entry, audience: Sequence[str], patience: float) -> JwtSvid:
        """A token for the entry, within `patience` seconds. Raises InvalidArgument for a senseless answer."""
        request = svid_pb2.NewJWTSVIDRequest(entry_id=entry.id, audience=audience)
        async with self._call() as channel:
            response = await channel.unary(_SVID + "NewJWTSVID", request, svid_pb2.NewJWTSVIDResponse, timeout=patience)
        svid = response.svid
        if not svid.token:
            raise InvalidArgument("JWTSVID response missing SVID")
        if (found := str(SpiffeId.from_proto(svid.id))) != entry.spiffe_id:
            raise InvalidArgument(f'JWTSVID is of "{found}", not of "{entry.spiffe_id}"')
        if not svid.issued_at:
            raise InvalidArgument("JWTSVID missing issued at")
        if not svid.expires_at:
            raise InvalidArgument("JWTSVID missing expires at")
        if svid.issued_at > svid.expires_at:
            raise InvalidArgument("JWTSVID issued after it has expired")
        return JwtSvid(svid.token, svid.issued_at, svid.expires_at)


@contextmanager
def _failing(what: str) -> Generator[None]:
    """Say what failed before what the server says of it: operators look for these words."""
    try:
        yield
    except RpcError as error:
        raise RpcError(error.code, f"{what}: {error.message}", error.details) from error


def _changes(known: Mapping[str, Entry], messages: Sequence[entry_pb2.Entry]) -> EntryChanges:
    """From all entries at once. One that is malformed now stays as it was known."""
    _check_size(len(messages), 0)
    present = {message.id for message in messages}
    changed = [entry for entry in _read_entries(messages).values() if known.get(entry.id) != entry]
    return EntryChanges(changed, [entry_id for entry_id in known if entry_id not in present])


def _check_size(entries: int, size: int) -> None:
    """Raises Refused for more than an agent holds."""
    if entries > LARGEST_ENTRIES or size > LARGEST_SYNC:
        raise Refused(
            f"the server authorizes this agent for more than {LARGEST_ENTRIES} entries, or {LARGEST_SYNC} bytes of "
            "them; keeping those that are known: give this agent fewer entries"
        )


async def _sync(stream: Bidi[entry_rpc_pb2.SyncAuthorizedEntriesResponse], known: Mapping[str, Entry]) -> EntryChanges:
    await stream.send(entry_rpc_pb2.SyncAuthorizedEntriesRequest(output_mask=MASK))
    page = await _receive(stream)
    if not page.entry_revisions:
        # So few entries that the server sent them all at once.
        return _changes(known, page.entries)
    page_size = len(page.entry_revisions)
    gone = set(known)
    wanted: set[str] = set()
    seen = 0
    while True:
        seen += len(page.entry_revisions)
        _check_size(seen, 0)
        wanted.update(_outdated(page.entry_revisions, known, gone))
        if not page.more:
            break
        page = await _receive(stream)
        if page.entries:
            raise InvalidArgument("unexpected entry in response receiving entry revisions")
    return EntryChanges(list((await _changed(stream, sorted(wanted), page_size)).values()), sorted(gone))


async def _changed(
    stream: Bidi[entry_rpc_pb2.SyncAuthorizedEntriesResponse], wanted: Sequence[str], page_size: int
) -> dict[str, Entry]:
    """The entries of these ids, as far as the server has them still."""
    changed: dict[str, Entry] = {}
    size = 0
    for start in range(0, len(wanted), page_size):
        asked = frozenset(wanted[start : start + page_size])
        await stream.send(entry_rpc_pb2.SyncAuthorizedEntriesRequest(ids=sorted(asked)))
        more = True
        while more:
            page = await _receive(stream)
            if page.entry_revisions:
                raise InvalidArgument("unexpected entry revisions in response while requesting entries")
            size += page.ByteSize()
            _check_size(len(changed), size)
            found = _read_entries(page.entries)
            if unasked := found.keys() - asked:
                raise InvalidArgument(f"the server sent entry {min(unasked)!r}, which it was not asked for")
            changed |= found
            more = page.more
    return changed


async def _receive(
    stream: Bidi[entry_rpc_pb2.SyncAuthorizedEntriesResponse],
) -> entry_rpc_pb2.SyncAuthorizedEntriesResponse:
    page = await stream.recv()
    if page is None:
        raise RpcError(Code.UNKNOWN, "the server ended the synchronisation too early")
    return page


def _outdated(
    revisions: Iterable[entry_rpc_pb2.EntryRevision], known: Mapping[str, Entry], gone: set[str]
) -> list[str]:
    """Ids of entries to ask for; what the server still has is taken out of `gone`."""
    outdated: list[str] = []
    for revision in revisions:
        gone.discard(revision.id)
        if not revision.id or revision.revision_number < 0:
            _log.warning("Received malformed entry revision from SPIRE server", entry_id=revision.id)
            continue
        entry = known.get(revision.id)
        if (
            entry is None
            or entry.revision != revision.revision_number
            # The id of a deleted entry may be used again, and its revisions start anew.
            or (revision.created_at and entry.created_at != revision.created_at)
        ):
            outdated.append(revision.id)
    return outdated


def _read_entries(messages: Iterable[entry_pb2.Entry]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for message in messages:
        try:
            entries[message.id] = Entry.from_proto(message)
        except InvalidArgument as error:
            _log.warning("Received malformed entry from SPIRE server", entry_id=message.id, error=error)
    return entries
