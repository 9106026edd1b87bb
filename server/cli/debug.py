"""`spire-server debug getinfo`."""

from __future__ import annotations

from generated.spire.api.server.debug.v1 import debug_pb2
from operations import debug_text, output
from operations.flags import FlagSet, Run
from server.cli.client import calling
from transport.client import Channel

GET_INFO = "/spire.api.server.debug.v1.Debug/GetInfo"
_WIDTH = 25


def get_info(flags: FlagSet) -> Run:
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        info = await server.unary(GET_INFO, debug_pb2.GetInfoRequest(), debug_pb2.GetInfoResponse)
        output.print_result(form.value, info, pretty=lambda: _print(info))

    return calling(flags, act)


def _print(info: debug_pb2.GetInfoResponse) -> None:
    print("Server Debug Info:")
    debug_text.rows(
        (
            ("Uptime", debug_text.seconds(info.uptime)),
            ("Registered Agents", info.agents_count),
            ("Registration Entries", info.entries_count),
            ("Federated Bundles", info.federated_bundles_count),
        ),
        _WIDTH,
    )
    debug_text.chain(info.svid_chain)
