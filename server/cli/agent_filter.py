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

TIME = "2006-01-02 15:04:05 -0700 -07"
"""The form of -expiresBefore, as Go writes such a form."""

Filter = TypeVar("Filter", agent_pb2.ListAgentsRequest.Filter, agent_pb2.CountAgentsRequest.Filter)


class AgentFilter:
    def __init__(self, flags: FlagSet) -> None:
        self._selectors = flags.strings("selector", "A colon-delimited type:value selector. Can be used more than once")
        self._type = flags.string("attestationType", "", "Filter by attestation type, like join_token or x509pop.")
        self._can_reattest = flags.custom(
            "canReattest",
            None,
            "Filter based on string received, 'true': agents that can reattest, 'false': agents that can't reattest, "
            "other value will return all.",
            _true_false_or_all,
        )
        self._banned = flags.custom(
            "banned",
            None,
            "Filter based on string received, 'true': banned agents, 'false': not banned agents, "
            "other value will return all.",
            _true_false_or_all,
        )
        usage = f"Filter by expiration time (format: {quote(TIME)})"
        self._expires_before = flags.string("expiresBefore", "", usage)
        self._match = flags.string("matchSelectorsOn", "superset", values.MATCH_SELECTORS_USAGE)

    def to_list(self) -> agent_pb2.ListAgentsRequest.Filter:
        """Raises InvalidArgument."""
        return self._fill(agent_pb2.ListAgentsRequest.Filter())

    def to_count(self) -> agent_pb2.CountAgentsRequest.Filter:
        """Raises InvalidArgument."""
        return self._fill(agent_pb2.CountAgentsRequest.Filter())

    def _fill(self, wanted: Filter) -> Filter:
        if self._selectors.value:
            wanted.by_selector_match.match = values.behavior(self._match.value, "unsupported match behavior")
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
        example = "2026-11-22 06:43:42 +0000 +00"
        raise InvalidArgument(f"date is not valid: {quote(text)} is not of the form {quote(example)}") from None
