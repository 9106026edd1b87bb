"""DevIDs as docs/runbooks/tpm-devid.md has it: made, certified, believed; and what its commands refuse."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.simulators import ceremony, devids, tpm_resource_manager
from tests.simulators.devids import DevId, DevIdCa, provision
from tests.simulators.spire import AGENT, Agent, Program, Server, command
from tests.simulators.swtpm import started
from tests.simulators.tpm_manufacturer import Manufacturer, SoldTpm

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbooks" / "tpm-devid.md"
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HCL = re.compile(r"^```hcl\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def manufacturer(tmp_path_factory: pytest.TempPathFactory) -> Manufacturer:
    return Manufacturer(tmp_path_factory.mktemp("m"))


@pytest.fixture
def tpm(tmp_path: Path, manufacturer: Manufacturer) -> Iterator[SoldTpm]:
    with manufacturer.started(tmp_path / "t") as made:
        yield made


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    running: list[Program] = []
    yield running
    for program in reversed(running):
        if program.process is not None:
            program.end()


def test_the_runbook(tmp_path: Path, tpm: SoldTpm, manufacturer: Manufacturer, programs: list[Program]) -> None:
    """Its commands, one by one, and then a server and an agent by its blocks."""
    changes = {
        "spire-agent tpm devid provision": f"{AGENT} tpm devid provision -tcti {tpm.tcti}",
        "/etc/spire": str(tmp_path),
    }
    (tmp_path / "endorsement-ca.pem").write_bytes(manufacturer.intermediate_path.read_bytes())
    environment = {**os.environ, "TPM2TOOLS_TCTI": tpm.tcti}
    for block in SHELL.findall(RUNBOOK.read_text()):
        ceremony.run(block, tmp_path, environment, changes)
    for_server, for_agent = (block.replace("/etc/spire", str(tmp_path)) for block in HCL.findall(RUNBOOK.read_text()))

    server = Server(tmp_path / "server", node_attestor=for_server)
    programs.append(server.run)
    server.start()
    last = 'devid.pub.blob"\n'
    assert last in for_agent
    block = for_agent.replace(last, f'{last}        tpm_device_path = "{tpm.path}"\n')
    agent = Agent(tmp_path / "agent", server, node_attestor=block)
    programs.append(agent.run)
    agent.start()
    # An alias by the selector that stays when the certificate is a new one.
    alias = "spiffe://example.org/machines/node-1"
    server.create_entry("spiffe://example.org/spire/server", alias, selectors=["tpm_devid:subject:cn:node-1"])
    server.create_entry(alias, "spiffe://example.org/workload")
    assert "spiffe://example.org/workload" in agent.fetch()
    assert devids.is_clean(tpm)


def test_an_agent_with_all_its_keys_in_the_tpm(
    tmp_path: Path, tpm: SoldTpm, manufacturer: Manufacturer, programs: list[Program]
) -> None:
    """Its own key by KeyManager "tpm", behind a resource manager, as /dev/tpmrm0 is one."""
    ca = DevIdCa(tmp_path / "ca")
    devid = ca.certify(provision(tpm, tmp_path / "d"))
    paths = f'devid_ca_path = "{ca.root_path}"\n endorsement_ca_path = "{manufacturer.intermediate_path}"'
    server = Server(tmp_path / "server", node_attestor=f'NodeAttestor "tpm_devid" {{ plugin_data {{ {paths} }} }}')
    programs.append(server.run)
    server.start()
    with tpm_resource_manager.before(tpm) as kernel:
        keys = f'tcti = "{kernel.client("keys")}"\n keys_path = "{tmp_path}/keys"'
        path = kernel.client("devid").removeprefix("swtpm:path=")
        agent = Agent(
            tmp_path / "agent",
            server,
            node_attestor=devid.block(tpm, tpm_device_path=path),
            key_manager=f'KeyManager "tpm" {{ plugin_data {{ {keys} }} }}',
        )
        programs.append(agent.run)
        agent.start()
        assert "tpm_devid" in server.ask("agent", "list").stdout
        assert agent.run.end() == 0
    assert devids.is_clean(tpm)


def test_what_is_made(tmp_path: Path, tpm: SoldTpm) -> None:
    devid = provision(tpm, tmp_path / "d", more=("-serialNumber", "4711"))
    assert devid.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in devid.folder.iterdir()} == {0o600}
    request = x509.load_pem_x509_csr(devid.request.read_bytes())
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "2.5.4.5=4711,CN=node-1,O=Example"
    [name] = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert isinstance(name, x509.OtherName)
    assert name.type_id.dotted_string == "1.3.6.1.5.5.7.8.4"
    assert name.value == bytes.fromhex("300d060567810501020404") + b"4711"
    assert devids.is_clean(tpm)


def test_it_is_idempotent_and_overwrites_nothing(tmp_path: Path, tpm: SoldTpm) -> None:
    folder = tmp_path / "d"
    devid = provision(tpm, folder)
    made = {path: path.read_bytes() for path in folder.iterdir()}
    assert provision(tpm, folder) == devid
    assert {path: path.read_bytes() for path in folder.iterdir()} == made
    for more in (("-subject", "CN=node-2"), ("-keyType", "rsa-2048"), ("-serialNumber", "1")):
        refused = again(tpm, folder, *more)
        assert f"{folder} has a DevID already, and nothing is overwritten" in refused
    # Cut short before the request was written, or the request taken away: the key is the one that is there.
    devid.request.unlink()
    assert "is a key of type ec-p256" in again(tpm, folder, "-keyType", "rsa-2048")
    provision(tpm, folder)
    first, second = (x509.load_pem_x509_csr(content) for content in (made[devid.request], devid.request.read_bytes()))
    assert first.public_key() == second.public_key()
    devid.public.unlink()
    assert "is there without the others of a DevID" in again(tpm, folder)
    assert devid.private.read_bytes() == made[devid.private]


def again(tpm: SoldTpm, folder: Path, *more: str) -> str:
    """What a refusal says, on one line."""
    done = command(AGENT, "tpm", "devid", "provision", "-tcti", tpm.tcti, "-out", str(folder), "-subject",
                   "CN=node-1,O=Example", *more)  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_command_lines_that_cannot_be_used(tmp_path: Path, tpm: SoldTpm) -> None:
    open_to_all = tmp_path / "password"
    open_to_all.write_text("secret\n")
    open_to_all.chmod(0o644)
    folder = tmp_path / "d"
    for more, words in (
        (("-keyType", "rsa-4096"), '-keyType: "rsa-4096" is none of ec-p256, rsa-2048'),
        (("-subject", "node-1"), '-subject: "node-1" is no name as in CN=node-1,O=Example'),
        (("-serialNumber", "ü"), '-serialNumber: "ü" is no serial number'),
        (("-passwordFile", str(open_to_all)), "the password is open to others (mode 0644): set its mode to 0600"),
        (("-tcti", str(tmp_path / "none")), "cannot make a DevID: cannot open TPM: there is no TPM at"),
        (("-tcti", "no such/tcti"), "is no TCTI"),
    ):
        assert words in again(tpm, folder, *more)
    assert not folder.exists()
    done = command(AGENT, "tpm", "devid", "provision")
    assert (done.returncode, done.stdout) == (1, "")
    assert "-out is required" in done.stderr


def test_an_owner_with_a_password(tmp_path: Path) -> None:
    owner = tmp_path / "owner"
    owner.touch(0o600)
    owner.write_text("secret\n")
    with started(tmp_path / "t") as tpm:
        tpm.tool("changeauth", "-c", "o", "secret")
        done = command(AGENT, "tpm", "devid", "provision", "-tcti", tpm.tcti, "-out", str(tmp_path / "d"))
        assert done.returncode == 1
        assert "cannot make the storage key: the TPM refused the authorization" in done.stderr
        devid: DevId = provision(tpm, tmp_path / "d", more=("-ownerPasswordFile", str(owner)))
        assert devid.request.exists()
        assert tpm.handles() == []
