"""Rekor's entries: against the simulated log, and against one of the public log."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.sigstore import entries
from attestors.sigstore.entries import InclusionProof, LogEntry
from attestors.sigstore.trust import read_key
from operations.documents import decode
from operations.errors import Refused
from tests.simulators.sigstore import NOW, Log, public_pem

LOG = Log()
for number in range(37):
    LOG.add({"number": number}, NOW + timedelta(seconds=number))


def found(index: int) -> tuple[LogEntry, InclusionProof, str]:
    """Of a tree as long as the log is now."""
    (answer,) = LOG.answer(index).values()
    data = json.dumps(answer)
    verification = answer["verification"]
    proof = decode(json.dumps(verification["inclusionProof"]), InclusionProof)
    return decode(data, LogEntry), proof, verification["signedEntryTimestamp"]


@given(st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_every_leaf_of_every_tree_is_in_it_and_no_other(size: int, data: st.DataObject) -> None:
    log = Log(LOG.key)
    for number in range(size):
        log.add({"number": number}, NOW)
    index = data.draw(st.integers(0, size - 1))
    (answer,) = log.answer(index).values()
    entry = decode(json.dumps(answer), LogEntry)
    proof = decode(json.dumps(answer["verification"]["inclusionProof"]), InclusionProof)
    entries.require_included(entry, proof)
    other = data.draw(st.integers(0, size))
    if other != index:
        with pytest.raises(Refused):
            entries.require_included(entry, msgspec.structs.replace(proof, log_index=other))
    with pytest.raises(Refused):
        entries.require_included(msgspec.structs.replace(entry, body="e30="), proof)
    with pytest.raises(Refused):
        entries.require_included(entry, msgspec.structs.replace(proof, hashes=(*proof.hashes, "ab" * 32)))
    if proof.hashes:
        with pytest.raises(Refused):
            entries.require_included(entry, msgspec.structs.replace(proof, hashes=proof.hashes[:-1]))


@pytest.mark.parametrize(
    "change",
    [
        {"tree_size": 0},
        {"log_index": -1},
        {"root_hash": "zz"},
        {"root_hash": "ab"},
        {"hashes": ("ab",)},
        {"hashes": ("ab" * 32,) * 65},
        {"tree_size": 1 << 70},
    ],
)
def test_a_malformed_proof_is_refused(change: dict[str, Any]) -> None:
    entry, proof, _ = found(3)
    with pytest.raises(Refused, match="inclusion proof"):
        entries.require_included(entry, msgspec.structs.replace(proof, **change))


def test_the_logs_promise_is_for_this_entry_by_this_log() -> None:
    entry, _, promise = found(5)
    keys = {LOG.id: read_key(public_pem(LOG.key))}
    entries.require_promised(entry, promise, keys)
    for change in ({"integrated_time": entry.integrated_time + 1}, {"log_index": 6}, {"body": "e30="}):
        with pytest.raises(Refused, match="unable to verify SET"):
            entries.require_promised(msgspec.structs.replace(entry, **change), promise, keys)
    with pytest.raises(Refused, match="rekor log public key not found"):
        entries.require_promised(msgspec.structs.replace(entry, log_id="ab" * 32), promise, keys)
    for change in ({"integrated_time": 1 << 60}, {"log_index": -1}):
        with pytest.raises(Refused, match="numbers that none has"):
            entries.require_promised(msgspec.structs.replace(entry, **change), promise, keys)
    with pytest.raises(Refused, match="not in base64"):
        entries.require_promised(entry, "!", keys)
    with pytest.raises(Refused, match="the log entry's time is none"):
        _ = msgspec.structs.replace(entry, integrated_time=1 << 70).time


def body(kind: str, version: str, spec: object) -> LogEntry:
    content = json.dumps({"kind": kind, "apiVersion": version, "spec": spec}).encode()
    return LogEntry(base64.b64encode(content).decode(), 0, 0, "")


HASH = {"algorithm": "sha256", "value": "ab"}
KEY = base64.b64encode(b"key").decode()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (body("hashedrekord", "0.0.2", {}), "unknown kind"),
        (body("jar", "0.0.1", {}), "unknown kind"),
        (body("hashedrekord", "0.0.1", {}), "malformed"),
        (body("dsse", "0.0.1", {"envelopeHash": HASH, "signatures": []}), "more or less than one signature"),
        (
            body("dsse", "0.0.1", {"envelopeHash": HASH, "signatures": [{"signature": "x", "verifier": KEY}] * 2}),
            "more or less than one signature",
        ),
        (body("intoto", "0.0.2", {"content": {"hash": HASH}}), "more or less than one signature"),
        (
            body("intoto", "0.0.1", {"content": {"hash": {"algorithm": "sha512", "value": "x"}}, "publicKey": KEY}),
            "hash of another kind",
        ),
        (LogEntry("!!!", 0, 0, ""), "not in base64"),
        (LogEntry(base64.b64encode(b"[" * 100_000).decode(), 0, 0, ""), "malformed"),
        (LogEntry(base64.b64encode(b"\xff\xfe").decode(), 0, 0, ""), "malformed"),
    ],
)
def test_an_entry_that_says_nothing_useful_is_refused(entry: LogEntry, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        entries.claim_of(entry)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_garbage_is_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(Refused):
        entries.claim_of(LogEntry(base64.b64encode(data).decode(), 0, 0, ""))
