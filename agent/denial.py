"""Why the server refused an agent, from the details of its answer."""

from __future__ import annotations

from generated.spire.api.types import status_pb2
from transport.status import Code, RpcError

_Reason = status_pb2.PermissionDeniedDetails

_REATTEST = frozenset(
    (
        _Reason.AGENT_EXPIRED,
        _Reason.AGENT_NOT_ACTIVE,
        _Reason.AGENT_NOT_ATTESTED,
        _Reason.AGENT_MUST_REATTEST,
    )
)


def must_reattest(error: BaseException) -> bool:
    """Whether the server does not know the agent's SVID any more."""
    return bool(_reasons(error) & _REATTEST)


def is_banned(error: BaseException) -> bool:
    return _Reason.AGENT_BANNED in _reasons(error)


def _reasons(error: BaseException) -> frozenset[int]:
    if not isinstance(error, RpcError) or error.code is not Code.PERMISSION_DENIED:
        return frozenset()
    return frozenset(
        detail.reason for detail in error.details if isinstance(detail, status_pb2.PermissionDeniedDetails)
    )
