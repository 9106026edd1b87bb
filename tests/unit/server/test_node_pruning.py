"""Agents that are gone for long are forgotten, as the operator wants it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from identity.selectors import Selector
from operations import logs
from operations.errors import TemporarilyUnavailable
from server import housekeeping
from server.config.settings import NodePruning
from server.datastore.records import AttestedNode, Entry
from server.datastore.store import DataStore
from server.housekeeping import NodeHousekeeping
from server.nodes import AttestedNodes

HOUR = 3600
NOW = int(time.time())
AGENT = "spiffe://example.org/spire/agent/"


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[DataStore]:
    opened = await DataStore.open(str(tmp_path / "datastore.sqlite3"))
    yield opened
    await opened.close()


def node(name: str, *, ended: int, can_reattest: bool = True, serial: str = "1") -> AttestedNode:
    return AttestedNode(
        spiffe_id=f"{AGENT}{name}",
        attestation_type=name.partition("/")[0],
        serial_number=serial,
        expires_at=NOW - ended,
        can_reattest=can_reattest,
        selectors=(Selector("a", "b"),),
    )


async def left(store: DataStore) -> list[str]:
    return [each.spiffe_id.removeprefix(AGENT) for each in (await store.list_nodes()).items]


def pruning(store: DataStore, *, hours: int = 24, batch: int = 1000, tofu: bool = False) -> NodeHousekeeping:
    settings = NodePruning(timedelta(hours=hours), batch, tofu)
    return NodeHousekeeping(AttestedNodes(store), settings, logs.get("node_manager"))


@pytest.mark.parametrize("tofu", [False, True])
async def test_only_those_that_are_gone_for_long(store: DataStore, tofu: bool) -> None:
    for each in (
        node("x509pop/old", ended=25 * HOUR),
        node("x509pop/young", ended=23 * HOUR),
        node("x509pop/alive", ended=-HOUR),
        node("x509pop/banned", ended=25 * HOUR, serial=""),
        node("join_token/old", ended=25 * HOUR, can_reattest=False),
    ):
        await store.create_node(each)
    await pruning(store, tofu=tofu).prune(NOW)
    kept = ["x509pop/young", "x509pop/alive", "x509pop/banned"]
    assert await left(store) == (kept if tofu else [*kept, "join_token/old"])


async def test_the_alias_of_a_join_token_goes_with_its_agent(store: DataStore) -> None:
    await store.create_node(node("join_token/t", ended=48 * HOUR, can_reattest=False))
    alias = Entry(
        spiffe_id="spiffe://example.org/node",
        parent_id=f"{AGENT}join_token/t",
        selectors=(Selector("spiffe_id", f"{AGENT}join_token/t"),),
    )
    await store.create_entry(alias)
    await pruning(store, tofu=True).prune(NOW)
    assert await left(store) == []
    assert await store.count_entries() == 0


async def test_a_round_has_its_batch_and_a_log_line(
    store: DataStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_AT_ONCE", 2)
    for number in range(7):
        await store.create_node(node(f"x509pop/{number}", ended=48 * HOUR))
    work = pruning(store, batch=5)
    with caplog.at_level(logging.INFO):
        await work.prune(NOW)
        assert await left(store) == ["x509pop/5", "x509pop/6"]
        await work.prune(NOW)
        await work.prune(NOW)
    assert await left(store) == []
    counts = [record.__dict__["fields"]["count"] for record in caplog.records if "Pruned" in record.getMessage()]
    assert counts == [5, 2, 0]


async def test_a_datastore_that_is_away_is_asked_again(store: DataStore, caplog: pytest.LogCaptureFixture) -> None:
    class Away(AttestedNodes):
        async def prune(self, expired_before: int, *, include_non_reattestable: bool, limit: int) -> list[AttestedNode]:
            raise TemporarilyUnavailable("the database is locked")

    settings = NodePruning(timedelta(hours=1), 10, tofu=False)
    await NodeHousekeeping(Away(store), settings, logs.get("node_manager")).prune(NOW)
    assert "Failed during periodic pruning of expired nodes" in caplog.text


async def test_it_says_what_it_will_do(store: DataStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(TimeoutError):
        await asyncio.wait_for(pruning(store, hours=720).run(), 0.1)
    (record,) = [each for each in caplog.records if "Periodic" in each.getMessage()]
    fields = record.__dict__["fields"]
    assert (fields["expired_for"], fields["include_tofu"]) == ("720h0m0s", False)
    assert 2700 <= int(str(fields["retry_interval"]).removesuffix("s")) <= 4500
