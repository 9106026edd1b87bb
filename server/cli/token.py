"""`spire-server token generate`."""

from __future__ import annotations

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.types import jointoken_pb2
from operations import output
from operations.flags import FlagSet, Run
from server.cli import values
from server.cli.client import calling
from transport.client import Channel

CREATE = "/spire.api.server.agent.v1.Agent/CreateJoinToken"


def generate(flags: FlagSet) -> Run:
    ttl = flags.integer("ttl", 600, "Seconds until the token expires if no agent uses it")
    spiffe_id = flags.string(
        "spiffeID",
        "",
        "Second SPIFFE ID for the agent that uses the token, which entries can name as their parent, e.g. "
        "spiffe://example.org/rack1",
    )
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = agent_pb2.CreateJoinTokenRequest()
        if spiffe_id.value:
            request.agent_id.CopyFrom(values.spiffe_id(spiffe_id.value))
        request.ttl = values.int32(ttl.value, "TTL")
        token = await server.unary(CREATE, request, jointoken_pb2.JoinToken)

        def pretty() -> None:
            print(f"Token: {token.value}")
            if not spiffe_id.value:
                print("Warning: Missing SPIFFE ID.")

        output.print_result(form.value, token, pretty=pretty)

    return calling(flags, act)
