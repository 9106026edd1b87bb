"""Connection strings for PostgreSQL: what SPIRE's driver takes, with its defaults."""

from __future__ import annotations

import pytest

from operations.errors import ConfigurationError
from server.datastore.conninfo import for_libpq, parse, place

KNOWN = {"host", "hostaddr", "port", "user", "password", "dbname", "sslmode", "sslrootcert", "options", "service"} | {
    "target_session_attrs",
    "connect_timeout",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("dbname=spire user=u", {"dbname": "spire", "user": "u"}),
        ("  dbname = spire\n\tuser= u ", {"dbname": "spire", "user": "u"}),
        (r"password='a b\'c\\d' user=u", {"password": r"a b'c\d", "user": "u"}),
        (r"password=a\ b\'c", {"password": "a b'c"}),
        ("password='' user=u", {"password": "", "user": "u"}),
        ("password=a=b", {"password": "a=b"}),
        ("host=a,b port=1,2", {"host": "a,b", "port": "1,2"}),
        ("dbname=d binary_parameters=yes disable_prepared_binary_result=yes", {"dbname": "d"}),
        ("postgres://", {}),
        (
            "postgres://u:p%40%2F@db.example.org:5433/spire?sslmode=disable&search_path=a",
            {
                "user": "u",
                "password": "p@/",
                "host": "db.example.org",
                "port": "5433",
                "dbname": "spire",
                "sslmode": "disable",
                "search_path": "a",
            },
        ),
        ("postgresql://[::1]:5433/d", {"host": "::1", "port": "5433", "dbname": "d"}),
        ("postgres://%2Frun%2Fpostgresql/d", {"host": "/run/postgresql", "dbname": "d"}),
        ("postgres:///d?host=/run/postgresql&user=u", {"host": "/run/postgresql", "dbname": "d", "user": "u"}),
        ("postgres://a:1,b:2/d", {"host": "a,b", "port": "1,2", "dbname": "d"}),
        ("postgres://a,b/d", {"host": "a,b", "dbname": "d"}),
        (
            "postgres://u:a+b@h/d?application_name=x+y",
            {"user": "u", "password": "a+b", "host": "h", "dbname": "d", "application_name": "x y"},
        ),
    ],
)
def test_both_forms_are_read(text: str, expected: dict[str, str]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "topsecret",
        "password=top secret",
        "password='topsecret",
        "=topsecret",
        "password=topsecret'x",
        "dbname=spire pass'word=topsecret",
        "postgres://u:topsecret@h:port/d",
        "postgres://u:topsecret@[::1/d",
        "postgres://u:topsecret#x@h/d",
        "postgres://u:topsecret@h:70000/d",
        "password=topsecret port=x",
        "password=topsecret sslinline=true",
    ],
)
def test_what_cannot_be_read_is_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError, match="connection_string") as raised:
        parse(text)
    assert "secret" not in str(raised.value)


def test_the_defaults_are_those_of_spires_driver() -> None:
    assert for_libpq({}, KNOWN, {}) == {"host": "localhost", "sslmode": "require"}
    assert for_libpq({"host": "h", "sslmode": "disable"}, KNOWN, {}) == {"host": "h", "sslmode": "disable"}
    assert for_libpq({}, KNOWN, {"PGHOST": "h", "PGSSLMODE": "disable"}) == {}
    assert for_libpq({"service": "s"}, KNOWN, {}) == {"service": "s"}
    system = for_libpq({"host": "h", "sslrootcert": "system"}, KNOWN, {})
    assert system["sslmode"] == "verify-full"
    assert for_libpq({"host": "a,b"}, KNOWN, {})["target_session_attrs"] == "read-write"
    assert "target_session_attrs" not in for_libpq({"host": "a,b"}, KNOWN, {}, writes=False)


def test_what_libpq_does_not_know_is_set_in_the_session() -> None:
    made = for_libpq({"host": "h", "search_path": 'a, "b\\c"', "options": "-c jit=off"}, KNOWN, {})
    assert made["options"] == '-c jit=off -c search_path=a,\\ "b\\\\c"'


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"dbname": "d", "host": "h", "port": "1", "password": "x"}, "d on h:1"),
        ({"user": "u", "host": "::1"}, "u on [::1]:5432"),
        ({"dbname": "d", "host": "a,b", "port": "1,2"}, "d on a:1,b:2"),
        ({"dbname": "d", "host": "a,b", "port": "1"}, "d on a:1,b:1"),
        ({"service": "s"}, "s"),
        ({}, "of this user"),
    ],
)
def test_the_place_is_named_without_the_password(parameters: dict[str, str], expected: str) -> None:
    assert place(parameters) == expected
