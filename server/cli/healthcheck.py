"""`spire-server healthcheck`."""

from __future__ import annotations

import sys

from generated.grpc.health.v1 import health_pb2
from operations.errors import SpireError, TemporarilyUnavailable
from operations.flags import FlagSet, Run
from operations.quoting import quote
from server.cli.client import calling
from transport.client import Channel

CHECK = "/grpc.health.v1.Health/Check"


def healthcheck(flags: FlagSet) -> Run:
    flags.boolean("shallow", "Accepted for the sake of old scripts; changes nothing")
    verbose = flags.boolean("verbose", "Also print what is asked, and why a check failed")

    async def act(server: Channel) -> None:
        if verbose.value:
            print("Checking server health...")
        try:
            answer = await server.unary(CHECK, health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse)
        except SpireError as error:
            if verbose.value:
                print(f"Failed to check health: {error}", file=sys.stderr)
            raise TemporarilyUnavailable("server is unhealthy: unable to determine health") from error
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
            raise TemporarilyUnavailable(f"server is unhealthy: server returned status {quote(status)}")
        print("Server is healthy.")

    return calling(flags, act)
