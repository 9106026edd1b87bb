"""Operators look after keys: what there is, whether it is what it seems, and its end; and are asked for a PIN."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MakeAgent, MakeServer, pkcs11
from tests.integration.test_01_first_light import private_keys
from tests.simulators.softhsm import USER_PIN, SoftHsm
from tests.simulators.spire import SERVER, Agent, Server, command, eventually
from tests.simulators.terminal import terminal

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"


def keys(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.ask_json("keys", "list")["keys"]
    return found


def rotate_jwt(server: Server) -> None:
    prepared = server.ask_json("localauthority", "jwt", "prepare")["prepared_authority"]["authority_id"]
    server.ask("localauthority", "jwt", "activate", "-authorityID", prepared)


@pytest.mark.timeout(300)
def test_a_servers_keys_over_rotations_and_restarts(make_server: MakeServer, token: SoftHsm) -> None:
    server = make_server()
    server.start()
    assert server.ask("keys", "verify").stdout.count(": proven\n") == 2
    for _ in range(2):
        rotate_jwt(server)
    by_use = {(key["id"], use["status"]) for key in keys(server) for use in key["used_by"]}
    assert by_use == {("x509-CA-A", "active"), ("JWT-Signer-A", "active"), ("JWT-Signer-B", "old")}
    [retired] = [key for key in keys(server) if "retired_at" in key]
    assert int(retired["dispose_at"]) - int(retired["retired_at"]) == 24 * 3600

    server.run.end(signal.SIGKILL)
    server.start()
    assert [key["handle"] for key in keys(server) if "retired_at" in key] == [retired["handle"]]
    for key_id in ("x509-CA-A", "JWT-Signer-A", "JWT-Signer-B"):
        refused = server.ask("keys", "dispose", "-id", key_id, check=False)
        assert refused.returncode == 1
        assert f"key '{key_id}' is in use, by the " in refused.stderr
    assert len(private_keys(token)) == 4
    server.ask("keys", "dispose", "-handle", retired["handle"])
    assert len(private_keys(token)) == 3
    assert server.ask("keys", "verify").stdout.count(": proven\n") == 3

    # A server that lost its database begins anew, and has a key with a name that nobody uses.
    server.run.end()
    for file in server.folder.glob("datastore.sqlite3*"):
        file.unlink()
    server.start()
    [unused] = [key for key in keys(server) if not key["used_by"] and "retired_at" not in key]
    assert unused["id"] == "JWT-Signer-B"
    server.ask("keys", "dispose", "-id", "JWT-Signer-B")
    assert {key["id"] for key in keys(server) if "retired_at" not in key} == {"x509-CA-A", "JWT-Signer-A"}
    server.run.end()
    server.start()
    assert server.ask("keys", "verify").stdout.count(": proven\n") == 2


@pytest.mark.timeout(300)
def test_keys_on_a_disk_do_not_pass(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(key_manager=f'KeyManager "disk" {{ plugin_data {{ keys_path = "{tmp_path}/keys.json" }} }}')
    server.start()
    done = server.ask("keys", "verify", "-id", "x509-CA-A", check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: 1 of 1 key not proven: x509-CA-A\n"
    assert "passed  possession" in done.stdout
    assert f"FAILED  non-exportability: the private key is in {tmp_path}/keys.json" in done.stdout


def admin(agent: Agent, *words: str) -> Any:
    done = command(agent.program, *words, "-socketPath", f"{agent.folder}-admin/admin.sock", "-output", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_an_agent_with_its_key_in_a_token_serves_while_its_server_is_away(
    make_server: MakeServer, make_agent: MakeAgent, token: SoftHsm, tmp_path: Path, number: int
) -> None:
    server = make_server()
    server.start()
    folder = tmp_path / "agent"
    agent = make_agent(
        server,
        token_value=server.join_token(NODE),
        key_manager=pkcs11(token, folder / "keys.json", namespace="agent-a"),
        settings=f'admin_socket_path = "{folder}-admin/admin.sock"\n  experimental {{ sync_interval = "1s" }}',
    )
    server.create_entry(NODE, WORKLOAD)  # before the agent starts: what it keeps first has the SVID
    agent.start()
    before = agent.fetch()
    eventually((folder / "agent-store.sealed").exists, "the store")
    listed = {key["id"]: key for key in admin(agent, "keys", "list")["keys"]}
    assert set(listed) == {"agent-svid-A", "sealing"}
    assert listed["agent-svid-A"]["used_by"] == [
        {"name": f"{agent_id(server)}", "purpose": "agent SVID", "status": "active"}
    ]
    assert listed["sealing"]["used_by"] == [{"name": "", "purpose": "sealed store", "status": "active"}]
    assert all(proof["stands"] for proof in admin(agent, "keys", "verify")["proofs"])

    server.run.end(signal.SIGKILL)
    agent.run.end(number)
    agent.start()
    assert spiffe_ids(agent.ask("api", "fetch", "x509").stdout) == spiffe_ids(before)
    assert "Serving what was kept from the last run" in agent.run.output()
    assert {key["handle"] for key in admin(agent, "keys", "list")["keys"]} == {key["handle"] for key in listed.values()}
    assert not list(folder.glob("agent-store.refused"))


def agent_id(server: Server) -> str:
    [found] = server.ask_json("agent", "list")["agents"]
    return f"spiffe://{found['id']['trust_domain']}{found['id']['path']}"


def spiffe_ids(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if "SPIFFE ID" in line]


@pytest.mark.timeout(300)
def test_a_server_asks_for_the_pin_once(make_server: MakeServer, token: SoftHsm, tmp_path: Path) -> None:
    block = pkcs11(token, tmp_path / "keys.json", pin_file="").replace("\n  }", "\n    pin_prompt = true\n  }")
    server = make_server(key_manager=block)
    with terminal((SERVER, "run", "-config", str(server.config)), token.environment) as screen:
        screen.see("PIN of the token with token_label 'spire': ")
        screen.type("0000\n")
        screen.see("refused the PIN that was typed; it is not asked for again, lest the token lock")
        assert screen.end() == 1
        assert "0000" not in screen.shown
        assert "Traceback" not in screen.shown
    with terminal((SERVER, "run", "-config", str(server.config)), token.environment) as screen:
        screen.see("PIN of the token with token_label 'spire': ")
        screen.type(f"{USER_PIN}\n")
        screen.see("Starting Server APIs")
        eventually(lambda: server.ask("healthcheck", check=False).returncode == 0, "a healthy server")
        assert server.ask("keys", "verify").returncode == 0
        screen.type("\x03")
        screen.see("Server stopped gracefully")
        assert USER_PIN not in screen.shown
