"""tpm_devid, each half against its counterpart: ours always, SPIRE's where SPIRE_SERVER_BIN and SPIRE_AGENT_BIN are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from agent.attest import attest
from agent.server_client import ServerAddress
from attestors.tpm_devid import messages
from attestors.tpm_devid.messages import AttestationRequest, ChallengeRequest
from attestors.tpm_devid.verification import fingerprint
from identity.bundles import from_pem
from identity.spiffeid import TrustDomain
from keystores import memory
from operations import logs
from plugins.context import PluginContext
from plugins.nodeattestor import Attestation
from tests.interop.conftest import Pair
from tests.simulators import devids, spire
from tests.simulators.devids import DevId, DevIdCa, provision
from tests.simulators.soft_devid import DEVID_ROOT, MANUFACTURER, SoftDevId
from tests.simulators.tpm_manufacturer import Manufacturer, SoldTpm
from transport.status import RpcError

KEY_TYPES = ("ec-p256", "rsa-2048")


@dataclass
class House:
    """A manufacturer's TPM, the operator's CA, and the DevIDs of both kinds in that TPM; another TPM and another CA."""

    manufacturer: Manufacturer
    tpm: SoldTpm
    other_tpm: SoldTpm
    ca: DevIdCa
    other_ca: DevIdCa
    devids: dict[str, DevId]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("d")
    manufacturer = Manufacturer(folder / "m")
    with manufacturer.started(folder / "1") as tpm, manufacturer.started(folder / "2") as other:
        ca = DevIdCa(folder / "ca")
        made = {kind: ca.certify(provision(tpm, folder / kind, kind)) for kind in KEY_TYPES}
        yield House(manufacturer, tpm, other, ca, DevIdCa(folder / "other"), made)


@dataclass
class Site:
    house: House
    folder: Path
    pair: Pair
    programs: list[spire.Program]

    def server(self, devid_ca: Path | None = None, endorsement_ca: Path | None = None) -> spire.Server:
        block = f"""NodeAttestor "tpm_devid" {{ plugin_data {{
            devid_ca_path = "{devid_ca or self.house.ca.root_path}"
            endorsement_ca_path = "{endorsement_ca or self.house.manufacturer.intermediate_path}"
        }} }}"""
        made = spire.Server(
            self.folder / "server", program=self.pair.server, node_attestor=block, settings='agent_ttl = "30s"'
        )
        self.programs.append(made.run)
        made.start()
        return made

    def agent(self, server: spire.Server, block: str) -> spire.Agent:
        made = spire.Agent(self.folder / "agent", server, program=self.pair.agent, node_attestor=block)
        self.programs.append(made.run)
        return made

    def refused(self, server: spire.Server, block: str, words: str) -> None:
        """The agent says so, and tries again for a minute; that much time nobody has here."""
        agent = self.agent(server, block)
        agent.run.start()
        spire.eventually(lambda: words in agent.run.output(), f"{words} in {agent.run.output()[-2000:]}")
        agent.run.end()
        assert "Traceback" not in agent.run.output() + server.run.output()
        assert "No attested agents found" in server.ask("agent", "list").stdout
        assert devids.is_clean(self.house.tpm)


@pytest.fixture
def site(house: House, pair: Pair, tmp_path: Path) -> Iterator[Site]:
    made = Site(house, tmp_path, pair, [])
    yield made
    for program in reversed(made.programs):
        if program.process is not None:
            program.end()


class SoftAgent:
    """An agent half whose TPM is Python."""

    name = "tpm_devid"

    def __init__(self, node: SoftDevId, request: AttestationRequest) -> None:
        self._node = node
        self.payload = messages.encode(request)

    async def begin(self) -> Attestation:
        return self

    async def respond(self, challenge: bytes) -> bytes:
        asked = messages.decode(ChallengeRequest, challenge, messages.ANSWER_LIMIT)
        return messages.encode(self._node.respond(asked))


async def attest_softly(server: spire.Server, node: SoftDevId, request: AttestationRequest) -> str:
    """The agent's ID."""
    keys = await memory.load(memory.Configuration(), PluginContext("example.org", None, logs.get()))
    address = ServerAddress("127.0.0.1", server.port, TrustDomain("example.org"))
    found = await attest(address, SoftAgent(node, request), keys, None, from_pem(server.bundle().encode()))
    return str(found.svid.spiffe_id)


async def test_a_tpm_of_python_says_what_a_real_one_does(site: Site, tmp_path: Path) -> None:
    """Every server believes it: what unit tests alter is the real thing. Ours refuses what is mixed up."""
    devid_ca, endorsement_ca = tmp_path / "d.pem", tmp_path / "e.pem"
    devid_ca.write_bytes(DEVID_ROOT.pem)
    endorsement_ca.write_bytes(MANUFACTURER.pem)
    server = site.server(devid_ca=devid_ca, endorsement_ca=endorsement_ca)
    node, other = SoftDevId(), SoftDevId()
    assert fingerprint(node.chain[0].certificate) in await attest_softly(server, node, node.request())
    if site.pair.server == spire.SERVER:
        mixed = msgspec.structs.replace(node.request(), devid_cert=other.request().devid_cert)
        with pytest.raises(RpcError, match="the DevID certificate is of another key than the one that the AK"):
            await attest_softly(server, other, mixed)


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_a_node_with_a_devid(site: Site, kind: str) -> None:
    """It is named by its certificate, has its selectors, and attests at its renewals; its TPM stays clean."""
    server = site.server()
    devid = site.house.devids[kind]
    agent = site.agent(server, devid.block(site.house.tpm))
    agent.start()
    [leaf, intermediate] = x509.load_pem_x509_certificates(devid.certificate.read_bytes())
    name = f"spiffe://example.org/spire/agent/tpm_devid/{fingerprint(leaf)}"
    shown = server.ask("agent", "show", "-spiffeID", name).stdout
    for selector in (
        "tpm_devid:subject:cn:node-1",
        "tpm_devid:issuer:cn:devid-intermediate",
        f"tpm_devid:ca:fingerprint:{fingerprint(intermediate)}",
        f"tpm_devid:ca:fingerprint:{fingerprint(site.house.ca.root.certificate)}",
    ):
        assert selector in shown
    assert f"fingerprint:{fingerprint(leaf)}" not in shown
    assert "Can re-attest     : true" in shown
    assert devids.is_clean(site.house.tpm)
    server.create_entry(name, "spiffe://example.org/workload")
    assert "spiffe://example.org/workload" in agent.fetch()
    spire.eventually(lambda: "Successfully reattested node" in agent.run.output(), "a renewal")
    assert agent.healthy()
    spire.eventually(lambda: devids.is_clean(site.house.tpm), "a clean TPM")


def test_a_devid_of_another_ca(site: Site) -> None:
    site.refused(
        site.server(devid_ca=site.house.other_ca.root_path),
        site.house.devids["ec-p256"].block(site.house.tpm),
        "code = InvalidArgument desc = nodeattestor(tpm_devid): unable to verify DevID signature: verification failed: "
        "x509: certificate signed by unknown authority",
    )


def test_a_tpm_of_another_manufacturer(site: Site) -> None:
    site.refused(
        site.server(endorsement_ca=site.house.other_ca.root_path),
        site.house.devids["rsa-2048"].block(site.house.tpm),
        "code = InvalidArgument desc = nodeattestor(tpm_devid): cannot verify EK signature: endorsement certificate "
        "verification failed: x509: certificate signed by unknown authority",
    )


def test_the_manufacturers_root_alone_is_not_enough(site: Site) -> None:
    """No intermediate certificates come with an endorsement certificate, so that its issuer itself has to be there."""
    site.refused(
        site.server(endorsement_ca=site.house.manufacturer.root_path),
        site.house.devids["ec-p256"].block(site.house.tpm),
        "nodeattestor(tpm_devid): cannot verify EK signature",
    )


def test_a_devid_key_of_another_tpm(site: Site) -> None:
    site.refused(
        site.server(),
        site.house.devids["ec-p256"].block(site.house.other_tpm),
        "unable to start a new TPM session: cannot load DevID key on TPM",
    )
    assert devids.is_clean(site.house.other_tpm)


def test_a_certificate_of_another_tpms_key(site: Site, tmp_path: Path) -> None:
    """A DevID that was stolen without its TPM: certificate of the one machine, key of the other."""
    stolen = site.house.ca.certify(provision(site.house.other_tpm, tmp_path / "d"))
    ours = site.pair.agent == spire.AGENT
    site.refused(
        site.server(),
        site.house.devids["ec-p256"].block(site.house.tpm, devid_cert_path=str(stolen.certificate)),
        "is a certificate of another key than" if ours else "the DevID certificate is of another key than the one",
    )


def test_a_password_that_is_wrong_is_tried_once(site: Site) -> None:
    """By our agent; SPIRE's tries until the TPM locks."""
    house = site.house
    if site.pair.agent != spire.AGENT:
        return
    key_password = site.folder / "password"
    key_password.touch(0o600)
    key_password.write_text("right\n")
    devid = house.ca.certify(provision(house.tpm, site.folder / "d", more=("-passwordFile", str(key_password))))
    server = site.server()
    site.refused(server, devid.block(house.tpm, devid_password="wrong"), "it was tried once and is not tried again")
    [agent] = [program for program in site.programs if program.command[0] == site.pair.agent]
    assert agent.output().count("the TPM refused the authorization") == 1
    again = site.agent(server, devid.block(house.tpm, devid_password="right"))
    again.start()
    assert "tpm_devid" in server.ask("agent", "list").stdout
