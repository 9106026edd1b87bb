"""What a program needs to be to be served as a plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from google.protobuf.descriptor import ServiceDescriptor

from transport.router import Handler

Service = tuple[ServiceDescriptor, Mapping[str, Handler]]
"""A gRPC service, with its handlers by method."""


class Plugin(Protocol):
    def services(self) -> Sequence[Service]:
        """Its gRPC services with their handlers."""
        ...

    def introduce(self, host_services: Sequence[str]) -> Sequence[str]:
        """The full names of its services for a host that offers `host_services`, before anything else is called."""
        ...

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        ...
