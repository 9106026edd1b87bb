"""AttestAgent: from a payload, through challenges, to an agent with an SVID of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from contextvars import copy_context

from generated.spire.api.server.agent.v1 import agent_pb2 as api
from generated.spire.api.types import x509svid_pb2
from identity.spiffeid import SpiffeId, TrustDomain, require_agent_of_attestor, require_member, server_id
from operations.errors import InvalidArgument, NotFound, Refused, SpireError
from operations.logs import Logger
from plugins.nodeattestor import CLIENT_ADDRESS, ServerNodeAttestor
from plugins.nodeattestor import AttestedNode as Verdict
from server.ca import checks
from server.ca.certificate_authority import CertificateAuthority, IssuedX509
from server.datastore.records import AttestedNode
from server.nodes import AttestedNodes
from server.rpc import convert
from server.rpc.call import Call
from server.rpc.failures import failing, failure
from transport.errors import status_of
from transport.status import Code, RpcError

PATIENCE = 60.0
"""Seconds that an agent may take for each of its messages; devices that prove something are slow, but not that slow."""

_JOIN_TOKEN = "join_token"  # noqa: S105 - the attestor's name


class AgentSigner:
    """Signs the SVIDs of agents."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority

    async def sign(
        self, agent_id: SpiffeId, csr: bytes, log: Logger, *, attested_key: bytes | None = None
    ) -> IssuedX509:
        """`attested_key` (DER SubjectPublicKeyInfo) is what the SVID must be for; None is any. Raises RpcError."""
        with failing(log, "failed to parse CSR", Code.INVALID_ARGUMENT):
            try:
                approved = checks.approve_agent(csr, agent_id, attested_key)
            except Refused as error:
                raise failure(log, Code.PERMISSION_DENIED, "failed to attest", error) from error
        with failing(log, "failed to sign X509 SVID"):
            (issued,) = await self._authority.issue_x509([approved])
        return issued


class _Exchange:
    """Carries an attestor's challenges to the stream, and the agent's responses back to the attestor."""

    def __init__(
        self,
        attestor: ServerNodeAttestor,
        payload: bytes,
        requests: AsyncIterator[api.AttestAgentRequest],
        address: str,
        patience: float,
    ) -> None:
        self._requests = requests
        self._patience = patience
        self._challenges: asyncio.Queue[bytes | None] = asyncio.Queue()
        context = copy_context()
        context.run(CLIENT_ADDRESS.set, address)
        self._task = asyncio.create_task(self._attest(attestor, payload), context=context)

    async def challenges(self) -> AsyncGenerator[bytes, None]:
        """Each challenge of the attestor, until it has its verdict."""
        try:
            while (challenge := await self._challenges.get()) is not None:
                yield challenge
        finally:
            if not self._task.done():
                self._task.cancel()

    async def verdict(self) -> Verdict:
        return await self._task

    async def _attest(self, attestor: ServerNodeAttestor, payload: bytes) -> Verdict:
        try:
            return await attestor.attest(payload, self._challenge)
        finally:
            self._challenges.put_nowait(None)

    async def _challenge(self, challenge: bytes) -> bytes:
        self._challenges.put_nowait(challenge)
        try:
            request = await _next(self._requests, self._patience)
        except EOFError as error:
            raise RpcError(Code.INTERNAL, f"failed to receive challenge from agent: {error}") from None
        except TimeoutError as error:
            raise RpcError(Code.DEADLINE_EXCEEDED, f"failed to receive challenge from agent: {error}") from None
        return request.challenge_response


class Attestation:
    """One AttestAgent call."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        nodes: AttestedNodes,
        signer: AgentSigner,
        call: Call,
        *,
        patience: float = PATIENCE,
    ) -> None:
        """`patience` is in seconds, for each message of the agent."""
        self._trust_domain = trust_domain
        self._nodes = nodes
        self._signer = signer
        self._call = call
        self._patience = patience

    async def run(
        self, attestors: Mapping[str, ServerNodeAttestor], requests: AsyncIterator[api.AttestAgentRequest]
    ) -> AsyncGenerator[api.AttestAgentResponse, None]:
        """Yield the challenges, then the result. Raises RpcError."""
        params = await _params(requests, self._call, self._patience)
        kind = params.data.type
        self._call.note(node_attestor_type=kind)
        log = self._call.log.bind(node_attestor_type=kind)
        attestor = attestors.get(kind)
        if attestor is None:
            cause = NotFound(f'could not find node attestor type "{kind}"')
            raise failure(log, Code.FAILED_PRECONDITION, "error getting node attestor", cause)

        # Without brackets and without the interface of a link-local address.
        address = self._call.host.strip("[]").partition("%")[0]
        exchange = _Exchange(attestor, params.data.payload, requests, address, self._patience)
        async with aclosing(exchange.challenges()) as challenges:
            async for challenge in challenges:
                yield api.AttestAgentResponse(challenge=challenge)
        try:
            verdict = await exchange.verdict()
        except SpireError as error:
            raise _refusal(error, kind, log) from error

        svid = await self._admit(verdict, kind, params.params.csr, log)
        yield api.AttestAgentResponse(
            result=api.AttestAgentResponse.Result(svid=svid, reattestable=verdict.can_reattest)
        )
        self._call.succeeded()

    async def _admit(self, verdict: Verdict, kind: str, csr: bytes, log: Logger) -> x509svid_pb2.X509SVID:
        """Sign the agent's SVID, and write the agent down before the SVID leaves."""
        agent_id = self._agent_id(verdict, kind, log)
        log = log.bind(agent_id=agent_id)
        self._call.note(agent_id=agent_id)
        with failing(log, "failed to fetch agent"):
            known = await self._nodes.get(str(agent_id))
        if known is not None and known.banned:
            raise failure(log, Code.PERMISSION_DENIED, "failed to attest: agent is banned")
        issued = await self._signer.sign(agent_id, csr, log, attested_key=verdict.public_key)
        node = AttestedNode(
            spiffe_id=str(agent_id),
            attestation_type=kind,
            serial_number=str(issued.serial),
            expires_at=issued.expires_at,
            can_reattest=verdict.can_reattest,
            # Sorted, as operators see them in SPIRE.
            selectors=tuple(sorted(verdict.selectors)),
        )
        with failing(log, "failed to update attested agent" if known else "failed to create attested agent"):
            try:
                await self._nodes.admit(node, verdict.record)
            except Refused as error:
                raise failure(log, Code.PERMISSION_DENIED, "failed to attest: agent is banned") from error
        log.info("Agent attestation request completed", address=self._call.address)
        return convert.svid_to_proto(agent_id, issued.chain, issued.expires_at)

    def _agent_id(self, verdict: Verdict, kind: str, log: Logger) -> SpiffeId:
        with failing(log, "invalid agent ID", Code.INTERNAL):
            agent_id = SpiffeId.parse(verdict.spiffe_id)
            require_member(self._trust_domain, agent_id)
        if agent_id == server_id(self._trust_domain):
            raise failure(log, Code.INTERNAL, "agent ID cannot collide with the server ID")
        try:
            require_agent_of_attestor(self._trust_domain, agent_id, kind)
        except InvalidArgument as error:
            log.warning("The node attestor gave an agent ID outside its own namespace", error=error)
        return agent_id


def _refusal(error: SpireError, kind: str, log: Logger) -> RpcError:
    """As SPIRE has it: what a plugin says is told with the plugin's name; join tokens are the server's own."""
    status = status_of(error)
    told_by_plugin = kind != _JOIN_TOKEN and not isinstance(error, RpcError)
    return failure(log, status.code, f"nodeattestor({kind}): {status.message}" if told_by_plugin else status.message)


async def _next(requests: AsyncIterator[api.AttestAgentRequest], patience: float) -> api.AttestAgentRequest:
    """The agent's next message. Raises EOFError when there is none, TimeoutError when it does not come."""
    try:
        async with asyncio.timeout(patience):
            return await anext(requests)
    except StopAsyncIteration:
        raise EOFError("EOF") from None
    except TimeoutError:
        raise TimeoutError(f"the agent sent nothing for {patience:g} s") from None


async def _params(
    requests: AsyncIterator[api.AttestAgentRequest], call: Call, patience: float
) -> api.AttestAgentRequest.Params:
    try:
        request = await _next(requests, patience)
    except (EOFError, TimeoutError) as error:
        code = Code.INVALID_ARGUMENT if isinstance(error, EOFError) else Code.DEADLINE_EXCEEDED
        raise failure(call.log, code, "failed to receive request from stream", error) from None
    fault = _fault(request)
    if fault is not None:
        raise failure(call.log, Code.INVALID_ARGUMENT, "malformed param", InvalidArgument(fault))
    return request.params


def _fault(request: api.AttestAgentRequest) -> str | None:
    params = request.params
    missing = (
        (request.HasField("params"), "missing params"),
        (params.HasField("data"), "missing attestation data"),
        (params.HasField("params"), "missing X509-SVID parameters"),
        (bool(params.params.csr), "missing CSR"),
        (bool(params.data.type), "missing attestation data type"),
        (bool(params.data.payload), "missing attestation data payload"),
    )
    return next((fault for present, fault in missing if not present), None)
