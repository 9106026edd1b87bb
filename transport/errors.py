"""The one mapping from errors to gRPC statuses."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from operations import errors
from transport.status import Code, RpcError

_log: Final = logging.getLogger("transport")

# The first class that fits wins; subclasses come before their bases.
_CODES: Final[tuple[tuple[type[BaseException], Code], ...]] = (
    (errors.InvalidArgument, Code.INVALID_ARGUMENT),
    (errors.NotFound, Code.NOT_FOUND),
    (errors.AlreadyExists, Code.ALREADY_EXISTS),
    (errors.Refused, Code.PERMISSION_DENIED),
    (errors.TemporarilyUnavailable, Code.UNAVAILABLE),
    (errors.Unsupported, Code.UNIMPLEMENTED),
    (errors.PermanentlyUnusable, Code.INTERNAL),
    (errors.SpireError, Code.UNKNOWN),
)


def status_of(error: BaseException) -> RpcError:
    """The status a peer gets for an error.

    Errors of the tree keep their text. Any other is a fault of ours: it is logged with its traceback, and the peer
    learns nothing of it.
    """
    if isinstance(error, RpcError):
        return error
    for kind, code in _CODES:
        if isinstance(error, kind):
            return RpcError(code, str(error))
    if isinstance(error, asyncio.CancelledError):
        return RpcError(Code.CANCELLED, "context canceled")
    if isinstance(error, TimeoutError):
        return RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
    _log.error("a call failed unexpectedly", exc_info=error)
    return RpcError(Code.INTERNAL, "internal error; the server's log tells more")
