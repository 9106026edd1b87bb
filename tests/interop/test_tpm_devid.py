"""tpm_devid, each half against its counterpart: ours always, SPIRE's where SPIRE_SERVER_BIN and SPIRE_AGENT_BIN are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from attestors.tpm_devid.verification import fingerprint
from tests.interop.conftest import Pair
from tests.simulators import devids, spire
from tests.simulators.devids import DevId, DevIdCa, provision
from tests.simulators.tpm_manufacturer import Manufacturer, SoldTpm

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

    def refused(self, server: spire.Server, block: str) -> str:
        """What the agent says at its end."""
        agent = self.agent(server, block)
        agent.run.start()
        assert agent.run.wait() == 1
        assert "Traceback" not in agent.run.output() + server.run.output()
        assert "No attested agents found" in server.ask("agent", "list").stdout
        assert devids.is_clean(self.house.tpm)
        return agent.run.output()


@pytest.fixture
def site(house: House, pair: Pair, tmp_path: Path) -> Iterator[Site]:
    made = Site(house, tmp_path, pair, [])
    yield made
    for program in reversed(made.programs):
        if program.process is not None:
            program.end()


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
    server = site.server(devid_ca=site.house.other_ca.root_path)
    said = site.refused(server, site.house.devids["ec-p256"].block(site.house.tpm))
    assert (
        "nodeattestor(tpm_devid): unable to verify DevID signature: verification failed: x509: certificate signed by "
        "unknown authority" in said
    )
    assert "code = InvalidArgument" in said


def test_a_tpm_of_another_manufacturer(site: Site, tmp_path: Path) -> None:
    server = site.server(endorsement_ca=site.house.other_ca.root_path)
    said = site.refused(server, site.house.devids["rsa-2048"].block(site.house.tpm))
    assert (
        "nodeattestor(tpm_devid): cannot verify EK signature: endorsement certificate verification failed: x509: "
        "certificate signed by unknown authority" in said
    )
    assert "code = InvalidArgument" in said


def test_the_manufacturers_root_alone_is_not_enough(site: Site) -> None:
    """No intermediate certificates come with an endorsement certificate, so that its issuer itself has to be trusted."""
    server = site.server(endorsement_ca=site.house.manufacturer.root_path)
    said = site.refused(server, site.house.devids["ec-p256"].block(site.house.tpm))
    assert "cannot verify EK signature" in said


def test_a_devid_key_of_another_tpm(site: Site) -> None:
    server = site.server()
    said = site.refused(server, site.house.devids["ec-p256"].block(site.house.other_tpm))
    assert "unable to start a new TPM session: cannot load DevID key on TPM" in said
    assert devids.is_clean(site.house.other_tpm)


def test_a_certificate_of_another_tpms_key(site: Site, tmp_path: Path) -> None:
    """A DevID that was stolen without its TPM: certificate of the one machine, key of the other."""
    server = site.server()
    stolen = provision(site.house.other_tpm, tmp_path / "d")
    site.house.ca.certify(stolen)
    mixed = site.house.devids["ec-p256"].block(site.house.tpm, devid_cert_path=str(stolen.certificate))
    said = site.refused(server, mixed)
    ours = site.pair.agent == spire.AGENT
    expected = "certificate of another key" if ours else "DevID certificate is of another key"
    assert expected in said
