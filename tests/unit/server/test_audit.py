"""The audit log: one line per call or item, and none when it is off."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generated.spire.api.server.entry.v1 import entry_pb2 as api
from generated.spire.api.server.svid.v1 import svid_pb2
from operations import logs, times
from tests.simulators.house import ENTRY, House, csr, new_entry, refused, running, spiffe_id
from tests.simulators.pki import ec_key


def lines(path: Path) -> Sequence[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in found if line.get("type") == "audit"]


async def calls(house: House) -> None:
    await house.create(new_entry("/web", spiffe_id("/parent")))
    await house.local.unary(
        ENTRY + "BatchDeleteEntry", api.BatchDeleteEntryRequest(ids=["absent"]), api.BatchDeleteEntryResponse
    )
    await refused(house.local, ENTRY + "GetEntry", api.GetEntryRequest())


async def test_who_did_what_and_how_it_ended(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("info", "json", str(file))
    try:
        async with running(tmp_path, settings="audit_log_enabled = true") as house:
            await calls(house)
    finally:
        logs.setup("info", "text")
    created, deleted, got = (line for line in lines(file) if line["service"] == "entry.v1.Entry")
    assert created["msg"] == "API accessed"
    assert created["status"] == "success"
    assert created["spiffe_id"] == "spiffe://example.org/web"
    assert created["selectors"] == "unix:uid:1"
    assert created["caller_uid"] == os.getuid()
    assert created["caller_path"]
    assert created["authorized_as"] == "local"
    assert (deleted["entry_id"], deleted["status"], deleted["status_code"]) == ("absent", "error", "NotFound")
    assert (got["status_code"], got["status_message"]) == ("InvalidArgument", "missing ID")


async def test_what_was_minted(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("info", "json", str(file))
    request = csr(ec_key(), uris=["spiffe://example.org/a"], dns_names=["a.example", "b.example"])
    try:
        async with running(tmp_path, settings="audit_log_enabled = true") as house:
            minting = svid_pb2.MintX509SVIDRequest(csr=request, ttl=60)
            path = "/spire.api.server.svid.v1.SVID/MintX509SVID"
            minted = await house.local.unary(path, minting, svid_pb2.MintX509SVIDResponse)
    finally:
        logs.setup("info", "text")
    (line,) = (line for line in lines(file) if line["service"] == "svid.v1.SVID")
    assert line["spiffe_id"] == "spiffe://example.org/a"
    assert line["dns_name"] == "a.example,b.example"
    assert "CN=a.example" in line["subject"]
    assert line["expires_at"] == times.rfc3339(minted.svid.expires_at)


async def test_off(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("info", "json", str(file))
    try:
        async with running(tmp_path) as house:
            await calls(house)
    finally:
        logs.setup("info", "text")
    assert lines(file) == []
