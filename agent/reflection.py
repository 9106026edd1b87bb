"""What an endpoint serves, for tools such as grpcurl that have no .proto files (gRPC Server Reflection Protocol)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from agent.caller_limits import CallerLimits
from generated.grpc.reflection.v1 import reflection_pb2 as v1
from generated.grpc.reflection.v1alpha import reflection_pb2 as v1alpha
from transport.peer import Peer
from transport.router import Context, Router
from transport.status import Code, RpcError

SERVICES: Final = (
    v1.DESCRIPTOR.services_by_name["ServerReflection"],
    v1alpha.DESCRIPTOR.services_by_name["ServerReflection"],
)
NAMES: Final = frozenset(service.full_name for service in SERVICES)

_MOST_STREAMS: Final = 16
_LONGEST: Final = 256  # that a question may be: names are shorter


class Reflection:
    """Of one router: its services, and the files that define them and what they are made of, and no others."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._pool = descriptor_pool.Default()
        self._limits = CallerLimits(_MOST_STREAMS)

    def add_to(self, router: Router) -> None:
        for service in SERVICES:
            router.add(service, {"ServerReflectionInfo": self.server_reflection_info})

    async def server_reflection_info(
        self, requests: AsyncIterator[Message], peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        """v1 and v1alpha are the same on the wire."""
        del context
        sent: set[str] = set()
        with self._limits.stream_of(peer.process or peer.address) as allowance:
            async for message in requests:
                request = v1.ServerReflectionRequest.FromString(message.SerializeToString())
                answer = self._answer(request, sent).SerializeToString()
                async with allowance.sending(len(answer)):
                    yield answer

    def _answer(self, request: v1.ServerReflectionRequest, sent: set[str]) -> v1.ServerReflectionResponse:
        """`sent` has the names of the files that went out on this stream before; those of now are added."""
        if request.ByteSize() > _LONGEST:
            raise RpcError(Code.INVALID_ARGUMENT, "the question is too long")
        response = v1.ServerReflectionResponse(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        if kind is None:
            raise RpcError(Code.INVALID_ARGUMENT, "invalid MessageRequest: <nil>")
        try:
            if kind == "list_services":
                services = [v1.ServiceResponse(name=name) for name in self._router.services]
                response.list_services_response.CopyFrom(v1.ListServiceResponse(service=services))
            elif kind == "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                self._defining(name)
                response.all_extension_numbers_response.base_type_name = name
            else:
                files = _with_imports(self._asked_for(request, kind), sent)
                response.file_descriptor_response.file_descriptor_proto.extend(files)
        except KeyError:
            response.error_response.error_code = Code.NOT_FOUND
            response.error_response.error_message = "proto: not found"
        return response

    def _asked_for(self, request: v1.ServerReflectionRequest, kind: str) -> FileDescriptor:
        """Raises KeyError for what is not there; no type of ours has extensions."""
        if kind == "file_by_filename":
            return self._files[request.file_by_filename]
        if kind == "file_containing_symbol":
            return self._defining(request.file_containing_symbol)
        raise KeyError(kind)

    def _defining(self, symbol: str) -> FileDescriptor:
        """The file of a service, method, type or field. Raises KeyError."""
        for find in (self._file_of, self._file_of_method, self._file_of_field):
            with suppress(KeyError):
                return self._files[find(symbol).name]
        raise KeyError(symbol)

    def _file_of(self, symbol: str) -> FileDescriptor:
        return self._pool.FindFileContainingSymbol(symbol)

    def _file_of_method(self, symbol: str) -> FileDescriptor:
        return self._pool.FindMethodByName(symbol).containing_service.file

    def _file_of_field(self, symbol: str) -> FileDescriptor:
        message = self._pool.FindFieldByName(symbol).containing_type
        if message is None:  # an extension's, of which there are none
            raise KeyError(symbol)
        return message.file

    @cached_property
    def _files(self) -> Mapping[str, FileDescriptor]:
        """By name."""
        found: dict[str, FileDescriptor] = {}
        for name in self._router.services:
            for file in _closure(self._pool.FindServiceByName(name).file, lambda file: file.name in found):
                found[file.name] = file
        return found


def _with_imports(file: FileDescriptor, sent: set[str]) -> Iterable[bytes]:
    """The file itself in any case."""
    found = [file, *(each for each in _closure(file, lambda each: each.name in sent) if each is not file)]
    sent.update(each.name for each in found)
    return [each.serialized_pb for each in found]


def _closure(file: FileDescriptor, known: Callable[[FileDescriptor], bool]) -> Iterable[FileDescriptor]:
    """The file and all that it imports, but those that are known already."""
    found: dict[str, FileDescriptor] = {}
    waiting = [file]
    while waiting:
        each = waiting.pop(0)
        if each.name not in found and not known(each):
            found[each.name] = each
            waiting.extend(each.dependencies)
    return found.values()
