"""Plugins on the published SDK, in Go, hosted by our programs, and by another's beside them where they are named."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from agent.catalog import FACADES as AGENT
from agent.workload_attestation import WorkloadAttestation
from generated.spiffe.broker.api_pb2 import WorkloadPIDReference
from identity.selectors import Selector
from keystores.errors import NotFound
from operations.errors import ConfigurationError, Unsupported
from operations.hcl import Body, Position
from plugins.blocks import PluginBlock
from plugins.external import metrics
from plugins.external.loading import ExternalPlugins
from plugins.keymanager import Hash, KeyType, Scheme
from plugins.svidstore import StoredX509Svid
from plugins.workloadattestor import PID_REFERENCE
from server.catalog import FACADES as SERVER
from tests.interop.conftest import Pair
from tests.simulators import spire
from tests.simulators.once import go_program
from tests.simulators.spire import eventually
from transport.peer import Process
from transport.status import RpcError

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
ALGORITHMS = {Hash.SHA256: hashes.SHA256(), Hash.SHA384: hashes.SHA384(), Hash.SHA512: hashes.SHA512()}
BY_REFERENCE = "by:type.googleapis.com/spiffe.broker.WorkloadPIDReference"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return go_program(tmp_path_factory, HERE)


class Loader:
    """Loads the Go program's plugins into this process."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._sets = {
            side: ExternalPlugins(facades, lambda: (metrics.service(()),)) for side, facades in _SIDES.items()
        }

    async def load(self, kind: str, word: str, data: str | None = None, side: str = "agent") -> Any:
        place = Position("s.conf", 1)
        block = PluginBlock(
            type=kind,
            name="go",
            data=Body((), place, ""),
            position=place,
            command=self._program,
            args=(word,),
            checksum=hashlib.sha256(Path(self._program).read_bytes()).hexdigest(),  # noqa: ASYNC240
            data_text=data,
        )
        return await self._sets[side].load(block, "example.org")

    async def close(self) -> None:
        for each in self._sets.values():
            await each.close()


_SIDES = {"server": SERVER, "agent": {**AGENT, "SVIDStore": "plugins.external.svidstore:ExternalSvidStore"}}


@pytest.fixture
async def loader(program: str) -> AsyncIterator[Loader]:
    made = Loader(program)
    yield made
    await made.close()


@pytest.mark.parametrize("side", _SIDES)
async def test_a_key_manager_signs_in_every_scheme(loader: Loader, side: str) -> None:
    manager = await loader.load("KeyManager", f"{side}-keymanager", side=side)
    for key_type in KeyType:
        key = await manager.generate(key_type.value, key_type)
        assert (key.id, key.key_type) == (key_type.value, key_type)
        for scheme in (Scheme(hash_, pss) for hash_ in Hash for pss in (False, True)):
            if scheme.pss and key_type.value.startswith("ec"):
                continue
            digest = hashlib.new(scheme.hash.value, b"message").digest()
            verify(key.public_key, await key.sign(digest, scheme), digest, scheme)
    assert {key.id for key in await manager.list()} == {key_type.value for key_type in KeyType}
    assert (await manager.get("ec-p256")).public_key != (await manager.generate("ec-p256", KeyType.EC_P256)).public_key
    with pytest.raises(NotFound, match=r'keymanager\(go\): key "nobody" not found'):
        await manager.get("nobody")


def verify(public_key: bytes, signature: bytes, digest: bytes, scheme: Scheme) -> None:
    key = serialization.load_der_public_key(public_key)
    algorithm = ALGORITHMS[scheme.hash]
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, digest, ec.ECDSA(Prehashed(algorithm)))
    else:
        assert isinstance(key, rsa.RSAPublicKey)
        pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
        key.verify(signature, digest, pss if scheme.pss else padding.PKCS1v15(), Prehashed(algorithm))


async def test_workload_attestors(loader: Loader) -> None:
    process = Process(pid=1, uid=0, gid=0, started=1)
    by_pid = await loader.load("WorkloadAttestor", "bare-workloadattestor")
    assert await by_pid.attest(process) == [Selector("go", "every:process"), Selector("go", "by:pid")]
    by_reference = await loader.load("WorkloadAttestor", "reference-workloadattestor")
    assert await by_reference.attest(process) == [Selector("go", BY_REFERENCE)]


async def test_a_workload_attestor_for_a_broker(loader: Loader) -> None:
    attestation = WorkloadAttestation([await loader.load("WorkloadAttestor", "reference-workloadattestor")])
    found = await attestation.attest_reference("example.org/Reference", b"\x01\x02", "spiffe://example.org/broker")
    assert found == {
        Selector("go", "by:example.org/Reference"),
        Selector("go", "for:spiffe://example.org/broker"),
        Selector("go", "value:0102"),
    }
    by_pid = WorkloadAttestation([await loader.load("WorkloadAttestor", "bare-workloadattestor")])
    with pytest.raises(Unsupported, match="no workload attestor handled reference"):
        await by_pid.attest_reference("example.org/Reference", b"", "spiffe://example.org/broker")
    value = WorkloadPIDReference(pid=os.getpid()).SerializeToString()
    found = await by_pid.attest_reference(PID_REFERENCE, value, "spiffe://example.org/broker")
    assert found == {Selector("go", "every:process"), Selector("go", "by:pid")}


async def test_an_svid_store(loader: Loader) -> None:
    store = await loader.load("SVIDStore", "svidstore")
    await store.put(StoredX509Svid("spiffe://example.org/w", [b"leaf"], b"key", [b"root"], 1, {}), ["a:b"])
    await store.delete(["a:b"])
    with pytest.raises(RpcError) as error:
        await store.delete(["a:b"])
    assert error.value.message == "svidstore(go): svidstore: nothing is stored there"


@pytest.mark.parametrize(
    ("word", "data", "fault"),
    [
        (
            "workloadattestor",
            "refuse = true",
            'failed to configure plugin "go": rpc error: code = InvalidArgument desc = this configuration is refused',
        ),
        ("bare-workloadattestor", "a = 1", "no supported configuration interface found"),
        ("svidstore", None, "plugin exited before we could connect: exit status 1"),
        ("nothing", None, 'exit status 3; it said "no plugin has the name nothing"'),
    ],
)
async def test_plugins_that_do_not_load(loader: Loader, word: str, data: str | None, fault: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        await loader.load("WorkloadAttestor", word, data)
    assert fault in str(error.value)


def test_a_server_below_and_beside_plugins(pair: Pair, program: str, tmp_path: Path) -> None:
    """Its authority is minted by one, and its credentials composed by another."""
    blocks = "".join(
        f'{kind} "go" {{ plugin_cmd = "{program}"\n plugin_args = ["{kind.lower()}"]\n plugin_data {{ }} }}\n'
        for kind in ("UpstreamAuthority", "CredentialComposer")
    )
    server = spire.Server(tmp_path, program=pair.server, key_manager=spire.MEMORY + blocks)
    try:
        server.start()
        minted = server.ask("x509", "mint", "-spiffeID", "spiffe://example.org/w").stdout
        certificates = x509.load_pem_x509_certificates(
            "".join(re.findall("-+BEGIN CERT.*?END CERT[^-]*-+\n", minted, re.DOTALL)).encode()
        )
        names = certificates[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["composed.example.org"]
        token = server.ask("jwt", "mint", "-spiffeID", "spiffe://example.org/w", "-audience", "a").stdout.strip()
        payload = token.split(".")[1]
        assert b'"composed":"in Go"' in base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        eventually(lambda: server.ask("bundle", "show").stdout.count("BEGIN CERT") == 2, "the second root")
        assert server.run.end() == 0
        assert "Subscription ended" in server.run.output()
    finally:
        if server.run.process is not None:
            server.run.end()


@pytest.fixture
def hosted(pair: Pair, program: str, tmp_path: Path) -> Iterator[tuple[spire.Server, spire.Agent, Path]]:
    """A server and an agent of which all plugins that can be are in Go; and the file with the server's data."""
    checksum = hashlib.sha256(Path(program).read_bytes()).hexdigest()
    data = tmp_path / "data"
    data.write_text("x = 1\n")

    def block(kind: str, name: str, word: str, more: str = "") -> str:
        return f'{kind} "{name}" {{ plugin_cmd = "{program}"\n plugin_args = ["{word}"]\n {more} }}\n'

    keys = block(
        "KeyManager", "gokeys", "server-keymanager", f'plugin_checksum = "{checksum}"\n plugin_data {{ a = 1 }}'
    )
    attestor = block("NodeAttestor", "go", "server-nodeattestor", f'plugin_data_file = "{data}"')
    server = spire.Server(tmp_path / "server", program=pair.server, key_manager=keys + attestor)
    agent: spire.Agent | None = None
    try:
        server.start()
        workload = block("WorkloadAttestor", "gopid", "workloadattestor", "plugin_data { }") + block(
            "WorkloadAttestor", "goref", "reference-workloadattestor"
        )
        agent = spire.Agent(
            tmp_path / "agent",
            server,
            program=pair.agent,
            key_manager=block("KeyManager", "gokeys", "agent-keymanager") + workload,
        )
        own = 'NodeAttestor "join_token" { plugin_data {} }'
        text = agent.config.read_text()
        assert own in text
        agent.config.write_text(text.replace(own, block("NodeAttestor", "go", "agent-nodeattestor")))
        agent.start()
        yield server, agent, data
    finally:
        for each in (agent, server):
            if each is not None and each.run.process is not None:
                each.run.end()


def test_everything_in_plugins(hosted: tuple[spire.Server, spire.Agent, Path]) -> None:
    server, agent, data = hosted
    parent = "spiffe://example.org/spire/agent/go/one"
    server.create_entry(parent, "spiffe://example.org/w", selectors=["gopid:every:process", f"goref:{BY_REFERENCE}"])
    assert "spiffe://example.org/w" in agent.fetch()
    (node,) = server.ask_json("agent", "list")["agents"]
    assert node["selectors"] == [{"type": "go", "value": "name:one"}]
    assert node["can_reattest"]

    log = server.run.output()
    assert re.search(r'msg="Asked for the agent" code=NotFound .* text="no such agent"', log)
    assert re.search(
        r'msg="Asked for the identity" authorities=1 certificates=1 .* key=true .* trust_domain=example', log
    )
    assert re.search(r'msg=Told configuration="a = 1" external=true plugin_name=gokeys .* subsystem_name=gokeys', log)
    eventually(lambda: "Attestation ended" in agent.run.output(), "the end of the attestation's stream")

    data.write_text("x = 2\n")
    assert server.run.process is not None
    server.run.process.send_signal(signal.SIGUSR1)
    eventually(lambda: 'msg="Plugin reconfigured"' in server.run.output(), "the plugin's new configuration")
    assert r'msg=Told configuration="x = 2\n"' in server.run.output()

    for program, count in ((agent.run, 4), (server.run, 2)):
        pids = re.findall(r'msg="plugin started" .* pid=(\d+)', program.output())
        assert len(pids) == count
        assert program.end() == 0
        assert program.output().count('msg="Plugin unloaded" external=true') == count
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_plugins_end_with_a_server_that_is_killed(hosted: tuple[spire.Server, spire.Agent, Path]) -> None:
    server, agent, _ = hosted
    for program in (agent.run, server.run):
        pids = re.findall(r'msg="plugin started" .* pid=(\d+)', program.output())
        assert pids
        program.end(signal.SIGKILL)
        eventually(partial(all_gone, pids), "the plugins' end")


def all_gone(pids: Sequence[str]) -> bool:
    return not any(alive(pid) for pid in pids)


def alive(pid: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_wrong_checksum_ends_the_start_in_one_line(program: str, tmp_path: Path) -> None:
    keys = (
        f'KeyManager "gokeys" {{ plugin_cmd = "{program}"\n plugin_args = ["server-keymanager"]\n'
        f'  plugin_checksum = "{"00" * 32}" }}'
    )
    server = spire.Server(tmp_path / "server", key_manager=keys)
    server.run.start()
    assert server.run.wait() == 1
    (line,) = [line for line in server.run.output().splitlines() if "Fatal run error" in line]
    assert "checksums did not match" in line
    assert "Traceback" not in server.run.output()
    assert sys.executable not in line
