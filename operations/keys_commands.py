"""`keys list|show|verify|dispose` of server and agent: the same service, on either's admin socket."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Final, Protocol, TypeVar

from google.protobuf.message import Message

from generated.spire.keys.v1 import keys_pb2 as api
from operations import keys_text, output
from operations.errors import InvalidArgument
from operations.flags import FlagSet, Run

SERVICE: Final = "/spire.keys.v1.Keys/"
TIMEOUT: Final = 60.0
"""Seconds; the service itself gives up sooner."""

R = TypeVar("R", bound=Message)


class Channel(Protocol):
    async def unary(self, path: str, request: Message, response: type[R], *, timeout: float | None = None) -> R: ...  # noqa: ASYNC109 - it is sent to the server


Act = Callable[[Channel], Coroutine[None, None, None]]
Calling = Callable[[FlagSet, Act], Run]
"""Declares the flags that name a program's socket, and makes the command that runs an act with a channel to it."""


def list_all(flags: FlagSet, calling: Calling) -> Run:
    form = output.add_flag(flags)

    async def act(channel: Channel) -> None:
        found = await _call(channel, "ListKeys", api.ListKeysRequest(), api.ListKeysResponse)
        output.print_result(form.value, found, pretty=lambda: keys_text.print_keys(found))

    return calling(flags, act)


def show(flags: FlagSet, calling: Calling) -> Run:
    key_id = flags.string("id", "", "ID of the key, such as x509-CA-A; required")
    form = output.add_flag(flags)

    async def act(channel: Channel) -> None:
        if not key_id.value:
            raise InvalidArgument("a key ID is required: name it with -id")
        found = await _call(channel, "ListKeys", api.ListKeysRequest(id=key_id.value), api.ListKeysResponse)
        output.print_result(form.value, found, pretty=lambda: keys_text.print_keys(found))

    return calling(flags, act)


def verify(flags: FlagSet, calling: Calling) -> Run:
    key_id = flags.string("id", "", "ID of the key; all keys that have an ID without it")
    form = output.add_flag(flags)

    async def act(channel: Channel) -> None:
        found = await _call(channel, "VerifyKeys", api.VerifyKeysRequest(id=key_id.value), api.VerifyKeysResponse)
        output.print_result(form.value, found, pretty=lambda: keys_text.print_proofs(found))
        keys_text.require_all(found)

    return calling(flags, act)


def dispose(flags: FlagSet, calling: Calling) -> Run:
    key_id = flags.string("id", "", "ID that the key has or, once it is retired, had")
    handle = flags.string("handle", "", "Handle of the key, as list prints it, where an ID is not enough")
    form = output.add_flag(flags)

    async def act(channel: Channel) -> None:
        if bool(key_id.value) == bool(handle.value):
            raise InvalidArgument("name one key, with -id or with -handle")
        request = api.DisposeKeyRequest(id=key_id.value, handle=handle.value)
        done = await _call(channel, "DisposeKey", request, api.DisposeKeyResponse)
        output.print_result(form.value, done, pretty=lambda: keys_text.print_disposed(done))

    return calling(flags, act)


async def _call(channel: Channel, method: str, request: Message, response: type[R]) -> R:
    return await channel.unary(SERVICE + method, request, response, timeout=TIMEOUT)
