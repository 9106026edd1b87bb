"""Which services are served where: all on the private Unix socket, and what agents and admins need over TCP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from google.protobuf.descriptor import ServiceDescriptor

from server.rpc.call import Gate
from transport.router import Handler, Router


class Service(Protocol):
    DESCRIPTOR: ServiceDescriptor

    def handlers(self) -> dict[str, Handler]: ...


def router(services: Sequence[Service], gate: Gate) -> Router:
    made = Router()
    made.before = gate.before
    made.after = gate.after
    made.shows_requests = gate.judges_requests
    for service in services:
        made.add(service.DESCRIPTOR, service.handlers())
    return made
