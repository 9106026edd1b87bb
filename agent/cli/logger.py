"""`spire-agent logger get|set|reset`."""

from __future__ import annotations

from google.protobuf.message import Message

from agent.cli.admin_client import calling
from generated.spire.api.agent.logger.v1 import logger_pb2
from generated.spire.api.types import logger_pb2 as types
from operations import logger_api, output
from operations.errors import SpireError, TemporarilyUnavailable
from operations.flags import Flag, FlagSet, Run
from transport.client import Channel

SERVICE = "/spire.api.agent.logger.v1.Logger/"


def get(flags: FlagSet) -> Run:
    form = output.add_flag(flags)

    async def act(agent: Channel) -> None:
        await _ask(agent, "GetLogger", logger_pb2.GetLoggerRequest(), form, failed="error fetching logger")

    return calling(flags, act)


def set_level(flags: FlagSet) -> Run:
    level = flags.string("level", "", "The level from now on: panic, fatal, error, warn, info, debug or trace")
    form = output.add_flag(flags)

    async def act(agent: Channel) -> None:
        request = logger_pb2.SetLogLevelRequest(new_level=logger_api.requested(level.value))
        await _ask(agent, "SetLogLevel", request, form, failed="failed to set log level")

    return calling(flags, act)


def reset(flags: FlagSet) -> Run:
    form = output.add_flag(flags)

    async def act(agent: Channel) -> None:
        await _ask(agent, "ResetLogLevel", logger_pb2.ResetLogLevelRequest(), form, failed="failed to reset logger")

    return calling(flags, act)


async def _ask(agent: Channel, method: str, request: Message, form: Flag[str], *, failed: str) -> None:
    try:
        logger = await agent.unary(SERVICE + method, request, types.Logger)
    except SpireError as error:
        raise TemporarilyUnavailable(f"{failed}: {error}") from error
    output.print_result(form.value, logger, pretty=lambda: logger_api.print_pretty(logger))
