"""The datastore contract for what node attestors remember, and for eviction, held against all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from operations.errors import Refused
from server.datastore.records import AttestedNode
from server.datastore.store import DataStore
from tests.contract.datastore_backends import BACKENDS, DURABLE, Backend, backend_of, selected

ID = "spiffe://example.org/spire/agent/tpm/a"
NODE = AttestedNode(
    spiffe_id=ID, attestation_type="tpm", serial_number="1", expires_at=1000, selectors=selected("tpm:ek:a")
)
BYTES = bytes(range(256)) * 256


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DataStore]:
    opened = await backend_of(request, tmp_path).open()
    yield opened
    await opened.close()


async def test_a_record_comes_and_goes_with_its_node(store: DataStore) -> None:
    assert await store.get_node_record(ID) is None
    assert not await store.put_node_record(ID, b"of nobody")
    assert await store.get_node_record(ID) is None
    await store.admit_node(NODE, BYTES)
    assert await store.get_node_record(ID) == BYTES
    await store.admit_node(NODE)
    assert await store.get_node_record(ID) == BYTES, "an attestor that says nothing leaves it"
    await store.admit_node(NODE, b"2")
    assert await store.get_node_record(ID) == b"2"
    assert await store.put_node_record(ID, b"3")
    assert await store.get_node_record(ID) == b"3"
    await store.delete_node(ID)
    assert await store.get_node_record(ID) is None


async def test_a_pruned_node_takes_its_record_along(store: DataStore) -> None:
    await store.admit_node(replace(NODE, can_reattest=True), b"1")
    await store.prune_nodes(2000)
    assert await store.get_node_record(ID) is None


async def test_a_banned_node_keeps_the_record_it_had(store: DataStore) -> None:
    await store.admit_node(NODE, b"1")
    await store.update_node(replace(NODE, serial_number=""), ["serial_number"])
    with pytest.raises(Refused):
        await store.admit_node(NODE, b"2")
    assert await store.get_node_record(ID) == b"1"
    assert not await store.evict_node(ID)
    banned = await store.get_node(ID)
    assert banned is not None
    assert banned.banned, "an eviction would let it back in"


async def test_an_evicted_node_has_no_certificate_until_it_attests_again(store: DataStore) -> None:
    assert not await store.evict_node(ID)
    await store.admit_node(replace(NODE, new_serial_number="2", new_expires_at=2000), b"1")
    assert await store.evict_node(ID)
    evicted = await store.get_node(ID)
    assert evicted == replace(NODE, serial_number="0")
    assert await store.activate_node(ID, "2") == evicted, "neither by the SVID that it has not used yet"
    assert await store.get_node_record(ID) == b"1"
    await store.admit_node(NODE)
    assert await store.get_node(ID) == NODE


@pytest.fixture(params=DURABLE)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return backend_of(request, tmp_path)


async def test_records_outlive_the_server(durable: Backend) -> None:
    first = await durable.open()
    await first.admit_node(NODE, BYTES)
    await first.close()
    again = await durable.open()
    assert await again.get_node_record(ID) == BYTES
    await again.close()
