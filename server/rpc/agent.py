"""spire.api.server.agent.v1.Agent: agents as operators see them, and their own renewal and status."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import aclosing
from datetime import datetime

from google.protobuf import empty_pb2
from msgspec.structs import replace

from attestors.join_token.server import agent_id as join_token_agent_id
from generated.spire.api.server.agent.v1 import agent_pb2 as api
from generated.spire.api.types import agent_pb2, jointoken_pb2, status_pb2
from identity.selectors import Selector
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, NotFound
from plugins.nodeattestor import ServerNodeAttestor
from server.ca.certificate_authority import CertificateAuthority
from server.datastore.records import AttestedNode, Entry, JoinToken, NodeField, NodeFilter
from server.datastore.store import DataStore
from server.nodes import AttestedNodes
from server.rpc import convert, ids, masks
from server.rpc.attest import AgentSigner, Attestation
from server.rpc.call import Call, Clock, wall_clock
from server.rpc.failures import code_of_store, failing, failure
from server.rpc.pacing import paced, paging
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code, RpcError

MAX_VERSION = 255

_RENEWAL: tuple[NodeField, ...] = ("new_serial_number", "new_expires_at")
_VERSION: tuple[NodeField, ...] = ("agent_version",)


class AgentService:
    DESCRIPTOR = api.DESCRIPTOR.services_by_name["Agent"]

    def __init__(
        self,
        trust_domain: TrustDomain,
        store: DataStore,
        nodes: AttestedNodes,
        authority: CertificateAuthority,
        attestors: Mapping[str, ServerNodeAttestor],
        clock: Clock = wall_clock,
    ) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._nodes = nodes
        self._signer = AgentSigner(authority)
        self._attestors = attestors
        self._clock = clock

    def handlers(self) -> dict[str, Handler]:
        return {
            "CountAgents": self.count,
            "ListAgents": self.list,
            "GetAgent": self.get,
            "DeleteAgent": self.delete,
            "BanAgent": self.ban,
            "AttestAgent": self.attest,
            "RenewAgent": self.renew,
            "PostStatus": self.post_status,
            "CreateJoinToken": self.create_join_token,
        }

    async def count(self, request: api.CountAgentsRequest, _peer: Peer, context: Context) -> api.CountAgentsResponse:
        call = Call.of(context)
        filter = _filter(request.filter, call)
        with failing(call.log, "failed to count agents", of=code_of_store):
            count = await self._store.count_nodes(filter)
        call.succeeded()
        return api.CountAgentsResponse(count=count)

    async def list(self, request: api.ListAgentsRequest, _peer: Peer, context: Context) -> api.ListAgentsResponse:
        call = Call.of(context)
        filter = _filter(request.filter, call)
        mask = request.output_mask if request.HasField("output_mask") else None
        with failing(call.log, "failed to list agents", of=code_of_store):
            page = await self._store.list_nodes(
                filter, with_selectors=mask is None or mask.selectors, **paging(request)
            )
        call.succeeded()
        agents = await paced(lambda node: _masked(node, mask), page.items)
        return api.ListAgentsResponse(agents=agents, next_page_token=page.next_token)

    async def get(self, request: api.GetAgentRequest, _peer: Peer, context: Context) -> agent_pb2.Agent:
        call = Call.of(context)
        agent_id = self._agent_id(request, call)
        node = await self._node(agent_id, call)
        call.succeeded()
        return _masked(node, request.output_mask if request.HasField("output_mask") else None)

    async def delete(self, request: api.DeleteAgentRequest, _peer: Peer, context: Context) -> empty_pb2.Empty:
        call = Call.of(context)
        agent_id = self._agent_id(request, call)
        log = call.log.bind(spiffe_id=agent_id)
        with failing(log, "failed to remove agent"):
            try:
                await self._nodes.delete(str(agent_id))
            except NotFound as error:
                raise failure(log, Code.NOT_FOUND, "agent not found") from error
        log.info("Agent deleted")
        call.succeeded()
        return empty_pb2.Empty()

    async def ban(self, request: api.BanAgentRequest, _peer: Peer, context: Context) -> empty_pb2.Empty:
        """A banned agent has no serial number; when its SVID ends stays known."""
        call = Call.of(context)
        agent_id = self._agent_id(request, call)
        log = call.log.bind(spiffe_id=agent_id)
        with failing(log, "failed to ban agent"):
            try:
                await self._nodes.ban(str(agent_id))
            except NotFound as error:
                raise failure(log, Code.NOT_FOUND, "agent not found") from error
        log.info("Agent banned")
        call.succeeded()
        return empty_pb2.Empty()

    async def attest(
        self, requests: AsyncIterator[api.AttestAgentRequest], peer: Peer, context: Context
    ) -> AsyncIterator[api.AttestAgentResponse]:
        call = Call.of(context)
        await call.limit(1, "attest agent")
        attestation = Attestation(self._trust_domain, self._nodes, self._signer, call)
        async with aclosing(attestation.run(self._attestors, requests)) as responses:
            async for response in responses:
                yield response

    async def renew(self, request: api.RenewAgentRequest, _peer: Peer, context: Context) -> api.RenewAgentResponse:
        """A new SVID for the calling agent; the old one stays good until the new one is used."""
        call = Call.of(context)
        if request.params.csr:
            call.note(csr=hashlib.sha256(request.params.csr).hexdigest())
        await call.limit(1, "renew agent")
        agent_id = call.agent_id()
        node = await self._known(agent_id, call)
        if node.can_reattest:
            raise _must_reattest()
        call.log.info("Renewing agent SVID")
        if not request.HasField("params"):
            raise failure(call.log, Code.INVALID_ARGUMENT, "params cannot be nil")
        if not request.params.csr:
            raise failure(call.log, Code.INVALID_ARGUMENT, "missing CSR")
        issued = await self._signer.sign(agent_id, request.params.csr, call.log)
        renewed = replace(node, new_serial_number=str(issued.serial), new_expires_at=issued.expires_at)
        await self._update(renewed, _RENEWAL, call)
        call.succeeded()
        return api.RenewAgentResponse(svid=convert.svid_to_proto(agent_id, issued.chain, issued.expires_at))

    async def post_status(
        self, request: api.PostStatusRequest, _peer: Peer, context: Context
    ) -> api.PostStatusResponse:
        call = Call.of(context)
        await call.limit(1, "post status")
        agent_id = call.agent_id()
        call.note(spiffe_id=agent_id)
        version = request.agent_version
        if len(version.encode()) > MAX_VERSION:
            raise failure(call.log, Code.INVALID_ARGUMENT, "agent version is too long (max 255 characters)")
        if version:
            call.note(agent_version=version)
            node = await self._known(agent_id, call)
            if node.agent_version != version:
                await self._update(replace(node, agent_version=version), _VERSION, call)
        call.succeeded()
        return api.PostStatusResponse()

    async def create_join_token(
        self, request: api.CreateJoinTokenRequest, _peer: Peer, context: Context
    ) -> jointoken_pb2.JoinToken:
        """A token, and with an agent ID an entry that gives that ID to whatever agent the token makes."""
        call = Call.of(context)
        if request.ttl < 1:
            raise failure(call.log, Code.INVALID_ARGUMENT, "ttl is required, you must provide one")
        call.note(ttl=request.ttl)
        alias: SpiffeId | None = None
        with failing(call.log, "invalid agent ID", Code.INVALID_ARGUMENT):
            if request.HasField("agent_id"):
                alias = ids.workload(self._trust_domain, request.agent_id)
                call.note(spiffe_id=alias)
        token = request.token or str(uuid.uuid4())
        with failing(call.log, "failed to create join token ID", Code.INVALID_ARGUMENT):
            agent_id = str(join_token_agent_id(self._trust_domain, token))
        expires_at = int(self._clock()) + request.ttl
        with failing(call.log, "failed to create token"):
            await self._store.create_join_token(JoinToken(token, expires_at))
        if alias is not None:
            # The datastore deletes this entry, known by its shape, together with the agent.
            entry = Entry(spiffe_id=str(alias), parent_id=agent_id, selectors=(Selector("spiffe_id", agent_id),))
            with failing(call.log, "failed to create join token registration entry"):
                await self._store.create_entry(entry)
        call.succeeded()
        return jointoken_pb2.JoinToken(value=token, expires_at=expires_at)

    def _agent_id(
        self, request: api.GetAgentRequest | api.DeleteAgentRequest | api.BanAgentRequest, call: Call
    ) -> SpiffeId:
        with failing(call.log, "invalid agent ID", Code.INVALID_ARGUMENT):
            agent_id = ids.agent(self._trust_domain, request.id if request.HasField("id") else None)
        call.note(spiffe_id=agent_id)
        return agent_id

    async def _node(self, agent_id: SpiffeId, call: Call) -> AttestedNode:
        """The agent with its selectors."""
        log = call.log.bind(spiffe_id=agent_id)
        with failing(log, "failed to fetch agent"):
            node = await self._store.get_node(str(agent_id))
        if node is None:
            raise failure(log, Code.NOT_FOUND, "agent not found")
        return node

    async def _known(self, agent_id: SpiffeId, call: Call) -> AttestedNode:
        with failing(call.log, "failed to fetch agent"):
            node = await self._nodes.get(str(agent_id))
        if node is None:
            raise failure(call.log, Code.NOT_FOUND, "agent not found")
        return node

    async def _update(self, node: AttestedNode, fields: Collection[NodeField], call: Call) -> None:
        with failing(call.log, "failed to update agent"):
            try:
                await self._nodes.update(node, fields)
            except NotFound as error:
                raise failure(call.log, Code.NOT_FOUND, "agent not found") from error


def _must_reattest() -> RpcError:
    details = status_pb2.PermissionDeniedDetails(reason=status_pb2.PermissionDeniedDetails.AGENT_MUST_REATTEST)
    return RpcError(Code.PERMISSION_DENIED, "agent must reattest instead of renew", (details,))


def _masked(node: AttestedNode, mask: agent_pb2.AgentMask | None) -> agent_pb2.Agent:
    message = convert.agent_to_proto(node)
    masks.apply(message, mask)
    return message


def _filter(message: api.ListAgentsRequest.Filter | api.CountAgentsRequest.Filter, call: Call) -> NodeFilter:
    """The filter of a list or a count, which have the same fields. Raises RpcError INVALID_ARGUMENT."""
    _note_filter(message, call)
    selectors = expires_before = None
    if message.HasField("by_selector_match"):
        with failing(call.log, "failed to parse selectors", Code.INVALID_ARGUMENT):
            selectors = convert.selector_match(message.by_selector_match)
    if message.by_expires_before:
        with failing(call.log, "failed to parse the time of expiry", Code.INVALID_ARGUMENT):
            expires_before = _time(message.by_expires_before)
    return NodeFilter(
        attestation_type=message.by_attestation_type,
        banned=message.by_banned.value if message.HasField("by_banned") else None,
        can_reattest=message.by_can_reattest.value if message.HasField("by_can_reattest") else None,
        expires_before=expires_before,
        selectors=selectors,
    )


def _note_filter(message: api.ListAgentsRequest.Filter | api.CountAgentsRequest.Filter, call: Call) -> None:
    if message.by_attestation_type:
        call.note(node_attestor_type=message.by_attestation_type)
    if message.HasField("by_banned"):
        call.note(by_banned=message.by_banned.value)
    if message.HasField("by_can_reattest"):
        call.note(by_can_reattest=message.by_can_reattest.value)
    if message.HasField("by_selector_match"):
        match = message.by_selector_match
        call.note(
            by_selector_match=convert.match_text(match),
            by_selectors=convert.selectors_text(match.selectors),
        )


def _time(text: str) -> int:
    """Read what the command line sends: `2026-01-02 15:04:05 +0000 +00`, the last word being the zone's name."""
    try:
        return int(datetime.strptime(" ".join(text.split(" ")[:3]), "%Y-%m-%d %H:%M:%S %z").timestamp())
    except ValueError:
        raise InvalidArgument(f"{text!r} is not a time such as 2026-01-02 15:04:05 +0000 +00") from None
