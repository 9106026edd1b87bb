"""The key stores as plugins of others: of go-plugin's own client in Go, and of the server and agent of SPIRE.

SPIRE_SERVER_BIN and SPIRE_AGENT_BIN name the latter; ours are hosts in any case. Plugins are the one-file ones.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.simulators import softhsm, spire, swtpm
from tests.simulators.once import go_program, made_once
from tests.simulators.spire import PATIENCE, ROOT, eventually

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
RUNBOOK = (ROOT / "docs" / "runbooks" / "go-spire.md").read_text()
SERVER_BLOCK, TPM_BLOCK, AGENT_BLOCK = re.findall(r"```hcl\n(.*?)```", RUNBOOK, re.DOTALL)
SIDES = ("server", "agent")
OTHERS = os.environ.get("SPIRE_SERVER_BIN"), os.environ.get("SPIRE_AGENT_BIN")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> str:
    return go_program(tmp_path_factory, HERE)


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:

    def build(folder: Path) -> None:
        subprocess.run([sys.executable, str(ROOT / "ci" / "keystore-plugins"), str(folder)], check=True)

    return made_once(tmp_path_factory, "plugins", build)


@dataclass(frozen=True)
class Store:
    """A device, the program for it, and the program's settings."""

    program: Path
    data: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    hsm: softhsm.SoftHsm | None = None

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.program.read_bytes()).hexdigest()


@pytest.fixture(params=["pkcs11", "tpm"])
def store(request: pytest.FixtureRequest, plugins: Path, tmp_path: Path) -> Iterator[Store]:
    if request.param == "tpm":
        with swtpm.started(tmp_path / "tpm") as tpm:
            data = f'tcti = "{tpm.tcti}"\nkeys_path = "{tmp_path}/keys"\n'
            yield Store(plugins / "spire-keystore-tpm", data)
            assert not tpm.handles()
        return
    hsm = softhsm.SoftHsm.create(tmp_path / "hsm")
    yield pkcs11(plugins, hsm, tmp_path / "keys.json")


def pkcs11(plugins: Path, hsm: softhsm.SoftHsm, keys_path: Path) -> Store:
    data = (
        f'module_path = "{softhsm.MODULE}"\ntoken_label = "{hsm.label}"\n'
        f'pin_file = "{hsm.pin_file}"\nkeys_path = "{keys_path}"\n'
    )
    environment = {"SOFTHSM2_CONF": str(hsm.configuration)}
    return Store(plugins / "spire-keystore-pkcs11", data, environment, hsm)


def ask(host: str, store: Store, *arguments: str, data: str | None = None) -> list[str]:
    """What the Go host found out."""
    given = ("-command", str(store.program), "-checksum", store.checksum, "-data", data or store.data, *arguments)
    done = spire.command(host, *given, timeout=300, environment=dict(store.environment))
    return done.stdout.splitlines() or [done.stderr]


def keys(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith("keys:")]


@pytest.mark.parametrize("side", SIDES)
def test_every_call_of_a_go_host(host: str, store: Store, side: str) -> None:
    lines = ask(host, store, "-side", side, "-rsa")
    types = ["EC_P256", "EC_P384", "RSA_2048", "RSA_4096"]
    lacking = types[3:] if store.hsm is None else []
    for name in types:
        if name in lacking:
            [line] = [line for line in lines if line.startswith(f"generate {name}")]
            assert line.startswith(f"generate {name} Unimplemented ")
        else:
            assert f"signed with {name}" in lines
    assert {
        "signed 200 at once",
        "refused short digest: InvalidArgument a sha256 digest has 32 bytes, this one has 20",
        'refused sha3: InvalidArgument unsupported hash algorithm "SHA3_256": use SHA256, SHA384 or SHA512',
        "refused no options: InvalidArgument signer opts is required",
        "refused no hash: InvalidArgument hash algorithm is required",
        "refused no id: InvalidArgument key id is required",
        "refused odd salt: InvalidArgument unsupported PSS salt length 7: use -1, the hash's",
        "refused no type: InvalidArgument key type is required: one of ec-p256, ec-p384, rsa-2048, rsa-4096",
        "nobody: true <nil>",
        "somebody: true <nil>",
        "ended by itself: true",
    } <= set(lines)
    assert any(line.startswith("refused no such key: NotFound ") for line in lines)
    first, last = keys(lines)
    assert first == "keys: []"
    assert [name.split("/")[0] for name in last.removeprefix("keys: [").split()] == types[: 4 - len(lacking)]
    again = ask(host, store, "-side", side)
    assert keys(again)[0] == last


def test_go_plugins_mutual_tls(host: str, store: Store) -> None:
    lines = ask(host, store, "-mutual-tls")
    assert "signed 200 at once" in lines
    assert "without its certificate: Unavailable" in lines
    assert lines[-1] == "ended by itself: true"


@pytest.mark.parametrize(
    ("change", "result"),
    [('grace = "1h"', "<nil>"), ('grace = "1 parsec"', "InvalidArgument desc = grace: ")],
    ids=["good", "bad"],
)
def test_a_configuration_that_changes(host: str, store: Store, change: str, result: str) -> None:
    lines = ask(host, store, "-again", f"{store.data}\n{change}\n")
    assert any(line.startswith("again: ") and result in line for line in lines)
    before, after = keys(lines)[1:]
    assert before == after != "keys: []"


def test_bad_settings_are_told_in_one_line(host: str, store: Store) -> None:
    lines = ask(host, store, data='colour = "red"\n' + store.data)
    name = store.program.name.rpartition("-")[2]
    reason = f'plugin_data:1: unknown key "colour" in {name}'
    assert lines[1:] == [f"valid: false [{reason}]", f"error: rpc error: code = InvalidArgument desc = {reason}"]
    lines = ask(host, store, data=re.sub("keys_path.*", "", store.data))
    assert "InvalidArgument desc = " in lines[-1]
    assert "keys_path must be configured: a plugin does not know the data_dir" in lines[-1]


def test_a_wrong_pin_is_tried_once(host: str, plugins: Path, tmp_path: Path) -> None:
    hsm = softhsm.SoftHsm.create(tmp_path / "hsm")
    store = pkcs11(plugins, hsm, tmp_path / "keys.json")
    hsm.write_pin("1111\n")
    for _ in range(4):
        assert "PermissionDenied desc = the token refused the PIN in " in ask(host, store)[-1]
    hsm.write_pin(f"{softhsm.USER_PIN}\n")
    assert "signed 200 at once" in ask(host, store)


def test_one_changed_byte_is_refused(host: str, store: Store, tmp_path: Path) -> None:
    changed = tmp_path / store.program.name
    content = bytearray(store.program.read_bytes())
    at = content.index(b"fingerprint")
    content[at] ^= 1
    changed.write_bytes(content)
    changed.chmod(0o755)
    given = ("-command", str(changed), "-checksum", store.checksum, "-data", store.data)
    done = spire.command(host, *given, environment=dict(store.environment))
    assert done.stdout == "error: checksums did not match\n"


def children(pid: int) -> set[int]:
    return {int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()}


def descendants(pid: int) -> set[int]:
    found = children(pid)
    return found.union(*map(descendants, found))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def none_alive(pids: set[int]) -> bool:
    return not any(map(alive, pids))


def test_nothing_is_left_of_a_host_that_is_killed(host: str, store: Store) -> None:
    given = ("-command", str(store.program), "-checksum", store.checksum, "-data", store.data, "-stay")
    with subprocess.Popen(
        [host, *given], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **store.environment}
    ) as process:
        assert process.stdout is not None
        while b"staying" not in process.stdout.readline():
            assert process.poll() is None
        found = descendants(process.pid)
        [plugin] = children(process.pid)
        workers = found - {plugin}
        assert workers  # they ask the device, with code from the plugin's copy of its file
        for worker in workers:
            assert f"\0PYTHONPATH=/proc/{plugin}/fd/".encode() in Path(f"/proc/{worker}/environ").read_bytes()
        process.kill()
    eventually(partial(none_alive, found), "the end of all that the host started")


def test_a_plugin_outlasts_its_file(plugins: Path, host: str, tmp_path: Path) -> None:
    hsm = softhsm.SoftHsm.create(tmp_path / "hsm")
    store = pkcs11(plugins, hsm, tmp_path / "keys.json")
    mine = tmp_path / store.program.name
    shutil.copy(store.program, mine)
    log = tmp_path / "log"
    given = ("-command", str(mine), "-data", store.data, "-again", f'{store.data}\ngrace = "1h"', "-pause", "3s")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [host, *given], stdout=output, stderr=subprocess.DEVNULL, env={**os.environ, **store.environment}
        ) as process,
    ):
        eventually(lambda: b"valid: true" in log.read_bytes(), "the plugin's configuration")
        mine.write_bytes(b"#!/bin/false\n")
        assert process.wait(PATIENCE) == 0
    assert "again: <nil>" in log.read_text().splitlines()


# Servers and agents


@dataclass(frozen=True)
class Programs:
    server: str
    agent: str


CHOSEN = {"ours": Programs(spire.SERVER, spire.AGENT)}
if OTHERS[0] and OTHERS[1]:
    CHOSEN["others"] = Programs(OTHERS[0], OTHERS[1])


@dataclass
class House:
    """A folder with a token, and the runbook's blocks put into force there."""

    folder: Path
    plugins: Path
    programs: Programs
    hsm: softhsm.SoftHsm
    tcti: str = ""

    def block(self, text: str) -> str:
        """The runbook's own, with places that a test can have."""
        name = "tpm" if "tcti" in text else "pkcs11"
        checksum = hashlib.sha256((self.plugins / f"spire-keystore-{name}").read_bytes()).hexdigest()
        for written, here in {
            "/usr/lib/spire/plugins": str(self.plugins),
            "CHECKSUM": checksum,
            "/usr/lib/softhsm/libsofthsm2.so": softhsm.MODULE,
            "/etc/spire/pin": str(self.hsm.pin_file),
            "/var/lib/spire": str(self.folder),
            "device:/dev/tpmrm0": self.tcti,
        }.items():
            text = text.replace(written, here)
        return text

    def server(self, key_manager: str) -> spire.Server:
        return spire.Server(
            self.folder / "server",
            key_manager=key_manager,
            program=self.programs.server,
            environment={"SOFTHSM2_CONF": str(self.hsm.configuration)},
        )

    def agent(self, server: spire.Server) -> spire.Agent:
        return spire.Agent(
            self.folder / "agent",
            server,
            token=server.join_token("spiffe://example.org/node"),
            key_manager=self.block(AGENT_BLOCK),
            program=self.programs.agent,
            environment={"SOFTHSM2_CONF": str(self.hsm.configuration)},
        )

    def labels(self) -> list[str]:
        return re.findall(r"label: +(\S.*)", self.hsm.tool("--list-objects", "--type", "privkey"))


@pytest.fixture(params=list(CHOSEN))
def house(request: pytest.FixtureRequest, plugins: Path, tmp_path: Path) -> House:
    return House(tmp_path, plugins, CHOSEN[str(request.param)], softhsm.SoftHsm.create(tmp_path / "hsm"))


def authority(server: spire.Server, kind: str = "active", api: str = "x509") -> str:
    return str(server.ask_json("localauthority", api, "show")[kind]["authority_id"])


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


def agent_of(agent: spire.Agent | None) -> spire.Agent:
    assert agent is not None
    return agent


def pids_of(program: spire.Program) -> set[int]:
    assert program.process is not None
    return descendants(program.process.pid)


def end(*programs: spire.Server | spire.Agent | None) -> None:
    for program in programs:
        if program is not None and program.run.process is not None:
            program.run.end()


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
    if house.programs.server == spire.SERVER:
        assert done.returncode == 1
        assert 'unknown key "namespaces" in pkcs11: did you mean "namespace"?' in done.stderr
    assert not house.labels()


def test_a_wrong_checksum_ends_the_start(house: House) -> None:
    server = house.server(re.sub('checksum = ".*"', f'checksum = "{"0" * 64}"', house.block(SERVER_BLOCK)))
    server.run.start()
    begun = time.monotonic()
    assert server.run.wait() != 0
    assert "checksums did not match" in server.run.output()
    assert time.monotonic() - begun < PATIENCE


@pytest.fixture
def running(house: House) -> Iterator[spire.Server]:
    server = house.server(house.block(SERVER_BLOCK))
    try:
        server.start()
        yield server
    finally:
        end(server)


def plugin_of(server: spire.Server) -> int:
    """Only the server's own child: a plugin with a checksum may show as /proc/self/fd/N."""
    assert server.run.process is not None
    [pid] = children(server.run.process.pid)
    return pid


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
