"""How a service says no: one log line for the operator and one status for the peer, from the same facts.

The texts are what SPIRE 1.16 answers, because agents and scripts match on them: `message: cause`, except that a
NOT_FOUND keeps its cause to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from generated.spire.api.types import status_pb2
from operations.errors import AlreadyExists, InvalidArgument, NotFound, SpireError, TemporarilyUnavailable
from operations.logs import Logger
from transport.status import Code, RpcError

_REFUSALS: tuple[tuple[type[SpireError], Code], ...] = (
    (NotFound, Code.NOT_FOUND),
    (AlreadyExists, Code.ALREADY_EXISTS),
    (InvalidArgument, Code.INVALID_ARGUMENT),
)


def failure(log: Logger, code: Code, message: str, cause: BaseException | None = None) -> RpcError:
    """Log `message` with its cause and return the error to raise."""
    text = message
    if code is Code.NOT_FOUND:
        cause = None
    if cause is not None:
        reason = text_of(cause)
        text = f"{message}: {reason}"
        log = log.bind(error=reason)
    log.error(f"Invalid argument: {message}" if code is Code.INVALID_ARGUMENT else message[:1].upper() + message[1:])
    return RpcError(code, text)


def failed(log: Logger, code: Code, message: str, cause: BaseException | None = None) -> status_pb2.Status:
    """As `failure`, but for one item of a batch."""
    return status_of(failure(log, code, message, cause))


def status_of(error: RpcError) -> status_pb2.Status:
    return status_pb2.Status(code=int(error.code), message=error.message)


def ok() -> status_pb2.Status:
    return status_pb2.Status(code=int(Code.OK), message="OK")


def code_of(error: SpireError) -> Code:
    """INTERNAL, as SPIRE has it, but UNAVAILABLE for what passes by itself, such as an HSM that is away."""
    if isinstance(error, RpcError):
        return error.code
    return Code.UNAVAILABLE if isinstance(error, TemporarilyUnavailable) else Code.INTERNAL


def code_of_store(error: SpireError) -> Code:
    """As `code_of`, but what the datastore refuses for the caller's own reasons keeps its code."""
    for kind, code in _REFUSALS:
        if isinstance(error, kind):
            return code
    return code_of(error)


def text_of(error: BaseException) -> str:
    return error.message if isinstance(error, RpcError) else str(error)


@contextmanager
def failing(
    log: Logger, message: str, code: Code | None = None, *, of: Callable[[SpireError], Code] = code_of
) -> Generator[None]:
    """Turn a domain error of the block into a `failure` with this message; an RpcError passes as it is.

    The failure's code is `code`, or without one what `of` says of the error.
    """
    try:
        yield
    except RpcError:
        raise
    except SpireError as error:
        raise failure(log, of(error) if code is None else code, message, error) from error
