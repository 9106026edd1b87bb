"""PostgreSQL: databases that are not as they should be, and what it keeps differently from SQLite."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections.abc import AsyncIterator, Generator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from msgspec.structs import replace
from sqlalchemy import make_url, select

from identity.bundles import Bundle
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from operations.errors import (
    ConfigurationError,
    InvalidArgument,
    PermanentlyUnusable,
    Refused,
    SpireError,
    TemporarilyUnavailable,
)
from server.datastore import migrate, schema
from server.datastore.backend import POSTGRES, Settings
from server.datastore.matching import matches
from server.datastore.postgres import Postgres
from server.datastore.records import AttestedNode, BySelectors, EntryFilter, JoinToken, Match, NodeFilter
from server.datastore.store import DataStore
from server.entries import EntryIndex
from tests.contract.datastore_backends import AGENT, entry
from tests.simulators.postgres import PASSWORD, USER, Cluster, started
from tests.simulators.spire import free_port
from tests.unit.datastore.sessions import eventually, name_of

ON_POSTGRES = Settings(kind=POSTGRES)
DIALECT = make_url("postgresql://").get_dialect()()


@pytest.fixture
def connection_string(postgres: Cluster) -> str:
    return postgres.database()


@pytest.fixture
async def store(connection_string: str) -> AsyncIterator[DataStore]:
    opened = await DataStore.open(connection_string, ON_POSTGRES)
    yield opened
    await opened.close()


def tables_of(cluster: Cluster, connection_string: str) -> set[object]:
    with cluster.connect(name_of(connection_string)) as connection:
        return set(connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"))


async def refusal(connection_string: str, kind: type[SpireError], settings: Settings = ON_POSTGRES) -> str:
    """The one line that opening the database ends in."""
    with pytest.raises(kind) as raised:
        await DataStore.open(connection_string, settings)
    told = str(raised.value)
    assert "\n" not in told
    assert PASSWORD not in told
    return told


# Databases that cannot be used


async def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    told = await refusal(f"host={tmp_path} dbname=spire user=u password=secret", TemporarilyUnavailable)
    assert f"the database spire on {tmp_path}:5432 cannot be reached (" in told
    assert "secret" not in told
    port = free_port()
    told = await refusal(f"postgres://u:secret@127.0.0.1:{port}/spire", TemporarilyUnavailable)
    assert f"the database spire on 127.0.0.1:{port} cannot be reached (" in told
    assert "secret" not in told


async def test_a_database_or_user_that_does_not_exist_is_named(postgres: Cluster) -> None:
    told = await refusal(f"host={postgres.folder} user={USER} dbname=absent", PermanentlyUnusable)
    assert f"the database absent on {postgres.folder}:5432 does not exist: create it" in told
    told = await refusal(f"host={postgres.folder} user=nobody_here dbname=postgres", PermanentlyUnusable)
    assert "refuses this user" in told


async def test_a_database_of_the_go_server_is_left_alone(postgres: Cluster, connection_string: str) -> None:
    with postgres.connect(name_of(connection_string)) as connection:
        connection.execute("CREATE TABLE registered_entries (id int); CREATE TABLE bundles (id int)")
    before = tables_of(postgres, connection_string)
    told = await refusal(connection_string, ConfigurationError)
    assert "were made by the Go SPIRE server and cannot be used" in told
    assert tables_of(postgres, connection_string) == before


@pytest.mark.parametrize("table", ["nodes", "alembic_version"])
async def test_tables_of_another_program_are_left_alone(postgres: Cluster, connection_string: str, table: str) -> None:
    with postgres.connect(name_of(connection_string)) as connection:
        connection.execute(f"CREATE TABLE {table} (holiday text)".encode())
    before = tables_of(postgres, connection_string)
    assert "were made by another program" in await refusal(connection_string, ConfigurationError)
    assert tables_of(postgres, connection_string) == before


async def test_other_tables_may_stand_beside_ours(postgres: Cluster, connection_string: str) -> None:
    with postgres.connect(name_of(connection_string)) as connection:
        connection.execute("CREATE TABLE holidays (name text)")
    await (await DataStore.open(connection_string, ON_POSTGRES)).close()


async def test_a_database_of_a_newer_version_is_refused(postgres: Cluster, connection_string: str) -> None:
    await (await DataStore.open(connection_string, ON_POSTGRES)).close()
    with postgres.connect(name_of(connection_string)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    told = await refusal(connection_string, ConfigurationError)
    assert "was made by a newer version of this server (schema 9999" in told


async def test_an_encoding_that_cannot_hold_every_text_is_refused(postgres: Cluster) -> None:
    latin = postgres.database(options="ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    assert "is encoded as LATIN1: create one with ENCODING 'UTF8'" in await refusal(latin, ConfigurationError)


async def test_a_user_without_permission_is_told_which(postgres: Cluster, connection_string: str) -> None:
    with postgres.connect(name_of(connection_string)) as connection:
        connection.execute("DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN")
    guest = connection_string.replace(f"user={USER}", "user=guest")
    told = await refusal(guest, PermanentlyUnusable)
    assert "denies a permission (permission denied for schema public): make this user the owner" in told


async def test_a_schema_that_does_not_exist_is_refused(connection_string: str) -> None:
    told = await refusal(f"{connection_string} search_path=absent", ConfigurationError)
    assert "has no schema that its search_path names: create it" in told


# TLS and passwords


@pytest.fixture(scope="module")
def over_tcp(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Cluster, int, Path]]:
    """A cluster that listens on the loopback, with TLS: its port, and its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    port = free_port()
    with started(listen_addresses="127.0.0.1", port=str(port)) as cluster:
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt")]
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        subprocess.run([*new, *subject, *files], check=True, capture_output=True, timeout=60)
        yield cluster, port, folder


def with_tls(cluster: Cluster, folder: Path) -> None:
    """Turn TLS on."""
    for name, mode in (("server.key", 0o600), ("server.crt", 0o644)):
        cluster.put(name, (folder / name).read_bytes(), mode)
    with cluster.connect() as connection:
        connection.execute("ALTER SYSTEM SET ssl = on")
        connection.execute("SELECT pg_reload_conf()")
        end = time.monotonic() + 30
        while connection.execute("SHOW ssl").fetchone() != ("on",):
            assert time.monotonic() < end
            time.sleep(0.05)


def quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


async def test_over_tcp_passwords_and_tls_are_as_in_spire(over_tcp: tuple[Cluster, int, Path], tmp_path: Path) -> None:
    cluster, port, folder = over_tcp
    place = f"host=localhost port={port} user={USER} dbname=postgres"
    good = f"{place} password={quoted(PASSWORD)}"

    told = await refusal(good, TemporarilyUnavailable)
    assert "server does not support SSL, but SSL was required" in told
    told = await refusal(f"{place} password=wrong sslmode=disable", PermanentlyUnusable)
    assert "refuses the password: set user and password of connection_string right" in told
    assert "wrong" not in told
    assert "refuses the password" in await refusal(f"{place} sslmode=disable", PermanentlyUnusable)
    await (await DataStore.open(f"{good} sslmode=disable", ON_POSTGRES)).close()

    await asyncio.to_thread(with_tls, cluster, folder)
    roots = Settings(kind=POSTGRES, tls=(("sslrootcert", str(folder / "server.crt")),))
    await (await DataStore.open(good, roots)).close()
    await (await DataStore.open(f"{good} sslmode=verify-full", roots)).close()
    told = await refusal(good.replace("localhost", "127.0.0.1") + " sslmode=verify-full", TemporarilyUnavailable, roots)
    assert "does not match host name" in told
    other = tmp_path / "absent.crt"
    absent = Settings(kind=POSTGRES, tls=(("sslrootcert", str(other)),))
    assert str(other) in await refusal(f"{good} sslmode=verify-ca", TemporarilyUnavailable, absent)


# One server at a time


async def test_a_second_server_is_refused_and_changes_nothing(
    store: DataStore, connection_string: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.datastore.postgres._PATIENCE", 0.3)
    told = await refusal(connection_string, Refused)
    assert "is in use by another server (process " in told
    assert "stop it, or give this one its own database or schema" in told
    await store.create_entry(entry())


async def test_a_start_waits_for_the_session_of_a_server_that_died(
    postgres: Cluster, connection_string: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = Postgres(connection_string, ON_POSTGRES)
    await asyncio.to_thread(first.identify)
    opening = asyncio.create_task(DataStore.open(connection_string, ON_POSTGRES))
    await eventually(lambda: "waiting for its end" in caplog.text, "the start waits")
    assert not opening.done()
    first.dispose()
    await (await opening).close()


async def test_a_start_that_waits_can_be_given_up(connection_string: str, caplog: pytest.LogCaptureFixture) -> None:
    first = Postgres(connection_string, ON_POSTGRES)
    await asyncio.to_thread(first.identify)
    opening = asyncio.create_task(DataStore.open(connection_string, ON_POSTGRES))
    await eventually(lambda: "waiting for its end" in caplog.text, "the start waits")
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    # Its thread is free again long before its patience ends.
    begun = time.monotonic()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert time.monotonic() - begun < 15
    first.dispose()


async def test_servers_in_schemas_of_their_own_do_not_meet(postgres: Cluster, connection_string: str) -> None:
    with postgres.connect(name_of(connection_string)) as connection:
        connection.execute("CREATE SCHEMA one; CREATE SCHEMA two")
    one = await DataStore.open(f"{connection_string} search_path=one,public", ON_POSTGRES)
    two = await DataStore.open(f"{connection_string} search_path=two", ON_POSTGRES)
    await one.create_entry(entry())
    assert (await one.count_entries(), await two.count_entries()) == (1, 0)
    await one.close()
    await two.close()


async def test_another_server_that_came_in_between_keeps_this_one_from_writing(
    postgres: Cluster, store: DataStore, connection_string: str
) -> None:
    """Only a session that holds the lock writes. When the other ends, what it wrote is in this one's index."""
    index = await EntryIndex.follow(store, TrustDomain("example.org"))
    await store.create_entry(entry("before", id="before"))
    other = psycopg.connect(connection_string, autocommit=True)
    waiting = asyncio.create_task(
        asyncio.to_thread(other.execute, "SELECT pg_advisory_lock(1397770578, hashtext('public'))")
    )
    with postgres.connect() as connection:
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event = 'advisory'"
        name = (name_of(connection_string),)
        await eventually(lambda: connection.execute(waits, name).fetchone() is not None, "the other server waits")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'spire-server' AND datname = %s",
            name,
        )
    await waiting
    with pytest.raises(TemporarilyUnavailable, match="in use by another server"):
        await store.create_entry(entry("during"))
    assert await store.count_entries() == 1
    other.execute("DELETE FROM entries")
    assert index.get("before") is not None
    other.close()
    await eventually(lambda: index.get("before") is None, "the index follows")
    await store.create_entry(entry("after"))


# Migrations


def shape(cluster: Cluster, connection_string: str) -> list[object]:
    with cluster.connect(name_of(connection_string)) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name, data_type, character_maximum_length, collation_name, is_nullable,"
            " column_default FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, ordinal_position"
        ).fetchall()
        indexes = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
        ).fetchall()
        constraints = connection.execute(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"
        ).fetchall()
    return [columns, indexes, constraints]


async def test_migrating_from_the_beginning_gives_the_schema_of_a_new_database(postgres: Cluster) -> None:
    new, old = postgres.database(), postgres.database()
    await (await DataStore.open(new, ON_POSTGRES)).close()
    with postgres.connect(name_of(old)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    connected = Postgres(old, ON_POSTGRES).connect_to_migrate()
    with connected, pytest.raises(ConfigurationError, match="auto-migration must be enabled for current DB"):
        migrate.prepare(connected, "here", migrate=False)
    with Postgres(old, ON_POSTGRES).connect_to_migrate() as connected:
        migrate.prepare(connected, "here")
    assert shape(postgres, old) == shape(postgres, new)


def test_every_text_is_compared_by_its_bytes() -> None:
    """Whatever the collation of the database; also in tables that come later."""
    for table in schema.metadata.tables.values():
        for column in table.columns:
            kind = column.type.dialect_impl(DIALECT)
            assert getattr(kind, "collation", "C") == "C", column


# What PostgreSQL keeps in its own way


async def test_texts_are_ordered_by_their_bytes(postgres: Cluster) -> None:
    options = "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C.UTF-8' ENCODING 'UTF8' TEMPLATE template0"
    store = await DataStore.open(postgres.database(options=options), ON_POSTGRES)
    names = ["a-b", "a.b", "a_b", "ab", "b"]
    for name in reversed(names):
        await store.set_bundle(Bundle(TrustDomain(name)))
    listed: list[str] = []
    token = ""
    while True:
        page = await store.list_bundles(page_size=2, page_token=token)
        listed += [bundle.trust_domain.name for bundle in page.items]
        token = page.next_token
        if not token:
            break
    assert listed == sorted(names)
    await store.close()


async def test_long_selectors_are_found_by_their_whole_value(store: DataStore) -> None:
    """An index holds less than they may have."""
    long = [Selector("docker", "env:" + "x" * 9000 + ending) for ending in ("a", "b", "é" * 2000)]
    for number, selector in enumerate(long):
        await store.create_entry(replace(entry(f"w{number}", id=str(number)), selectors=(selector,)))
        await store.create_node(
            AttestedNode(
                spiffe_id=f"{AGENT}{number}",
                attestation_type="t",
                serial_number="1",
                expires_at=1,
                selectors=(selector,),
            )
        )
    for number, selector in enumerate(long):
        for match in Match:
            by = BySelectors((selector,), match)
            assert [each.id for each in (await store.list_entries(EntryFilter(selectors=by))).items] == [str(number)]
            found = (await store.list_nodes(NodeFilter(selectors=by))).items
            assert [each.spiffe_id for each in found] == [f"{AGENT}{number}"]


async def test_ids_of_full_length_fit(store: DataStore) -> None:
    longest = "spiffe://example.org/" + "a/b-c_d.e/" * 202
    made = await store.create_entry(replace(entry(), spiffe_id=longest[:2047], parent_id=longest[:2048]))
    assert await store.get_entry(made.id) == made
    assert (await store.create_or_return_entry(replace(made, id="")))[1]


async def test_what_it_cannot_keep_is_the_callers_fault(store: DataStore) -> None:
    for wrong in (
        replace(entry(), hint="nul\0"),
        replace(entry(), hint="h" * 1025),
        replace(entry(), selectors=(Selector("t" * 256, "v"),)),
    ):
        with pytest.raises(InvalidArgument, match="cannot keep this"):
            await store.create_entry(wrong)
    with pytest.raises(InvalidArgument, match="cannot keep this"):
        await store.get_entry("nul\0")
    assert await store.count_entries() == 0
    results = await asyncio.gather(
        *(store.create_entry(entry(f"w{n}", hint="" if n % 3 else "nul\0")) for n in range(60)), return_exceptions=True
    )
    assert [isinstance(result, InvalidArgument) for result in results] == [n % 3 == 0 for n in range(60)]
    assert await store.count_entries() == 40


@pytest.mark.parametrize("match", Match)
def test_set_filters_are_answered_from_an_index(connection_string: str, match: Match) -> None:
    database = Postgres(connection_string, ON_POSTGRES)
    with database.connect_to_migrate() as connection:
        migrate.prepare(connection, "here")
        connection.exec_driver_sql("SET enable_seqscan = off")
        for key, members, index in (
            (schema.entries.c.seq, schema.entry_selectors.c, "ix_entry_selectors_type_prefix"),
            (schema.nodes.c.spiffe_id, schema.node_selectors.c, "ix_node_selectors_type_prefix"),
        ):
            member_key = members.entry if "entry" in members else members.spiffe_id
            condition = matches(key, member_key, [members.type, members.value], [("a", "1"), ("b", "2")], match)
            query = select(key).where(condition).compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {query}").scalars())
            assert index in plan


async def test_log_sql_tells_statements_without_their_values(
    connection_string: str,
) -> None:
    told: list[str] = []
    store = await DataStore.open(connection_string, Settings(kind=POSTGRES, log_statement=told.append))
    await store.create_join_token(JoinToken("topsecret", 100))
    await store.close()
    listed = "\n".join(told)
    assert "INSERT INTO join_tokens" in listed
    assert "topsecret" not in listed


async def test_a_session_bounds_what_it_waits_for(connection_string: str) -> None:
    database = Postgres(f"{connection_string} statement_timeout=7s synchronous_commit=off", ON_POSTGRES)
    await asyncio.to_thread(database.identify)

    def shown(name: str) -> object:
        return connection.exec_driver_sql(f"SHOW {name}").scalar()

    with database.connect(writer=True) as connection:
        assert (shown("lock_timeout"), shown("statement_timeout")) == ("5s", "7s")
        assert shown("synchronous_commit") == "on"
        assert shown("transaction_isolation") == "repeatable read"
    database.dispose()


async def test_limits_of_connections_hold(postgres: Cluster, connection_string: str) -> None:
    async def sessions(settings: Settings) -> int:
        store = await DataStore.open(connection_string, settings)
        await asyncio.gather(*(store.count_entries() for _ in range(40)))
        await store.create_entry(entry())
        await asyncio.sleep(0.2)
        number = postgres.sessions(name_of(connection_string))
        await store.close()
        return number

    assert await sessions(Settings(kind=POSTGRES, max_connections=1)) == 1
    assert await sessions(Settings(kind=POSTGRES, max_connections=2)) == 2
    assert await sessions(Settings(kind=POSTGRES, max_idle=0)) == 1
    assert 2 <= await sessions(ON_POSTGRES) <= 5


async def test_a_connection_does_not_grow_older_than_it_may(postgres: Cluster, connection_string: str) -> None:
    settings = Settings(kind=POSTGRES, max_connections=2, max_lifetime=timedelta(milliseconds=100))
    store = await DataStore.open(connection_string, settings)
    seen: set[object] = set()
    with postgres.connect() as connection:
        for _ in range(4):
            await store.count_entries()
            query = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
            seen.update(pid for (pid,) in connection.execute(query, (name_of(connection_string),)))
            await asyncio.sleep(0.11)
    # The writer's stays, because it holds the lock.
    assert len(seen) >= 3
    await store.close()


async def test_no_password_is_logged(connection_string: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "spire")
    await (await DataStore.open(f"{connection_string} password=topsecret", ON_POSTGRES)).close()
    assert "Connected to SQL database" in caplog.text
    assert "topsecret" not in caplog.text + "".join(repr(record.__dict__) for record in caplog.records)
