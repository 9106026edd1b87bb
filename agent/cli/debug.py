"""`spire-agent debug getinfo`."""

from __future__ import annotations

from agent.cli.admin_client import calling
from generated.spire.api.agent.debug.v1 import debug_pb2
from operations import debug_text, output, times
from operations.flags import FlagSet, Run
from transport.client import Channel

GET_INFO = "/spire.agent.debug.v1.Debug/GetInfo"
_WIDTH = 33


def get_info(flags: FlagSet) -> Run:
    form = output.add_flag(flags)

    async def act(agent: Channel) -> None:
        info = await agent.unary(GET_INFO, debug_pb2.GetInfoRequest(), debug_pb2.GetInfoResponse)
        output.print_result(form.value, info, pretty=lambda: _print(info))

    return calling(flags, act)


def _print(info: debug_pb2.GetInfoResponse) -> None:
    print("Agent Debug Info:")
    debug_text.rows(
        (
            ("Uptime", debug_text.seconds(info.uptime)),
            ("Last Sync Success", times.rfc3339(info.last_sync_success) if info.last_sync_success else "(never)"),
            ("Cached X.509 SVIDs", info.cached_x509_svids_count),
            ("Cached JWT SVIDs", info.cached_jwt_svids_count),
            ("Cached SVID Store X.509 SVIDs", info.cached_svidstore_x509_svids_count),
        ),
        _WIDTH,
    )
    debug_text.chain(info.svid_chain)
