"""What every call of the server's API starts with: who calls, where its log and audit lines go, which limit it has."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from identity.spiffeid import SpiffeId
from operations import metrics
from operations.logs import Logger
from server.audit import Audit
from server.authorization import Authorizer, Caller
from server.rate_limits import RateLimit
from server.rpc.failures import failure
from transport.peer import Peer
from transport.router import Context, Method
from transport.status import Code, RpcError

_ATTRIBUTE = "call"
_SHORT_NAMES = (("spire.api.server.", ""), ("logger.v1.Logger", "Logger"), ("grpc.health.v1.Health", "Health"))


@dataclass(slots=True)
class Call:
    """One authorized call. `audit` is None when the audit log is off; `host` is the address without its port.

    `key` is what the method is called in metrics.
    """

    log: Logger
    caller: Caller
    audit: Audit | None
    address: str
    host: str
    deadline: float | None
    rate_limit: RateLimit | None
    key: metrics.Key = ()

    @classmethod
    def of(cls, context: Context) -> Call:
        call = context.attributes[_ATTRIBUTE]
        assert isinstance(call, cls)  # noqa: S101 - Gate.before has put it there
        return call

    def agent_id(self) -> SpiffeId:
        """The calling agent. Only methods that POLICY gives to agents may ask."""
        if self.caller.identity is None:
            raise failure(self.log, Code.INTERNAL, "caller ID missing from request context")
        return self.caller.identity.id

    async def limit(self, count: int, what: str) -> None:
        """Wait for the rate limit. Raises RpcError RESOURCE_EXHAUSTED."""
        if self.rate_limit is None:
            return
        try:
            with metrics.call("rateLimit", *self.key):
                await self.rate_limit.wait(self.host, count, self.deadline)
        except RpcError as error:
            message = f"rejecting request due to {what} rate limiting"
            raise failure(self.log, error.code, message, error) from error

    def note(self, **fields: object) -> None:
        """Add fields to this call's audit line."""
        if self.audit is not None:
            self.audit.add(**fields)

    def succeeded(self, **fields: object) -> None:
        """Write the audit line of a call that has gone well."""
        if self.audit is not None:
            self.audit.success(**fields)


class Gate:
    """The hooks of a Router: authorization before a call, audit after a failure."""

    def __init__(self, authorizer: Authorizer, limits: Mapping[str, RateLimit], log: Logger, *, audit: bool) -> None:
        self._authorizer = authorizer
        self._limits = limits
        self._log = log
        self._audit = audit
        self.judges_requests = authorizer.judges_requests

    async def before(self, method: Method, peer: Peer, context: Context) -> None:
        """Admit the call or raise RpcError."""
        log = self._log.bind(**_fields(method, peer))
        caller = await self._authorizer.authorize(method.path, peer, log, context.request)
        fields: dict[str, object] = {"authorized_as": caller.authorized_as, "authorized_via": caller.authorized_via}
        if caller.identity is not None:
            fields["caller_id"] = caller.identity.id
        log = log.bind(**fields)
        context.attributes[_ATTRIBUTE] = Call(
            log=log,
            caller=caller,
            audit=Audit(log, peer) if self._audit else None,
            address=peer.address,
            host=_host(peer.address),
            deadline=context.deadline,
            rate_limit=self._limits.get(method.path) if peer.process is None else None,
            key=metrics.rpc_key(method.service, method.name),
        )

    def after(self, method: Method, _peer: Peer, context: Context, error: RpcError | None, seconds: float) -> None:
        metrics.called(("rpc", *metrics.rpc_key(method.service, method.name)), seconds, error)
        call = context.attributes.get(_ATTRIBUTE)
        if error is not None and isinstance(call, Call) and call.audit is not None:
            call.audit.error(error)


def _fields(method: Method, peer: Peer) -> dict[str, object]:
    service = method.service
    for long, short in _SHORT_NAMES:
        service = service.replace(long, short)
    fields: dict[str, object] = {"service": service, "method": method.name, "request_id": uuid.uuid4()}
    if peer.process is None:
        fields["caller_addr"] = peer.address
    return fields


def _host(address: str) -> str:
    return address.rpartition(":")[0] or address


Clock = Callable[[], float]
"""Unix time in seconds."""

wall_clock: Clock = time.time
