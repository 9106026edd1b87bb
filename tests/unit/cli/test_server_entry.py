"""`spire-server entry …`: what is asked of the server, and the whole output."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.types import entry_pb2 as types
from generated.spire.api.types import spiffeid_pb2, status_pb2
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

WORKLOAD = ("-spiffeID", "spiffe://example.org/w", "-parentID", "spiffe://example.org/node")
SELECTED = (*WORKLOAD, "-selector", "unix:uid:1000")


def entry(**fields: Any) -> types.Entry:
    made = types.Entry(
        id="id-1",
        spiffe_id=spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/w"),
        parent_id=spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/node"),
        **fields,
    )
    made.selectors.add(type="unix", value="uid:1000")
    return made


FULL = entry(
    revision_number=3,
    downstream=True,
    x509_svid_ttl=60,
    jwt_svid_ttl=30,
    expires_at=1900000000,
    federates_with=["other.org"],
    dns_names=["a.test", "b.test"],
    admin=True,
    store_svid=True,
    hint="internal",
    additional_attributes=types.Entry.AdditionalAttributes(disable_x509_svid_prefetch=True, jwt_svid_include_jti=True),
)
FULL_TEXT = """\
Entry ID                : id-1
SPIFFE ID               : spiffe://example.org/w
Parent ID               : spiffe://example.org/node
Revision                : 3
Downstream              : true
X509-SVID TTL           : 60
JWT-SVID TTL            : 30
Expiration time         : 2030-03-17 17:46:40 +0000 UTC
Selector                : unix:uid:1000
FederatesWith           : other.org
DNS name                : a.test
DNS name                : b.test
Admin                   : true
StoreSvid               : true
Hint                    : internal
DisableX509SvidPrefetch : true
JwtSvidIncludeJti       : true

"""
PLAIN_TEXT = """\
Entry ID                : id-1
SPIFFE ID               : spiffe://example.org/w
Parent ID               : spiffe://example.org/node
Revision                : 0
X509-SVID TTL           : default
JWT-SVID TTL            : default
Selector                : unix:uid:1000

"""
REFUSED = status_pb2.Status(code=6, message='similar "entry" already exists')


def created(*results: types.Entry | status_pb2.Status) -> entry_pb2.BatchCreateEntryResponse:
    response = entry_pb2.BatchCreateEntryResponse()
    for result in results:
        if isinstance(result, types.Entry):
            response.results.add(entry=result, status=status_pb2.Status(message="OK"))
        else:
            response.results.add(status=result)
    return response


async def test_create_prints_the_entry(spire_server: Run, canned: Canned) -> None:
    canned.answers["BatchCreateEntry"] = created(FULL)
    flags = (
        "-entryID", "id-1", "-x509SVIDTTL", "60", "-jwtSVIDTTL", "30", "-entryExpiry", "1900000000",
        "-federatesWith", "other.org", "-dns", "a.test", "-dns", "b.test", "-admin", "-storeSVID", "-downstream",
        "-hint", "internal", "-disableX509SVIDPrefetch", "-jwtSVIDIncludeJTI",
    )  # fmt: skip
    result = await spire_server("entry create", *SELECTED, *flags)
    assert (result.out, result.err, result.status) == (FULL_TEXT, "", 0)
    asked = types.Entry()
    asked.CopyFrom(FULL)
    asked.revision_number = 0
    assert canned.requests == [entry_pb2.BatchCreateEntryRequest(entries=[asked])]


async def test_a_node_entry_has_the_server_as_its_parent(spire_server: Run, canned: Canned) -> None:
    canned.answers["BatchCreateEntry"] = created(entry())
    await spire_server("entry create", "-node", "-spiffeID", "spiffe://example.org/group", "-selector", "a:b")
    (request,) = canned.requests
    assert isinstance(request, entry_pb2.BatchCreateEntryRequest)
    assert request.entries[0].parent_id == spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/spire/server")


async def test_create_tells_which_entry_failed(spire_server: Run, canned: Canned) -> None:
    canned.answers["BatchCreateEntry"] = created(REFUSED)
    result = await spire_server("entry create", *SELECTED)
    assert result.out == ""
    assert result.err == (
        'Failed to create the following entry (code: AlreadyExists, msg: "similar \\"entry\\" already exists"):\n'
        + PLAIN_TEXT.replace("id-1", "(none)")
        + "Error: failed to create one or more entries\n"
    )
    assert result.status == 1


async def test_create_as_json_ends_well_and_says_what_failed(spire_server: Run, canned: Canned) -> None:
    canned.answers["BatchCreateEntry"] = created(REFUSED)
    result = await spire_server("entry create", *SELECTED, "-output", "json")
    assert result.out == (
        '{"results":[{"entry":{"admin":false,"created_at":"0","dns_names":[],"downstream":false,"expires_at":"0",'
        '"federates_with":[],"hint":"","id":"","jwt_svid_ttl":0,"parent_id":{"path":"/node","trust_domain":'
        '"example.org"},"revision_number":"0","selectors":[{"type":"unix","value":"uid:1000"}],"spiffe_id":{"path":'
        '"/w","trust_domain":"example.org"},"store_svid":false,"x509_svid_ttl":0},"status":{"code":6,"message":'
        '"similar \\"entry\\" already exists"}}]}\n'
    )
    assert (result.err, result.status) == ("", 0)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (WORKLOAD, "at least one selector is required"),
        (
            ("-selector", "a:b", "-spiffeID", "x"),
            "a parent ID is required if the node flag is not set",
        ),
        (("-selector", "a:b", "-parentID", "x"), "a SPIFFE ID is required"),
        (("-selector", "a:b", "-node", "-federatesWith", "x"), "node entries can not federate"),
        ((*SELECTED, "-x509SVIDTTL", "-1"), "a positive x509-SVID TTL is required"),
        ((*SELECTED, "-jwtSVIDTTL", "-1"), "a positive JWT-SVID TTL is required"),
        (
            (*SELECTED, "-x509SVIDTTL", "99999999999"),
            "invalid value for X509 SVID TTL: 99999999999 is out of range, use at most 2147483647",
        ),
        ((*WORKLOAD, "-selector", "unix"), 'selector "unix" must be formatted as type:value'),
        (("-selector", "a:b", "-spiffeID", "example.org", "-parentID", "x"), "scheme is missing or invalid"),
        ((*SELECTED, "-entryExpiry", "9999999999999999"), None),
    ],
)
async def test_create_refuses_before_it_asks(
    spire_server: Run, canned: Canned, args: tuple[str, ...], reason: str | None
) -> None:
    canned.answers["BatchCreateEntry"] = created(entry(expires_at=9999999999999999))
    result = await spire_server("entry create", *args)
    if reason is None:
        assert "Expiration time         : 9999999999999999 s after 1970\n" in result.out
        return
    assert (result.out, result.err, result.status) == ("", f"Error: {reason}\n", 1)
    assert not canned.requests


DATA = {
    "entries": [
        {
            "selectors": [{"type": "unix", "value": "uid:1000"}],
            "spiffe_id": "spiffe://example.org/w",
            "parent_id": "spiffe://example.org/node",
            "entry_id": "id-1",
            "revision_number": 3,
            "downstream": True,
            "x509_svid_ttl": 60,
            "jwt_svid_ttl": 30,
            "entryExpiry": 1900000000,
            "federates_with": ["spiffe://other.org"],
            "dns_names": ["a.test", "b.test"],
            "admin": True,
            "store_svid": True,
            "hint": "internal",
            "additional_attributes": {"disable_x509_svid_prefetch": True, "jwt_svid_include_jti": True},
        }
    ]
}


@pytest.mark.parametrize("command", ["create", "update"])
async def test_data_comes_from_a_file(spire_server: Run, canned: Canned, tmp_path: Path, command: str) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps(DATA))
    canned.answers["BatchCreateEntry"] = created(FULL)
    canned.answers["BatchUpdateEntry"] = entry_pb2.BatchUpdateEntryResponse.FromString(
        created(FULL).SerializeToString()
    )
    result = await spire_server(f"entry {command}", "-data", str(file))
    assert (result.out, result.err, result.status) == (FULL_TEXT, "", 0)
    (request,) = canned.requests
    assert isinstance(request, entry_pb2.BatchCreateEntryRequest | entry_pb2.BatchUpdateEntryRequest)
    assert list(request.entries) == [FULL]


async def test_names_in_a_file_may_have_any_case_and_no_value(
    spire_server: Run, canned: Canned, tmp_path: Path
) -> None:
    file = tmp_path / "data.json"
    named = {name.upper(): value for name, value in DATA["entries"][0].items()}
    file.write_text(json.dumps({"Entries": [named | {"federates_with": None}]}))
    canned.answers["BatchCreateEntry"] = created(FULL)
    assert (await spire_server("entry create", "-data", str(file))).err == ""
    (request,) = canned.requests
    assert isinstance(request, entry_pb2.BatchCreateEntryRequest)
    assert request.entries[0].spiffe_id == FULL.spiffe_id
    assert request.entries[0].expires_at == FULL.expires_at


async def test_unknown_names_in_a_file_bring_a_warning(spire_server: Run, canned: Canned, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps({"entries": [DATA["entries"][0] | {"dns_name": "typo"}]}))
    canned.answers["BatchCreateEntry"] = created(FULL)
    result = await spire_server("entry create", "-data", str(file))
    assert result.err == f"Warning: {file}: dns_name is not known and was ignored\n"
    assert result.status == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no registration data: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "no registration data: Expected `object`, got `array`"),
        (
            '{"entries": [{"x509_svid_ttl": "a"}]}',
            "no registration data: Expected `int`, got `str` - at `$.entries[0].x509_svid_ttl`",
        ),
        ('{"entries": [{"spiffe_id": "a"}]}', "invalid SPIFFE ID: scheme is missing or invalid"),
        (
            '{"entries": [{"spiffe_id": "spiffe://a/b", "parent_id": "a"}]}',
            "invalid parent ID: scheme is missing or invalid",
        ),
        (
            '{"entries": [{"spiffe_id": "spiffe://a/b", "parent_id": "spiffe://a", "federates_with": [""]}]}',
            "invalid federated trust domain: trust domain is missing",
        ),
        (
            '{"entries": [{"spiffe_id": "spiffe://a/b", "parent_id": "spiffe://a", "x509_svid_ttl": 99999999999}]}',
            "entry spiffe://a/b: Value out of range: 99999999999",
        ),
    ],
)
async def test_a_bad_file_is_refused(spire_server: Run, canned: Canned, tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "data.json"
    file.write_text(text)
    result = await spire_server("entry create", "-data", str(file))
    place = f"{file}: " if reason.startswith("no registration") else ""
    assert (result.out, result.err, result.status) == ("", f"Error: {place}{reason}\n", 1)
    assert not canned.requests


@pytest.mark.parametrize(("command", "flag"), [("entry create", "-data"), ("entry delete", "-file")])
async def test_bad_standard_input_is_refused(
    spire_server: Run, monkeypatch: pytest.MonkeyPatch, command: str, flag: str
) -> None:
    for text in ("", "[" * 200_000):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        result = await spire_server(command, flag, "-")
        assert (result.out, result.status) == ("", 1)
        assert result.err.startswith("Error: standard input: no ")
        assert result.err.count("\n") == 1


async def test_a_missing_file_is_refused(spire_server: Run) -> None:
    result = await spire_server("entry create", "-data", "/nonexistent")
    assert (result.err, result.status) == ("Error: open /nonexistent: no such file or directory\n", 1)


async def test_update_keeps_attributes_that_were_not_given(spire_server: Run, canned: Canned) -> None:
    canned.answers["GetEntry"] = FULL
    canned.answers["BatchUpdateEntry"] = entry_pb2.BatchUpdateEntryResponse.FromString(
        created(FULL).SerializeToString()
    )
    await spire_server("entry update", "-entryID", "id-1", *SELECTED, "-disableX509SVIDPrefetch=false")
    got, request = canned.requests
    assert got == entry_pb2.GetEntryRequest(id="id-1")
    assert isinstance(request, entry_pb2.BatchUpdateEntryRequest)
    attributes = types.Entry.AdditionalAttributes(jwt_svid_include_jti=True)
    assert request.entries[0].additional_attributes == attributes


async def test_update_tells_what_failed(spire_server: Run, canned: Canned) -> None:
    response = entry_pb2.BatchUpdateEntryResponse()
    response.results.add(status=status_pb2.Status(code=5, message="failed to update entry"))
    canned.answers["BatchUpdateEntry"] = response
    result = await spire_server("entry update", "-entryID", "id-1", *SELECTED)
    assert result.err == (
        'Failed to update the following entry (code: NotFound, msg: "failed to update entry"):\n'
        + PLAIN_TEXT
        + "Error: failed to update one or more entries\n"
    )
    assert result.status == 1


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (SELECTED, "entry ID is required"),
        (("-entryID", "a"), "at least one selector is required"),
        (("-entryID", "a", "-selector", "a:b"), "a parent ID is required"),
        (("-entryID", "a", "-selector", "a:b", "-parentID", "x"), "a SPIFFE ID is required"),
    ],
)
async def test_update_refuses_before_it_asks(spire_server: Run, args: tuple[str, ...], reason: str) -> None:
    result = await spire_server("entry update", *args)
    assert (result.out, result.err, result.status) == ("", f"Error: {reason}\n", 1)


def deleted(*codes: int) -> entry_pb2.BatchDeleteEntryResponse:
    response = entry_pb2.BatchDeleteEntryResponse()
    for number, code in enumerate(codes):
        response.results.add(id=f"id-{number}", status=status_pb2.Status(code=code, message="why" if code else "OK"))
    return response


FAILED = 'Failed to delete entry with ID id-{} (code: NotFound, msg: "why")\n'
SOME = "Error: failed to delete one or more entries\n"


@pytest.mark.parametrize(
    ("codes", "out", "err", "status"),
    [
        ((0,), "Deleted entry with ID: id-0\n\n\nDeleted 1 entries successfully", "", 0),
        ((5,), "\n\nFailed to delete 1 entries", FAILED.format(0) + SOME, 1),
        (
            (0, 5),
            "Deleted entry with ID: id-0\n\n\n\n\nDeleted 1 entries successfully, but failed to delete 1 entries",
            FAILED.format(1) + SOME,
            1,
        ),
    ],
)
async def test_delete(
    spire_server: Run, canned: Canned, codes: tuple[int, ...], out: str, err: str, status: int
) -> None:
    canned.answers["BatchDeleteEntry"] = deleted(*codes)
    result = await spire_server("entry delete", "-entryID", "id-0")
    assert (result.out, result.err, result.status) == (out, err, status)
    assert canned.requests == [entry_pb2.BatchDeleteEntryRequest(ids=["id-0"])]


async def test_delete_reads_ids_from_a_file(spire_server: Run, canned: Canned, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text('{"ids": ["id-0", "id-1"]}')
    canned.answers["BatchDeleteEntry"] = deleted(0, 0)
    result = await spire_server("entry delete", "-file", str(tmp_path / "ids.json"), "-output", "json")
    assert result.out == (
        '{"results":[{"id":"id-0","status":{"code":0,"message":"OK"}},'
        '{"id":"id-1","status":{"code":0,"message":"OK"}}]}\n'
    )
    assert canned.requests == [entry_pb2.BatchDeleteEntryRequest(ids=["id-0", "id-1"])]


async def test_delete_needs_an_id(spire_server: Run) -> None:
    assert (await spire_server("entry delete")).err == "Error: an entry ID is required\n"


async def test_show_asks_page_after_page_and_sorts(spire_server: Run, canned: Canned) -> None:
    second = entry(x509_svid_ttl=5)
    second.selectors.add(type="a", value="z")

    def page(request: Message) -> Message:
        assert isinstance(request, entry_pb2.ListEntriesRequest)
        assert request.page_size == 500
        if not request.page_token:
            return entry_pb2.ListEntriesResponse(entries=[second], next_page_token="more")
        assert request.page_token == "more"
        return entry_pb2.ListEntriesResponse(entries=[entry()])

    canned.answers["ListEntries"] = page
    result = await spire_server("entry show")
    sorted_second = PLAIN_TEXT.replace("X509-SVID TTL           : default", "X509-SVID TTL           : 5").replace(
        "Selector", "Selector                : a:z\nSelector"
    )
    assert (result.out, result.err, result.status) == (f"Found 2 entries\n{PLAIN_TEXT}{sorted_second}", "", 0)


async def test_show_passes_its_filter_on(spire_server: Run, canned: Canned) -> None:
    canned.answers["ListEntries"] = entry_pb2.ListEntriesResponse(entries=[entry()])
    result = await spire_server(
        "entry show", *SELECTED, "-matchSelectorsOn", "exact", "-federatesWith", "spiffe://a.test",
        "-matchFederatesWithOn", "any", "-hint", "h", "-downstream", "-output", "json",
    )  # fmt: skip
    assert result.status == 0
    assert result.out.endswith('"next_page_token":""}\n')
    (request,) = canned.requests
    assert isinstance(request, entry_pb2.ListEntriesRequest)
    wanted = entry_pb2.ListEntriesRequest.Filter()
    wanted.by_spiffe_id.CopyFrom(entry().spiffe_id)
    wanted.by_parent_id.CopyFrom(entry().parent_id)
    wanted.by_selectors.selectors.add(type="unix", value="uid:1000")
    wanted.by_selectors.match = wanted.by_selectors.MATCH_EXACT
    wanted.by_federates_with.trust_domains.append("spiffe://a.test")
    wanted.by_federates_with.match = wanted.by_federates_with.MATCH_ANY
    wanted.by_hint.value = "h"
    wanted.by_downstream.value = True
    assert request.filter == wanted


async def test_without_the_flag_entries_of_downstream_servers_do_not_count(spire_server: Run, canned: Canned) -> None:
    canned.answers["CountEntries"] = entry_pb2.CountEntriesResponse(count=1)
    result = await spire_server("entry count")
    assert (result.out, result.status) == ("1 registration entry\n", 0)
    wanted = entry_pb2.CountEntriesRequest()
    wanted.filter.by_downstream.value = False
    assert canned.requests == [wanted]


async def test_count(spire_server: Run, canned: Canned) -> None:
    canned.answers["CountEntries"] = entry_pb2.CountEntriesResponse(count=2)
    assert (await spire_server("entry count")).out == "2 registration entries\n"
    assert (await spire_server("entry count", "-output", "json")).out == '{"count":2}\n'


async def test_show_by_id(spire_server: Run, canned: Canned) -> None:
    canned.answers["GetEntry"] = FULL
    result = await spire_server("entry show", "-entryID", "id-1")
    assert result.out == f"Found 1 entry\n{FULL_TEXT}"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (
            ("-entryID", "a", "-selector", "a:b"),
            "the -entryID flag can't be combined with others",
        ),
        (
            ("-selector", "a:b", "-matchSelectorsOn", "x"),
            'match behavior "x" unknown',
        ),
        (
            ("-federatesWith", "a", "-matchFederatesWithOn", "x"),
            'match behavior "x" unknown',
        ),
        (("-selector", "a"), 'error parsing selectors: selector "a" must be formatted as type:value'),
        (("-spiffeID", "a"), 'error parsing SPIFFE ID "a": scheme is missing or invalid'),
        (("-parentID", "a"), 'error parsing parent ID "a": scheme is missing or invalid'),
        (("-entryID", "a"), "error fetching entry ID a: rpc error: code = NotFound desc = entry not found"),
        ((), "error fetching entries: rpc error: code = Internal desc = broken"),
    ],
)
async def test_show_fails_in_one_line(spire_server: Run, canned: Canned, args: tuple[str, ...], reason: str) -> None:
    canned.answers["GetEntry"] = RpcError(Code.NOT_FOUND, "entry not found")
    canned.answers["ListEntries"] = RpcError(Code.INTERNAL, "broken")
    result = await spire_server("entry show", *args)
    assert (result.out, result.err, result.status) == ("", f"Error: {reason}\n", 1)
