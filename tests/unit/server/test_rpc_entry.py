"""spire.api.server.entry.v1.Entry through a running server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from google.protobuf import wrappers_pb2

from generated.spire.api.server.entry.v1 import entry_pb2 as api
from generated.spire.api.types import entry_pb2, federateswith_pb2, selector_pb2
from server.rpc.authorized_entries import PAGE_SIZE
from tests.simulators.house import ENTRY, AgentClient, House, new_entry, refused, running, spiffe_id
from transport.status import Code, RpcError

PARENT = spiffe_id("/parent")
MATCH = selector_pb2.SelectorMatch
FEDERATES_WITH = federateswith_pb2.FederatesWithMatch


async def create(house: House, entry: entry_pb2.Entry) -> api.BatchCreateEntryResponse.Result:
    request = api.BatchCreateEntryRequest(entries=[entry])
    [result] = (await house.local.unary(ENTRY + "BatchCreateEntry", request, api.BatchCreateEntryResponse)).results
    return result


async def update(house: House, request: api.BatchUpdateEntryRequest) -> api.BatchUpdateEntryResponse.Result:
    [result] = (await house.local.unary(ENTRY + "BatchUpdateEntry", request, api.BatchUpdateEntryResponse)).results
    return result


async def listed(house: House, filter: api.ListEntriesRequest.Filter | None = None, size: int = 2) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        request = api.ListEntriesRequest(filter=filter, page_size=size, page_token=token)
        page = await house.local.unary(ENTRY + "ListEntries", request, api.ListEntriesResponse)
        assert not size or len(page.entries) <= size
        found += [each.spiffe_id.path for each in page.entries]
        token = page.next_page_token
        if not token:
            return found


async def test_an_entry_comes_back_as_it_was_made(house: House) -> None:
    wanted = new_entry("/web", PARENT, "unix:uid:1", "unix:gid:2")
    wanted.x509_svid_ttl = 60
    wanted.jwt_svid_ttl = 30
    wanted.dns_names[:] = ["web.example.org", "*.web.example.org"]
    wanted.hint = "internal"
    wanted.admin = wanted.downstream = wanted.store_svid = True
    wanted.expires_at = 4_000_000_000
    wanted.additional_attributes.jwt_svid_include_jti = True
    [made] = await house.create(wanted)
    assert made.id
    assert made.created_at
    wanted.id, wanted.created_at = made.id, made.created_at
    assert made == wanted
    assert await house.local.unary(ENTRY + "GetEntry", api.GetEntryRequest(id=made.id), entry_pb2.Entry) == wanted

    masked = api.GetEntryRequest(id=made.id, output_mask=entry_pb2.EntryMask(hint=True))
    found = await house.local.unary(ENTRY + "GetEntry", masked, entry_pb2.Entry)
    assert found == entry_pb2.Entry(id=made.id, hint="internal")


async def test_a_similar_entry_is_returned(house: House) -> None:
    [first] = await house.create(new_entry("/web", PARENT, "unix:uid:1"))
    second = await create(house, new_entry("/web", PARENT, "unix:uid:1"))
    assert (second.status.code, second.status.message) == (Code.ALREADY_EXISTS, "similar entry already exists")
    assert second.entry == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parent_id": None}, "invalid parent ID: request must specify SPIFFE ID"),
        ({"spiffe_id": None}, "invalid spiffe ID: request must specify SPIFFE ID"),
        ({"spiffe_id": spiffe_id("")}, 'invalid spiffe ID: "spiffe://example.org" is not a workload in trust domain'),
        ({"spiffe_id": spiffe_id("/spire/x")}, 'invalid spiffe ID: "spiffe://example.org/spire/x" is not a workload'),
        ({"spiffe_id": spiffe_id("web")}, "invalid spiffe ID: path must have a leading slash"),
        ({"selectors": []}, "selector list is empty"),
        ({"selectors": [selector_pb2.Selector(type="a:b", value="c")]}, "selector type contains ':'"),
        ({"selectors": [selector_pb2.Selector(type="a")]}, "missing selector value"),
        ({"dns_names": ["a..b"]}, "invalid DNS name: "),
        ({"federates_with": ["A"]}, "invalid federated trust domain: "),
        ({"hint": "x" * 1025}, "hint is too long, max length is 1024 characters"),
    ],
)
async def test_entries_that_are_refused(house: House, changes: dict[str, object], message: str) -> None:
    entry = new_entry("/web", PARENT)
    for field, value in changes.items():
        entry.ClearField(field)  # type: ignore[arg-type] # the table's fields are those of Entry
        if value is not None:
            entry.MergeFrom(entry_pb2.Entry(**{field: value}))  # type: ignore[arg-type]
    result = await create(house, entry)
    assert result.status.code == Code.INVALID_ARGUMENT
    assert result.status.message.startswith(f"failed to convert entry: {message}")
    assert not result.HasField("entry")
    assert await listed(house) == []


async def test_an_update_changes_what_its_mask_names(house: House) -> None:
    [made] = await house.create(new_entry("/web", PARENT, "unix:uid:1"))
    change = entry_pb2.Entry(id=made.id, hint="new", admin=True)
    request = api.BatchUpdateEntryRequest(entries=[change], input_mask=entry_pb2.EntryMask(hint=True))
    result = await update(house, request)
    made.hint, made.revision_number = "new", 1
    assert result.status.code == Code.OK
    assert result.entry == made

    unmasked = await update(house, api.BatchUpdateEntryRequest(entries=[change]))
    assert unmasked.status.message == "failed to convert entry: invalid parent ID: request must specify SPIFFE ID"
    change.id = "absent"
    request = api.BatchUpdateEntryRequest(entries=[change], input_mask=request.input_mask)
    missing = await update(house, request)
    assert missing.status.code == Code.NOT_FOUND
    assert missing.status.message == "failed to update entry"


async def test_a_batch_of_deletions_answers_for_each(house: House) -> None:
    [made] = await house.create(new_entry("/web", PARENT))
    request = api.BatchDeleteEntryRequest(ids=[made.id, made.id, ""])
    response = await house.local.unary(ENTRY + "BatchDeleteEntry", request, api.BatchDeleteEntryResponse)
    assert [(each.id, each.status.code, each.status.message) for each in response.results] == [
        (made.id, Code.OK, "OK"),
        (made.id, Code.NOT_FOUND, "entry not found"),
        ("", Code.INVALID_ARGUMENT, "missing entry ID"),
    ]
    error = await refused(house.local, ENTRY + "GetEntry", api.GetEntryRequest(id=made.id))
    assert (error.code, error.message) == (Code.NOT_FOUND, "entry not found")
    error = await refused(house.local, ENTRY + "GetEntry", api.GetEntryRequest())
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "missing ID")


async def test_entries_are_listed_and_counted_by_filter(house: House) -> None:
    other = new_entry("/other", spiffe_id("/elsewhere"), "unix:uid:1", "unix:gid:1")
    other.hint = "h"
    other.downstream = True
    await house.create(*(new_entry(f"/web{n}", PARENT, f"unix:uid:{n}") for n in range(3)), other)
    assert await listed(house) == ["/web0", "/web1", "/web2", "/other"]
    assert await listed(house, size=0) == ["/web0", "/web1", "/web2", "/other"]

    filter = api.ListEntriesRequest.Filter
    uid_1 = selector_pb2.Selector(type="unix", value="uid:1")
    gid_1 = selector_pb2.Selector(type="unix", value="gid:1")
    assert await listed(house, filter(by_parent_id=PARENT)) == ["/web0", "/web1", "/web2"]
    assert await listed(house, filter(by_spiffe_id=spiffe_id("/web1"))) == ["/web1"]
    assert await listed(house, filter(by_hint=wrappers_pb2.StringValue(value="h"))) == ["/other"]
    assert len(await listed(house, filter(by_downstream=wrappers_pb2.BoolValue(value=False)))) == 4
    assert await listed(house, filter(by_downstream=wrappers_pb2.BoolValue(value=True))) == ["/other"]
    for match, paths in (
        (MATCH.MATCH_EXACT, ["/web1"]),
        (MATCH.MATCH_SUBSET, ["/web1"]),
        (MATCH.MATCH_SUPERSET, ["/web1", "/other"]),
        (MATCH.MATCH_ANY, ["/web1", "/other"]),
    ):
        assert await listed(house, filter(by_selectors=MATCH(selectors=[uid_1], match=match))) == paths
    both = MATCH(selectors=[uid_1, gid_1], match=MATCH.MATCH_SUBSET)
    assert await listed(house, filter(by_selectors=both)) == ["/web1", "/other"]

    count = api.CountEntriesRequest()
    count.filter.by_parent_id.CopyFrom(PARENT)
    assert (await house.local.unary(ENTRY + "CountEntries", count, api.CountEntriesResponse)).count == 3


async def test_a_page_token_without_a_page_size_counts_for_nothing(house: House) -> None:
    await house.create(*(new_entry(f"/web{n}", PARENT) for n in range(3)))
    request = api.ListEntriesRequest(page_token="none of ours")
    response = await house.local.unary(ENTRY + "ListEntries", request, api.ListEntriesResponse)
    assert (len(response.entries), response.next_page_token) == (3, "")
    request.page_size = 1
    error = await refused(house.local, ENTRY + "ListEntries", request)
    assert (error.code, error.message) == (
        Code.INVALID_ARGUMENT,
        "failed to list entries: could not parse token 'none of ours'",
    )


async def test_filters_that_are_refused(house: House) -> None:
    filter = api.ListEntriesRequest.Filter
    for given, message in (
        (filter(by_parent_id=spiffe_id("")), "malformed parent ID filter: "),
        (filter(by_spiffe_id=spiffe_id("/spire/x")), "malformed SPIFFE ID filter: "),
        (filter(by_selectors=MATCH()), "malformed selectors filter: empty selector set"),
        (
            filter(by_federates_with=federateswith_pb2.FederatesWithMatch()),
            "malformed federates with filter: empty trust domain set",
        ),
    ):
        error = await refused(house.local, ENTRY + "ListEntries", api.ListEntriesRequest(filter=given))
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message.startswith(message)


async def test_an_agent_gets_its_entries_and_no_others(house: House) -> None:
    agent, other = await house.attest(), await house.attest()
    [node, web] = await house.create(new_entry("/node", agent.id), new_entry("/web", spiffe_id("/node")))
    await house.create(new_entry("/alien", other.id))
    assert await agent.entries() == [node, web]
    assert [each.spiffe_id.path for each in await other.entries()] == ["/alien"]

    masked = api.GetAuthorizedEntriesRequest(output_mask=entry_pb2.EntryMask(spiffe_id=True))
    for _ in range(2):
        response = await agent.channel.unary(ENTRY + "GetAuthorizedEntries", masked, api.GetAuthorizedEntriesResponse)
        assert list(response.entries) == [entry_pb2.Entry(id=each.id, spiffe_id=each.spiffe_id) for each in (node, web)]
        request = api.BatchUpdateEntryRequest(entries=[web], input_mask=entry_pb2.EntryMask(spiffe_id=True))
        web.spiffe_id.path = request.entries[0].spiffe_id.path = "/renamed"
        assert (await update(house, request)).status.code == Code.OK


async def sync(agent: AgentClient, *requests: api.SyncAuthorizedEntriesRequest) -> list[list[entry_pb2.Entry]]:
    """What each request brings; the first brings revisions where there are too many entries."""
    answers: list[list[entry_pb2.Entry]] = []
    async with agent.channel.bidi(ENTRY + "SyncAuthorizedEntries", api.SyncAuthorizedEntriesResponse) as stream:
        for request in requests:
            await stream.send(request)
            found: list[entry_pb2.Entry] = []
            more = True
            while more:
                response = await stream.recv()
                assert response is not None
                found += response.entries
                found += [
                    entry_pb2.Entry(id=each.id, revision_number=each.revision_number, created_at=each.created_at)
                    for each in response.entry_revisions
                ]
                more = response.more
            answers.append(found)
        await stream.close_send()
        assert await stream.recv() is None
    return answers


async def test_few_entries_are_synchronised_at_once(house: House) -> None:
    agent = await house.attest()
    made = await house.create(new_entry("/a", agent.id), new_entry("/b", agent.id))
    [entries] = await sync(agent, api.SyncAuthorizedEntriesRequest())
    assert entries == made


async def test_many_entries_are_synchronised_by_revision(house: House) -> None:
    agent = await house.attest()
    made = await house.create(*(new_entry(f"/w{n}", agent.id) for n in range(2 * PAGE_SIZE + 1)))
    ids = [each.id for each in made]
    revisions, some, every, none = await sync(
        agent,
        api.SyncAuthorizedEntriesRequest(),
        api.SyncAuthorizedEntriesRequest(ids=[ids[7], "absent", ids[3]]),
        api.SyncAuthorizedEntriesRequest(ids=ids),
        api.SyncAuthorizedEntriesRequest(ids=["absent"]),
    )
    assert {each.id for each in revisions} == set(ids)
    assert not any(each.HasField("spiffe_id") for each in revisions)
    assert sorted(some, key=lambda each: each.id) == sorted((made[3], made[7]), key=lambda each: each.id)
    assert every == sorted(made, key=lambda each: each.id)
    assert none == []


async def test_long_entries_are_synchronised_in_messages_that_agents_take(house: House) -> None:
    """The client has SPIRE's limit of 4 MiB, as an agent has."""
    agent = await house.attest()
    made = [
        *await house.create(*(new_entry(f"/a{n}", agent.id, "unix:path:" + "x" * 1_000_000) for n in range(3))),
        *await house.create(*(new_entry(f"/b{n}", agent.id, "unix:path:" + "x" * 1_000_000) for n in range(3))),
    ]
    ids = [each.id for each in made]
    revisions, every = await sync(agent, api.SyncAuthorizedEntriesRequest(), api.SyncAuthorizedEntriesRequest(ids=ids))
    assert {each.id for each in revisions} == set(ids)
    assert not any(each.HasField("spiffe_id") for each in revisions)
    assert every == sorted(made, key=lambda each: each.id)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (api.SyncAuthorizedEntriesRequest(ids=["x"]), "specifying IDs on initial request is not supported"),
        (
            api.SyncAuthorizedEntriesRequest(output_mask=entry_pb2.EntryMask(hint=True)),
            "revision number cannot be masked",
        ),
    ],
)
async def test_a_first_request_that_is_refused(
    house: House, request_: api.SyncAuthorizedEntriesRequest, message: str
) -> None:
    agent = await house.attest()
    with pytest.raises(RpcError) as error:
        await sync(agent, request_)
    assert (error.value.code, error.value.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize("token", ["abc", "-1", "9" * 30, "9" * 5000, "१", ""])
async def test_a_page_token_that_no_page_gave(house: House, token: str) -> None:
    request = api.ListEntriesRequest(page_size=1, page_token=token or " ")
    error = await refused(house.local, ENTRY + "ListEntries", request)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith("failed to list entries: could not parse token ")
    assert len(error.message) < 200


async def test_a_match_behaviour_of_a_later_version(tmp_path: Path) -> None:
    selectors = [selector_pb2.Selector(type="a", value="b")]
    filter = api.ListEntriesRequest.Filter(by_selectors=MATCH(selectors=selectors))
    filter.by_selectors.match = 9  # type: ignore[assignment]  # open enums carry any number
    async with running(tmp_path, "audit_log_enabled = true") as house:
        error = await refused(house.local, ENTRY + "ListEntries", api.ListEntriesRequest(filter=filter))
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == "malformed selectors filter: unhandled match behavior 9"


async def test_an_id_that_is_taken(house: House) -> None:
    first, second = new_entry("/a", PARENT), new_entry("/b", PARENT)
    first.id = second.id = "mine"
    await house.create(first)
    result = await create(house, second)
    assert result.status.code == Code.ALREADY_EXISTS


async def test_federation_with_more_trust_domains_than_a_statement_takes(house: House) -> None:
    entry = new_entry("/a", PARENT)
    entry.federates_with.extend(f"{number}.org" for number in range(40_000))
    result = await create(house, entry)
    assert result.status.code == Code.INVALID_ARGUMENT
    assert result.status.message == 'failed to create entry: unable to find federated bundle "spiffe://0.org"'


async def test_a_big_batch_leaves_others_their_turn(house: House) -> None:
    """Each is refused before the datastore is asked, which is where a batch would not wait by itself."""
    batch = api.BatchCreateEntryRequest(entries=[entry_pb2.Entry()] * 10_000)
    creating = asyncio.create_task(
        house.local.unary(ENTRY + "BatchCreateEntry", batch, api.BatchCreateEntryResponse, timeout=120)
    )
    answered = 0
    while not creating.done():
        await house.local.unary(ENTRY + "CountEntries", api.CountEntriesRequest(), api.CountEntriesResponse)
        answered += 1
    assert {result.status.code for result in (await creating).results} == {Code.INVALID_ARGUMENT}
    assert answered > 5


async def test_an_entry_with_many_selectors_and_names_costs_in_proportion(house: House) -> None:
    many = [f"unix:uid:{number}" for number in range(20_000)]
    [made] = await house.create(new_entry("/a", PARENT, *many))
    assert len(made.selectors) == len(many)
    assert await listed(house, size=1) == ["/a"]
