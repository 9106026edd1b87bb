"""What is kept for outages: encrypted, whose it is, and never believed when it is not what was stored last."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.entries import Entry
from agent.jwt_cache import JwtSvid, key
from agent.storage import Storage
from agent.store.content import Held, decode, encode
from agent.store.keeper import Keeper
from agent.store.sealed import Header, read_header, seal, unseal
from agent.store.store import NAME, SET_ASIDE, Store
from agent.workload_update import X509Svid
from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.selectors import Selector
from identity.spiffeid import SpiffeId, TrustDomain
from keystores.disk import DiskKeyManager
from keystores.memory import MemoryKeyManager
from operations.errors import Corrupt
from tests.simulators.in_process_agent import until

TD = TrustDomain("example.org")
AGENT = SpiffeId(TD, "/spire/agent/x509pop/a")
NOW = 1_700_000_000.0
PRIVATE = b"the private key of a workload"


def svid(expires_at: float, spiffe_id: str = "spiffe://example.org/w") -> X509Svid:
    return X509Svid(spiffe_id, (b"leaf", b"intermediate"), PRIVATE, expires_at, expires_at - 100)


def held(*, expires_at: float = NOW + 1000) -> Held:
    entry = Entry(
        "a",
        "spiffe://example.org/w",
        frozenset((Selector("unix", "uid:1"), Selector("unix", "gid:2"))),
        ("other.org",),
        revision=3,
        created_at=4,
        hint="h",
    )
    return Held(
        entries={"a": entry},
        x509_svids={"a": svid(expires_at)},
        jwt_svids={key("spiffe://example.org/w", ["x"]): JwtSvid("token", NOW, expires_at)},
        bundles={
            "example.org": Bundle(TD, (X509Authority(b"root", tainted=True),), (JwtAuthority("k", b"key", 5),), 6, 7),
            "other.org": Bundle(TrustDomain("other.org"), (X509Authority(b"other"),)),
        },
    )


@dataclass
class Place:
    folder: Path
    keys: DiskKeyManager
    now: float = NOW

    def store(self, trust_domain: TrustDomain = TD) -> Store:
        storage = Storage.open(str(self.folder))
        return Store(str(self.folder), trust_domain, self.keys, storage, lambda: self.now)

    @property
    def path(self) -> Path:
        return self.folder / NAME


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place]:
    keys = await DiskKeyManager.open(tmp_path / "keys.json")
    yield Place(tmp_path, keys)
    await keys.close()


def test_the_content_comes_back_as_it_was() -> None:
    assert decode(encode(held())) == held()


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", encode(held())[:-1]])
def test_content_that_cannot_be_understood(content: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(content)


def test_what_has_expired_is_left_out() -> None:
    entry = held().entries["a"]
    many = Held(
        entries={each: Entry(each, f"spiffe://example.org/{each}", entry.selectors) for each in "abcd"},
        x509_svids={"a": svid(NOW), "b": svid(NOW + 1), "c": svid(NOW - 1)},
        jwt_svids={
            key("spiffe://example.org/c", ["x"]): JwtSvid("good", NOW - 10, NOW + 1),
            key("spiffe://example.org/d", ["x"]): JwtSvid("bad", NOW - 10, NOW),
        },
        bundles={},
    )
    left = many.in_force(NOW)
    assert (set(left.entries), set(left.x509_svids)) == ({"b", "c"}, {"b"})
    assert [token.token for token in left.jwt_svids.values()] == ["good"]
    assert many.in_force(NOW + 100).is_empty


def test_the_authorities_that_were_stored_last_count() -> None:
    own = Bundle(TD, (X509Authority(b"root"), X509Authority(b"newer")))
    merged = held().bundle_with(own)
    assert merged.x509_authorities == (X509Authority(b"root", tainted=True), X509Authority(b"newer"))
    assert merged.jwt_authorities == held().bundles["example.org"].jwt_authorities
    assert Held({}, {}, {}, {}).bundle_with(own) == own


async def test_it_is_kept_for_the_owner_and_readable_by_nobody_else(place: Place) -> None:
    assert await place.store().load(AGENT) is None
    await place.store().write(AGENT, held())
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600
    assert await place.store().load(AGENT) == held()
    content = place.path.read_bytes()
    assert PRIVATE not in content
    assert b"token" not in content
    await place.store().write(AGENT, held())
    assert place.path.read_bytes() != content
    assert read_header(place.path.read_bytes()).generation == read_header(content).generation + 1


def other_agent(place: Place) -> Store:
    sealed = place.path.read_bytes()
    place.path.write_bytes(sealed.replace(b"x509pop/a", b"x509pop/b"))
    return place.store()


def other_trust_domain(place: Place) -> Store:
    return place.store(TrustDomain("other.org"))


def cut_short(place: Place) -> Store:
    place.path.write_bytes(place.path.read_bytes()[:-40])
    return place.store()


def one_bit(place: Place) -> Store:
    content = bytearray(place.path.read_bytes())
    content[-100] ^= 1
    place.path.write_bytes(content)
    return place.store()


def newer_in_name(place: Place) -> Store:
    """The line at the beginning is bound to what follows."""
    line, newline, rest = place.path.read_bytes().partition(b"\n")
    header = json.loads(line)
    header["generation"] += 1
    place.path.write_bytes(json.dumps(header).encode() + newline + rest)
    return place.store()


def garbage(place: Place) -> Store:
    place.path.write_bytes(os.urandom(5000))
    return place.store()


def empty(place: Place) -> Store:
    place.path.write_bytes(b"")
    return place.store()


def of_the_future(place: Place) -> Store:
    sealed = place.path.read_bytes()
    place.path.write_bytes(sealed.replace(b'"version":1', b'"version":2'))
    return place.store()


def rolled_back(place: Place) -> Store:
    Storage.open(str(place.folder)).store_generation(9)
    return place.store()


def another_key(place: Place) -> Store:
    (place.folder / "keys-sealing.key").write_bytes(bytes(32))
    return place.store()


@pytest.mark.parametrize(
    "spoil",
    [
        *(other_agent, other_trust_domain, cut_short, one_bit, newer_in_name, garbage, empty, of_the_future),
        *(rolled_back, another_key),
    ],
)
async def test_what_cannot_be_believed_is_set_aside_with_one_line(
    place: Place, spoil: Callable[[Place], Store], caplog: pytest.LogCaptureFixture
) -> None:
    await place.store().write(AGENT, held())
    assert await spoil(place).load(AGENT) is None
    assert not place.path.exists()
    assert (place.folder / SET_ASIDE).exists()
    assert len(caplog.records) == 1
    assert await place.store().load(AGENT) is None
    assert len(caplog.records) == 1


async def test_a_store_of_a_later_moment_waits_for_the_clock(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    await place.store().write(AGENT, held())
    place.now -= 3600
    assert await place.store().load(AGENT) is None
    assert "cannot be used now" in caplog.text
    place.now += 3600
    assert await place.store().load(AGENT) == held()


async def test_what_was_dropped_is_not_served_from_a_copy_either(place: Place) -> None:
    store = place.store()
    await store.write(AGENT, held())
    copy = place.path.read_bytes()
    await store.drop()
    assert not place.path.exists()
    place.path.write_bytes(copy)
    assert await place.store().load(AGENT) is None


async def test_a_crash_between_the_two_files_loses_nothing(place: Place) -> None:
    """The store is written first, its generation second."""
    store = place.store()
    await store.write(AGENT, held())
    before = (place.folder / "agent-data.json").read_bytes()
    await store.write(AGENT, held(expires_at=NOW + 2000))
    (place.folder / "agent-data.json").write_bytes(before)
    assert await place.store().load(AGENT) == held(expires_at=NOW + 2000)


async def test_a_key_manager_that_cannot_seal_has_nothing_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="spire")
    store = Store(str(tmp_path), TD, MemoryKeyManager(), Storage.open(str(tmp_path)))
    keeper = Keeper(store, lambda: AGENT, held, look=0.01, interval=0.01)
    assert not await keeper.keep()
    running = asyncio.ensure_future(keeper.run())
    await until(lambda: "cannot seal" in caplog.text)
    running.cancel()
    assert await store.load(AGENT) is None
    await store.drop()
    assert not (tmp_path / NAME).exists()


async def test_writes_are_bounded_however_often_something_changes(place: Place) -> None:
    writes: list[float] = []

    class Counting(Store):
        async def write(self, agent: SpiffeId, held: Held) -> None:
            del agent, held
            writes.append(time.monotonic())

    store = Counting(str(place.folder), TD, place.keys, Storage.open(str(place.folder)))
    changes = iter(range(10**9))
    keeper = Keeper(store, lambda: AGENT, lambda: held(expires_at=NOW + next(changes)), look=0.01, interval=0.3)
    running = asyncio.ensure_future(keeper.run())
    await until(lambda: len(writes) >= 4)
    running.cancel()
    assert writes[3] - writes[0] >= 0.6


async def test_nothing_new_is_not_written_again(place: Place) -> None:
    keeper = Keeper(place.store(), lambda: AGENT, held)
    assert await keeper.keep()
    assert not await keeper.keep()
    ids = iter([AGENT, SpiffeId(TD, "/spire/agent/x509pop/b")])
    keeper = Keeper(place.store(), lambda: next(ids), held)
    assert await keeper.keep()
    assert await keeper.keep()
    keeper = Keeper(place.store(), lambda: AGENT, lambda: None)
    assert not await keeper.keep()
    keeper = Keeper(place.store(), lambda: AGENT, held)
    keeper.stop()
    assert not await keeper.keep()


async def test_a_full_disk_is_told_once_and_tried_again(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = place.store()
    await store.write(AGENT, held())
    keeper = Keeper(store, lambda: AGENT, lambda: held(expires_at=NOW + 2000))
    with monkeypatch.context() as patched:
        patched.setattr("operations.files.write_atomically", full)
        assert await keeper.keep()
        assert await keeper.keep()
    assert caplog.text.count("Could not keep the SVIDs") == 1
    assert await place.store().load(AGENT) == held()
    assert await keeper.keep()
    assert await place.store().load(AGENT) == held(expires_at=NOW + 2000)


TINY = """
import asyncio, sys
from pathlib import Path
from agent.storage import Storage
from agent.store.store import Store
from keystores.disk import DiskKeyManager
from tests.unit.agent.test_store import AGENT, NOW, TD, held, svid
from agent.entries import Entry
from agent.store.content import Held

async def main(folder):
    keys = await DiskKeyManager.open(Path(folder) / "keys.json")
    store = Store(folder, TD, keys, Storage.open(folder), lambda: NOW)
    await store.write(AGENT, held())
    many = {str(number): svid(NOW + 1000) for number in range(2000)}
    entries = {each: Entry(each, "spiffe://example.org/w", frozenset()) for each in many}
    try:
        await store.write(AGENT, Held(entries, many, {}, {}))
    except OSError as error:
        print(error.errno)
    print(await Store(folder, TD, keys, Storage.open(folder), lambda: NOW).load(AGENT) == held())
    print(sorted(each.name for each in Path(folder).iterdir() if each.name.startswith(".agent")))

asyncio.run(main(sys.argv[1]))
"""


def test_a_file_system_without_room_keeps_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    script = f'mount -t tmpfs -o size=64k tiny {folder} && exec "$0" -c "$1" {folder}'
    done = subprocess.run(
        ["unshare", "--mount", "--", "sh", "-c", script, sys.executable, TINY],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == [str(errno.ENOSPC), "True", "[]"]


VICTIM = """
import asyncio, sys
from pathlib import Path
from agent.storage import Storage
from agent.store.store import Store
from keystores.disk import DiskKeyManager
from tests.unit.agent.test_store import AGENT, NOW, TD, held

async def main(folder):
    keys = await DiskKeyManager.open(Path(folder) / "keys.json")
    store = Store(folder, TD, keys, Storage.open(folder), lambda: NOW)
    for number in range(1, 10**6):
        await store.write(AGENT, held(expires_at=NOW + number))
        print(number, flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_a_kill_at_any_moment_leaves_the_last_or_the_one_after(tmp_path: Path) -> None:
    for delay in (0.0, 0.003, 0.011, 0.017):
        victim = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", VICTIM, str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        assert victim.stdout is not None
        async with asyncio.timeout(60):
            for _ in range(3):
                await victim.stdout.readline()
        await asyncio.sleep(delay)
        victim.kill()
        told = [b"3", *(await victim.stdout.read()).split()]
        await victim.wait()
        keys = await DiskKeyManager.open(tmp_path / "keys.json")
        store = Store(str(tmp_path), TD, keys, Storage.open(str(tmp_path)), lambda: NOW)
        loaded = await store.load(AGENT)
        await keys.close()
        assert loaded is not None
        last = int(told[-1])
        assert loaded.x509_svids["a"].expires_at - NOW in (last, last + 1)


def test_sealing_binds_the_line_to_the_content() -> None:
    header = Header(trust_domain="example.org", agent="a", generation=1, saved_at=NOW)
    sealed = seal(bytes(32), header, b"content")
    assert unseal(bytes(32), sealed) == b"content"
    with pytest.raises(Corrupt, match="does not decrypt"):
        unseal(b"\x01" * 32, sealed)
    with pytest.raises(Corrupt):
        unseal(bytes(32), sealed.replace(b'"generation":1', b'"generation":2'))
    hostile = (b"x" * 100_000, b'{"agent": "\xff"}\n', b'{"agent": ' + b"[" * 8000 + b"\n", b"[" * 8000 + b"\n")
    for content in hostile:
        with pytest.raises(Corrupt, match="does not begin"):
            read_header(content)
