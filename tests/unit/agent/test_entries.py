from __future__ import annotations

import pytest

from agent.entries import Entry, without_duplicate_hints
from generated.spire.api.types import entry_pb2, selector_pb2, spiffeid_pb2
from identity.selectors import Selector
from operations.errors import InvalidArgument


def message() -> entry_pb2.Entry:
    return entry_pb2.Entry(
        id="e",
        spiffe_id=spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/w"),
        selectors=[selector_pb2.Selector(type="unix", value="uid:1")],
        federates_with=["other.org", "spiffe://third.org"],
        revision_number=3,
        created_at=4,
        hint="h",
        additional_attributes=entry_pb2.Entry.AdditionalAttributes(
            disable_x509_svid_prefetch=True, jwt_svid_include_jti=True
        ),
    )


def test_reads_an_entry() -> None:
    entry = Entry.from_proto(message())
    assert entry == Entry(
        id="e",
        spiffe_id="spiffe://example.org/w",
        selectors=frozenset((Selector("unix", "uid:1"),)),
        federates_with=("other.org", "third.org"),
        revision=3,
        created_at=4,
        hint="h",
        prefetch=False,
        include_jti=True,
    )


def _without_id(entry: entry_pb2.Entry) -> None:
    entry.id = ""


def _without_selectors(entry: entry_pb2.Entry) -> None:
    del entry.selectors[:]


def _without_type(entry: entry_pb2.Entry) -> None:
    entry.selectors[0].type = ""


def _with_colon(entry: entry_pb2.Entry) -> None:
    entry.selectors[0].type = "a:b"


def _without_value(entry: entry_pb2.Entry) -> None:
    entry.selectors[0].value = ""


def _without_spiffe_id(entry: entry_pb2.Entry) -> None:
    entry.ClearField("spiffe_id")


@pytest.mark.parametrize(
    "spoil",
    [_without_id, _without_selectors, _without_type, _with_colon, _without_value, _without_spiffe_id],
)
def test_refuses_what_no_server_should_send(spoil: object) -> None:
    spoiled = message()
    assert callable(spoil)
    spoil(spoiled)
    with pytest.raises(InvalidArgument):
        Entry.from_proto(spoiled)


def entry(entry_id: str, hint: str, created_at: int) -> Entry:
    return Entry(entry_id, "spiffe://example.org/w", frozenset(), hint=hint, created_at=created_at)


def test_the_oldest_of_equal_hints_stays() -> None:
    entries = [entry("a", "x", 2), entry("b", "x", 1), entry("c", "", 1), entry("d", "", 1), entry("e", "y", 5)]
    assert [each.id for each in without_duplicate_hints(entries)] == ["b", "c", "d", "e"]


def test_the_smaller_id_decides_between_equally_old_hints() -> None:
    assert [each.id for each in without_duplicate_hints([entry("b", "x", 1), entry("a", "x", 1)])] == ["a"]
