"""The key stores as plugins of servers and agents: of SPIRE's where they are named, and of ours."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.interop.served.conftest import (
    SERVER_BLOCK,
    TPM_BLOCK,
    House,
    agent_of,
    authority,
    descendants,
    end,
    none_alive,
    pids_of,
    plugin_of,
)
from tests.simulators import spire, swtpm
from tests.simulators.spire import PATIENCE, ROOT, eventually

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


def test_a_server_and_an_agent_by_the_runbook(house: House) -> None:
    """Start, sign, restart, rotate, and die, with keys that never leave the token."""
    server = house.server(house.block(SERVER_BLOCK))
    agent: spire.Agent | None = None
    try:
        server.start()
        agent = house.agent(server)
        agent.start()
        server.create_entry("spiffe://example.org/node", "spiffe://example.org/w")
        assert "spiffe://example.org/w" in agent.fetch()
        wanted = ["agent/agent-svid-A", "server-a/JWT-Signer-A", "server-a/x509-CA-A"]
        assert sorted(house.labels()) == wanted
        first = authority(server)

        assert server.run.end() == 0
        server.start()
        assert (authority(server), sorted(house.labels())) == (first, wanted)

        for api, slots in (("x509", "server-a/x509-CA-B"), ("jwt", "server-a/JWT-Signer-B")):
            server.ask("localauthority", api, "prepare")
            prepared = authority(server, "prepared", api)
            server.ask("localauthority", api, "activate", "-authorityID", prepared)
            assert authority(server, "active", api) == prepared
            wanted.append(slots)
        assert sorted(house.labels()) == sorted(wanted)
        server.create_entry("spiffe://example.org/node", "spiffe://example.org/later")
        eventually(lambda: "spiffe://example.org/later" in agent_of(agent).fetch(), "an SVID of the new authority")

        found = {pid for program in (server.run, agent.run) for pid in pids_of(program)}
        assert len(found) >= 4
        for program in (agent.run, server.run):
            program.end(signal.SIGKILL)
        eventually(partial(none_alive, found), "the end of the plugins")
        server.start()
        assert sorted(house.labels()) == sorted(wanted)
    finally:
        end(agent, server)


def test_a_server_with_its_keys_in_a_tpm_by_the_runbook(house: House) -> None:
    with swtpm.started(house.folder / "tpm") as tpm:
        house.tcti = tpm.tcti
        server = house.server(house.block(TPM_BLOCK))
        try:
            server.start()
            first = authority(server)
            assert server.run.end() == 0
            server.start()
            assert authority(server) == first
            server.ask("localauthority", "x509", "prepare")
            server.ask("localauthority", "x509", "activate", "-authorityID", authority(server, "prepared"))
            assert authority(server, "old") == first
        finally:
            end(server)
        assert not tpm.handles()


@pytest.mark.parametrize("direction", ["to the token", "from the token"])
def test_moving_a_server_that_signs_for_itself(house: House, direction: str) -> None:
    """By a second server on the same datastore, from which agents learn of the new authority before it signs for them.

    The old authority stays trusted, nobody attests again, and what the second server made is what the first goes on
    with.
    """
    disk = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{house.folder}/disk.json" }} }}'
    before, after = (disk, house.block(SERVER_BLOCK))[:: 1 if direction == "to the token" else -1]
    server = house.server(before)
    second = spire.Server(
        house.folder / "second",
        key_manager=after,
        program=house.programs.server,
        environment=server.environment,
    )
    second.config.write_text(
        second.config.read_text().replace(f"{second.folder}/datastore", f"{server.folder}/datastore")
    )
    agent: spire.Agent | None = None
    try:
        server.start()
        agent = house.agent(server)
        agent.start()
        server.create_entry("spiffe://example.org/node", "spiffe://example.org/w")
        agent.fetch()
        old = certificates(server)

        if house.programs.server == spire.SERVER:
            second.run.start()
            assert second.run.wait() == 1  # ours want PostgreSQL for that
            assert "is in use by another server" in second.run.output()
            return
        second.start()
        made = authority(second)
        both = eventually(lambda: (found := certificates(server)) > old and found, "the new authority in the bundle")
        eventually(lambda: "CA #2" in agent_of(agent).fetch(), "the agent's new bundle")
        assert second.run.end() == 0
        assert server.run.end() == 0

        server.key_manager = after
        server.configure()
        server.start()
        assert (authority(server), certificates(server)) == (made, both)
        server.create_entry("spiffe://example.org/node", "spiffe://example.org/later")
        eventually(partial(has, agent, "spiffe://example.org/later"), "an SVID after the move")
        assert attestations(agent) == 1
    finally:
        end(agent, second, server)


def test_moving_a_server_below_an_upstream_authority(house: House) -> None:
    """The root is what agents trust, and it does not change: a change of the block and a restart are all."""
    root = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=root"
    subprocess.run(["openssl", *root.split()], cwd=house.folder, check=True, capture_output=True)
    upstream = (
        f'\nUpstreamAuthority "disk" {{ plugin_data {{ cert_file_path = "{house.folder}/ca.pem"\n'
        f'key_file_path = "{house.folder}/ca.key" }} }}'
    )
    disk = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{house.folder}/disk.json" }} }}'
    server = house.server(disk + upstream)
    agent: spire.Agent | None = None
    try:
        server.start()
        agent = house.agent(server)
        agent.start()
        server.create_entry("spiffe://example.org/node", "spiffe://example.org/w1")
        eventually(partial(has, agent, "spiffe://example.org/w1"), "an SVID")
        for number, key_manager in enumerate((house.block(SERVER_BLOCK), disk), start=2):
            assert server.run.end() == 0
            server.key_manager = key_manager + upstream
            server.configure()
            server.start()
            server.create_entry("spiffe://example.org/node", f"spiffe://example.org/w{number}")
            eventually(partial(has, agent, f"spiffe://example.org/w{number}"), "an SVID after the move")
        assert attestations(agent) == 1
    finally:
        end(agent, server)


def attestations(agent: spire.Agent) -> int:
    return agent.run.output().count("Node attestation was successful")


def certificates(server: spire.Server) -> set[str]:
    return set(re.findall(r"-----BEGIN.*?END CERTIFICATE-----", server.bundle(), re.DOTALL))


def has(agent: spire.Agent, spiffe_id: str) -> bool:
    return spiffe_id in agent.ask("api", "fetch", "x509", check=False).stdout


def test_validate_asks_the_plugin_and_not_the_device(house: House) -> None:
    server = house.server(house.block(SERVER_BLOCK).replace("namespace ", "namespaces"))
    done = spire.command(house.programs.server, "validate", "-config", str(server.config))
    assert done.returncode == 1
    assert 'unknown key "namespaces" in pkcs11: did you mean "namespace"?' in done.stderr
    server.key_manager = house.block(SERVER_BLOCK)
    server.configure()
    done = spire.command(house.programs.server, "validate", "-config", str(server.config))
    assert (done.returncode, done.stderr) == (0, "")
    assert not house.labels()


def test_a_wrong_checksum_ends_the_start(house: House) -> None:
    server = house.server(re.sub('checksum = ".*"', f'checksum = "{"0" * 64}"', house.block(SERVER_BLOCK)))
    server.run.start()
    begun = time.monotonic()
    assert server.run.wait() != 0
    assert "checksums did not match" in server.run.output()
    assert time.monotonic() - begun < PATIENCE


def signs(server: spire.Server) -> bool:
    done = server.ask("x509", "mint", "-spiffeID", "spiffe://example.org/minted", check=False)
    return done.returncode == 0


def test_a_module_that_crashes_costs_neither_plugin_nor_server(running: spire.Server) -> None:
    assert signs(running)
    plugin = plugin_of(running)
    workers = descendants(plugin)
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGSEGV)
    eventually(partial(signs, running), "a signature by a new worker")
    assert plugin_of(running) == plugin
    assert not workers & descendants(plugin)


def test_a_token_that_is_away_comes_back_without_a_restart(house: House, running: spire.Server) -> None:
    """SoftHSM's loaded module sees nothing any more once its folder has been away."""
    plugin, begun = plugin_of(running), sorted(house.labels())
    aside = house.hsm.tokens.with_name("aside")
    house.hsm.tokens.rename(aside)
    for worker in descendants(plugin):
        os.kill(worker, signal.SIGKILL)
    for _ in range(3):
        done = running.ask("x509", "mint", "-spiffeID", "spiffe://example.org/minted", check=False)
        assert done.returncode != 0
        assert "code = Unavailable" in done.stderr + running.run.output()
    aside.rename(house.hsm.tokens)
    eventually(partial(signs, running), "a signature after the token's return")
    assert (plugin_of(running), sorted(house.labels())) == (plugin, begun)


def test_a_plugin_that_ends_is_not_started_again(running: spire.Server) -> None:
    first, workers = authority(running), descendants(plugin_of(running))
    os.kill(plugin_of(running), signal.SIGKILL)
    eventually(lambda: "plugin process exited" in running.run.output(), "the host's notice")
    eventually(partial(none_alive, workers), "the end of the plugin's workers")
    assert not signs(running)
    assert running.run.running
    assert running.run.end() == 0
    running.start()
    assert signs(running)
    assert authority(running) == first


def test_a_keys_path_has_one_plugin(house: House, running: spire.Server) -> None:
    second = spire.Server(
        house.folder / "second",
        key_manager=running.key_manager,
        program=house.programs.server,
        environment=running.environment,
    )
    second.run.start()
    assert second.run.wait() != 0
    assert "another process uses " in second.run.output()
    assert signs(running)


def test_an_interpreter_that_is_not_there_is_told_of(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    command = [sys.executable, str(ROOT / "ci" / "keystore-plugins"), "-python", "/nonexistent/python3", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    house.plugins = folder
    server = house.server(house.block(SERVER_BLOCK))
    server.run.start()
    assert server.run.wait() != 0
    assert "no such file or directory" in server.run.output().lower()


def test_a_service_that_systemd_stops_says_goodbye(running: spire.Server) -> None:
    """SIGTERM goes to all of its processes at once (KillMode=control-group)."""
    assert running.run.process is not None
    found = descendants(running.run.process.pid)
    for pid in found:
        os.kill(pid, signal.SIGTERM)
    assert running.run.end() == 0
    eventually(partial(none_alive, found), "the end of the plugin and its workers")
    log = running.run.output()
    assert "Plugin deinitialized" in log
    assert "level=error" not in log
