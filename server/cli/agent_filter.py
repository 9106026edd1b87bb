"""The flags that select agents, shared by `agent list` and `agent count`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TypeVar

from google.protobuf import wrappers_pb2

from generated.spire.api.server.agent.v1 import agent_pb2
from operations.errors import InvalidArgument
from operations.flags import FlagSet
from operations.quoting import quote
from server.cli import values

EXAMPLE = "2026-11-22 06:43:42 +0000 +00"
"""A time as -expiresBefore takes it: the offset from UTC stands there twice."""

Filter = TypeVar("Filter", agent_pb2.ListAgentsRequest.Filter, agent_pb2.CountAgentsRequest.Filter)


class AgentFilter:
    def __init__(self, flags: FlagSet) -> None:
        self._selectors = flags.strings(
            "selector", "Only agents with this selector, as type:value; repeatable, see -matchSelectorsOn"
        )
        self._type = flags.string("attestationType", "", "Only agents attested by this node attestor, e.g. join_token")
        self._can_reattest = flags.custom(
            "canReattest",
            None,
            "true: only agents that can attest again by themselves; false: only those that cannot; "
            "any other value: both",
            _true_false_or_all,
        )
        self._banned = flags.custom(
            "banned",
            None,
            "true: only agents that are banned; false: only those that are not; any other value: both",
            _true_false_or_all,
        )
        usage = f"Only agents whose SVID expires before this time, written like\n{quote(EXAMPLE)}"
        self._expires_before = flags.string("expiresBefore", "", usage)
        self._match = flags.string("matchSelectorsOn", "superset", values.match_usage("-selector"))

    def to_list(self) -> agent_pb2.ListAgentsRequest.Filter:
        """Raises InvalidArgument."""
        return self._fill(agent_pb2.ListAgentsRequest.Filter())

    def to_count(self) -> agent_pb2.CountAgentsRequest.Filter:
        """Raises InvalidArgument."""
        return self._fill(agent_pb2.CountAgentsRequest.Filter())

    def _fill(self, wanted: Filter) -> Filter:
        if self._selectors.value:
            wanted.by_selector_match.match = values.behavior(self._match, "unsupported match behavior")
            found = values.explained("error parsing selector %s", values.selector, self._selectors.value)
            wanted.by_selector_match.selectors.extend(found)
        if self._expires_before.value:
            _check_time(self._expires_before.value)
            wanted.by_expires_before = self._expires_before.value
        wanted.by_attestation_type = self._type.value
        if self._can_reattest.value is not None:
            wanted.by_can_reattest.CopyFrom(wrappers_pb2.BoolValue(value=self._can_reattest.value))
        if self._banned.value is not None:
            wanted.by_banned.CopyFrom(wrappers_pb2.BoolValue(value=self._banned.value))
        return wanted


def _true_false_or_all(text: str, _: bool | None) -> bool | None:
    return {"true": True, "false": False}.get(text)


def _check_time(text: str) -> None:
    try:
        if not re.fullmatch(r".* [+-]\d{4} [+-]\d{2}", text):
            raise ValueError("zone")
        datetime.strptime(text.rpartition(" ")[0], "%Y-%m-%d %H:%M:%S %z")
    except ValueError:
        raise InvalidArgument(f"date is not valid: {quote(text)} is not of the form {quote(EXAMPLE)}") from None
