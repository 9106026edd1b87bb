"""`spire-agent healthcheck`."""

from __future__ import annotations

import asyncio
import sys

from agent.cli.client import SocketFlags
from generated.grpc.health.v1 import health_pb2
from operations.errors import SpireError, TemporarilyUnavailable
from operations.flags import FlagSet, Run
from operations.quoting import quote
from transport.client import Channel

CHECK = "/grpc.health.v1.Health/Check"


def healthcheck(flags: FlagSet) -> Run:
    flags.boolean("shallow", "Accepted for the sake of old scripts; changes nothing")
    verbose = flags.boolean("verbose", "Also print what is asked, and why a check failed")
    socket = SocketFlags.declare(flags)

    def run(_: list[str]) -> int:
        if verbose.value:
            print("Checking agent health...")
        try:
            asyncio.run(_check(socket.resolve(), verbose=verbose.value))
        except SpireError as error:
            print(f"Agent is unhealthy: {error}", file=sys.stderr)
            return 1
        print("Agent is healthy.")
        return 0

    return run


async def _check(path: str, *, verbose: bool) -> None:
    """Raises TemporarilyUnavailable unless the agent says that it serves."""
    async with Channel.unix(path) as agent:
        try:
            answer = await agent.unary(CHECK, health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse)
        except SpireError as error:
            if verbose:
                print(f"Failed to check health: {error}", file=sys.stderr)
            raise TemporarilyUnavailable("unable to determine health") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise TemporarilyUnavailable(f"agent returned status {quote(status)}")
