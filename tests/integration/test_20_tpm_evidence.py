"""From a golden machine's evidence to a policy that other boots fail: what an operator does, with the programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_17_tpm_node import Site, known, said, shown
from tests.simulators import tpm_resource_manager
from tests.simulators.booted import Boot, Booted
from tests.simulators.spire import Server, command, eventually
from tests.simulators.tpm_manufacturer import Manufacturer, SoldTpm


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    maker = Manufacturer(tmp_path / "maker")
    with maker.started(tmp_path / "tpm") as tpm:
        machine = Booted(tpm, tmp_path / "securityfs")
        machine.start(Boot.of())
        made = Site(tmp_path, maker, machine, [])
        yield made
        for program in reversed(made.programs):
            if program.process is not None:
                program.end()


def policy(server: Server, verb: str, *arguments: str) -> str:
    done = command(server.program, "tpm", "policy", verb, *arguments)
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


def test_a_policy_is_learned_of_evidence_and_tried_on_what_it_refused(site: Site) -> None:
    evidence, learned, written = (site.folder / name for name in ("evidence", "learned.hcl", "policy.hcl"))
    evidence.mkdir(mode=0o700)
    server = site.server(f'{site.policy()}\n evidence_path = "{evidence}"\n ima = true')
    with tpm_resource_manager.before(site.machine.tpm) as kernel:
        agent = site.agent(server, kernel.client("agent"), 'reattest_interval = "2s"')
        agent.start()
        kept = evidence / f"{known(server)[-64:]}.json"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert policy(server, "learn", "-evidence", str(kept), "-policy", str(learned)).startswith("0\n")
        written.write_text(learned.read_text())
        eventually(lambda: "tpm:ima:golden" in shown(server), "a selector of the policy that was learned")
        assert agent.run.end() == 0
    site.machine.reboot("other-kernel")
    with tpm_resource_manager.before(site.machine.tpm) as kernel:
        agent = site.agent(server, kernel.client("again"), 'reattest_interval = "2s"')
        agent.run.start()
        eventually(said(server.run, "Node is refused"), "a refusal")
        refused = kept.with_name(f"{kept.stem}.refused.json")
        assert refused.exists()
        assert str(refused) in server.run.output()
    found = policy(server, "check", "-evidence", str(refused), "-policy", str(learned))
    assert not found.startswith("0\n")
    assert "policy golden" in found
    assert policy(server, "check", "-evidence", str(kept), "-policy", str(learned)).startswith("0\n")


def test_a_platform_certificate_names_the_machine(site: Site) -> None:
    assert isinstance(site.machine.tpm, SoldTpm)
    certificate = site.folder / "platform.der"
    certificate.write_bytes(site.machine.tpm.platform_certificate)
    server = site.server(f'{site.certified}\n platform_ca_path = "{site.folder / "anchors"}"')
    agent = site.agent(server, site.machine.tpm.tcti, f'platform_certificate_path = "{certificate}"', in_tpm=True)
    agent.start()
    assert "tpm:platform:manufacturer:Acme" in shown(server)
    assert "tpm:platform:model:Anvil" in shown(server)
    assert agent.run.end() == 0
