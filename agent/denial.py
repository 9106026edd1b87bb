"""Why server and agent do not get on, from the errors of calls."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message

from agent.identity import UnknownAuthority
from generated.spire.api.types import status_pb2
from operations.errors import ConfigurationError, PermanentlyUnusable, Refused, Unsupported
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


class Unwelcome(Refused):
    """The server wants this agent no more, or is not the one it was, and nothing that the agent can do helps."""


class MustRebootstrap(Unwelcome):
    """The server has other keys than it had, and the agent may learn them at its next start."""


BANNED = "the server has banned this agent: evict it there to let it attest again"
EVICTED = "the server does not know this agent any more: it must attest anew, for which a join token must be a new one"
NOT_AGAIN = "the server does not let this node attest again"
STRANGER = (
    "no authority that this agent knows vouches for the server: if the server's keys were replaced on purpose, remove "
    "agent-data.json from data_dir and give the agent the new trust bundle, and a new join token where it uses one"
)

REBOOTSTRAP = (
    "shutting down for rebootstrapping: the next start asks the trust bundle's source for the authorities that the "
    "server has now, and attests anew"
)

# Answers that stay what they are however often the same proof is shown.
_FINAL = frozenset(
    (Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED)
)
# Only somebody who mends the configuration or the device can help.
HOPELESS = (ConfigurationError, PermanentlyUnusable, Unsupported)


def is_final(error: BaseException) -> bool:
    """Whether an attestation that failed by this would fail again. A server that is away may come back."""
    return isinstance(error, HOPELESS) or (isinstance(error, RpcError) and error.code in _FINAL)


def must_reattest(error: BaseException) -> bool:
    """Whether the server does not know the agent's SVID any more."""
    return bool(_reasons(error) & _REATTEST)


def is_superseded(error: BaseException) -> bool:
    """Whether the server knows the agent, by a later SVID than the one that was shown."""
    return _Reason.AGENT_NOT_ACTIVE in _reasons(error)


def is_banned(error: BaseException) -> bool:
    return _Reason.AGENT_BANNED in _reasons(error)


def is_unknown_authority(error: BaseException) -> bool:
    """Whether a call failed because the server's certificate does not verify with the agent's bundle."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnknownAuthority):
            return True
        cause = cause.__cause__
    return False


def _reasons(error: BaseException) -> frozenset[int]:
    if not isinstance(error, RpcError) or error.code is not Code.PERMISSION_DENIED:
        return frozenset()
    return frozenset(_reason(detail) for detail in error.details)


def _reason(detail: Message) -> int:
    """A client's error has its details packed, one of our own making has them plain."""
    if isinstance(detail, any_pb2.Any):
        unpacked = status_pb2.PermissionDeniedDetails()
        try:
            return unpacked.reason if detail.Unpack(unpacked) else _Reason.UNKNOWN
        except DecodeError:
            return _Reason.UNKNOWN
    return detail.reason if isinstance(detail, status_pb2.PermissionDeniedDetails) else _Reason.UNKNOWN
