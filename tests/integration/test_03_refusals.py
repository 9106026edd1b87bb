"""Bad input ends in one clear line that says what to do, a status that is not zero, and nothing lost."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from tests.integration.conftest import MakeAgent, MakeServer, pkcs11
from tests.simulators.softhsm import SoftHsm
from tests.simulators.spire import Agent, Server, eventually

NODE = "spiffe://example.org/node"


def refusal(program: Server | Agent, *words: str) -> str:
    """Start a program that must refuse: it ends by itself, not with 0, and its last line holds all `words`."""
    before = len(program.run.output())
    program.run.start()
    assert program.run.wait() != 0
    output = program.run.output()[before:]
    assert "Traceback" not in output, output
    last = output.strip().splitlines()[-1]
    for word in words:
        assert word in last, output
    return last


def test_a_wrong_pin_is_tried_once(make_server: MakeServer, token: SoftHsm) -> None:
    server = make_server()
    token.write_pin("0000\n")
    refusal(server, "PIN", str(token.pin_file))
    assert "user PIN count low" in token.tool("--list-token-slots", pin=None), "it was tried"
    token.tool("--list-objects")  # The right PIN clears the token's count.
    for _ in range(3):
        refusal(server, "PIN")
    assert "user PIN count low" not in token.tool("--list-token-slots", pin=None), "it was not tried again"
    token.write_pin("8246\n")
    server.start()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"module_path": "/nonexistent/module.so"}, ("/nonexistent/module.so", "module_path")),
        ({"token_label": "elsewhere"}, ("elsewhere", "token_label")),
        ({"pin_file": "/nonexistent/pin"}, ("/nonexistent/pin", "pin_file")),
        ({"pin_file": ""}, ("pin_file",)),
        ({"module_path": ""}, ("module_path",)),
        ({"tokn_label": "spire"}, ("tokn_label", "server.conf:")),
    ],
    ids=["module", "token", "pin-file", "no-pin", "no-module", "misspelt"],
)
def test_a_key_manager_that_cannot_be_used(
    make_server: MakeServer, token: SoftHsm, tmp_path: Path, changes: dict[str, str], words: tuple[str, ...]
) -> None:
    server = make_server(key_manager=pkcs11(token, tmp_path / "keys.json", **changes))
    refusal(server, *words)


def test_a_pin_file_that_others_can_read(make_server: MakeServer, token: SoftHsm) -> None:
    server = make_server()
    token.write_pin("8246\n", mode=0o640)
    refusal(server, str(token.pin_file), "0600")


@pytest.mark.parametrize("name", ["keys.json", "datastore.sqlite3"])
def test_a_damaged_file_is_named_and_left_as_it_is(make_server: MakeServer, name: str) -> None:
    server = make_server()
    server.start()
    server.run.end()
    damaged = server.folder / name
    content = damaged.read_bytes()
    damaged.write_bytes(b"\0garbage" + content[8:])
    refusal(server, str(damaged))
    assert damaged.read_bytes() == b"\0garbage" + content[8:]
    damaged.write_bytes(content)
    server.start()


def test_a_token_whose_keys_are_gone(make_server: MakeServer, token: SoftHsm) -> None:
    server = make_server()
    server.start()
    server.run.end()
    for kind in ("privkey", "pubkey"):
        for line in token.tool("--list-objects", "--type", kind).splitlines():
            if line.strip().startswith("ID:"):
                token.tool("--delete-object", "--type", kind, "--id", line.split(":")[1].strip())
    refusal(server, "x509-CA-A", "keys_path")


def test_a_misspelt_setting(make_server: MakeServer) -> None:
    server = make_server(settings='default_x509_svid_tll = "1h"')
    refusal(server, "default_x509_svid_tll", "default_x509_svid_ttl", f"{server.config}:")


def test_a_port_in_use(make_server: MakeServer) -> None:
    first = make_server("first")
    first.start()
    second = make_server("second")
    second.port = first.port
    second.configure()
    refusal(second, str(first.port), "in use")
    assert first.healthy()


def test_a_join_token_is_good_once(make_server: MakeServer, make_agent: MakeAgent) -> None:
    server = make_server()
    server.start()
    value = server.join_token()
    make_agent(server, token_value=value).start()
    thief = make_agent(server, token_value=value, name="thief")
    thief.run.start()
    eventually(lambda: "join token does not exist or has already been used" in thief.run.output(), "the refusal", 90)
    assert thief.run.wait(120) != 0
    assert len(server.ask_json("agent", "list")["agents"]) == 1


def test_a_join_token_expires(make_server: MakeServer, make_agent: MakeAgent) -> None:
    server = make_server()
    server.start()
    late = make_agent(server, token_value=server.join_token(ttl=1))
    expiry = time.time() + 1
    eventually(lambda: time.time() > expiry + 1, "the expiry of the token")
    late.run.start()
    eventually(lambda: "expired" in late.run.output() or "does not exist" in late.run.output(), "the refusal", 90)
    assert late.run.wait(120) != 0


def test_a_workload_without_an_entry(make_server: MakeServer, make_agent: MakeAgent) -> None:
    server = make_server()
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE))
    agent.start()
    denied = agent.ask("api", "fetch", "x509", check=False)
    assert denied.returncode == 1
    assert "PermissionDenied" in denied.stdout + denied.stderr
    assert "no identity issued" in denied.stdout + denied.stderr


def test_a_damaged_journal_is_named_and_left_as_it_is(make_server: MakeServer) -> None:
    server = make_server()
    server.start()
    bundle = server.bundle()
    server.run.end()
    database = sqlite3.connect(server.folder / "datastore.sqlite3")
    ((journal,),) = database.execute("SELECT data FROM ca_journals").fetchall()
    damaged = journal[:-8] + b"\0" * 8
    with database:
        database.execute("UPDATE ca_journals SET data = ?", (damaged,))
    refusal(server, "journal")
    assert database.execute("SELECT data FROM ca_journals").fetchall() == [(damaged,)]
    with database:
        database.execute("UPDATE ca_journals SET data = ?", (journal,))
    database.close()
    server.start()
    assert server.bundle() == bundle
