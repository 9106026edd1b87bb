"""gRPC status codes and the error that carries one."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from google.protobuf.message import Message

from operations.errors import SpireError


class Code(IntEnum):
    """gRPC's status codes; `label` is the name that Go prints."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def label(self) -> str:
        if self is Code.OK:
            return "OK"
        if self is Code.CANCELLED:
            return "Canceled"
        return self.name.title().replace("_", "")


class RpcError(SpireError):
    """The status of a failed call: what a handler raises to answer with, and what a client's call raises.

    `details` are protobuf messages, for grpc-status-details-bin. The text is the one Go prints; `message` is the bare
    one.
    """

    def __init__(self, code: Code, message: str, details: Sequence[Message] = ()) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = tuple(details)

    def __str__(self) -> str:
        return f"rpc error: code = {self.code.label} desc = {self.message}"
