"""Workloads that are told by their token: by the agent's own attestor, and by the same one as a plugin.

SPIRE_AGENT_BIN puts another agent in the place of ours where the attestor is a plugin.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.simulators import spire
from tests.simulators.oidc_issuer import OidcIssuer
from tests.simulators.spire import Agent, Program, Server, command, eventually

PARENT = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/job"
VARIABLE = "JOB_TOKEN"
PLUGIN = str(spire.BIN / "spire-attestor-oidc")


@dataclass
class Site:
    folder: Path
    issuer: OidcIssuer
    programs: list[Program] = field(default_factory=list[Program])

    def agent(self, *, plugin: str = "", program: str = spire.AGENT) -> Agent:
        server = Server(self.folder / "server")
        self.programs.append(server.run)
        server.start()
        selectors = [f"oidc_attestor:iss:{self.issuer.url}", "oidc_attestor:claim:ref:main"]
        server.create_entry(PARENT, WORKLOAD, selectors=selectors)
        # Beside the attestor for which the simulator has a place.
        block = f"""WorkloadAttestor "oidc_attestor" {{
          {f'plugin_cmd = "{plugin}"' if plugin else ""}
          plugin_data {{
            token_path = "{self.folder}/token"
            token_env = "{VARIABLE}"
            issuers "{self.issuer.url}" {{
              audiences = ["spire"]
              claims = ["ref"]
              ca_path = "{self.issuer.ca.file}"
            }}
          }}
        }}"""
        keys = f'KeyManager "disk" {{ plugin_data {{ directory = "{self.folder}/agent" }} }}\n{block}'
        made = Agent(self.folder / "agent", server, server.join_token(PARENT), keys, program=program)
        self.programs.append(made.run)
        made.start()
        return made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with OidcIssuer(tmp_path) as issuer:
        made = Site(tmp_path, issuer)
        yield made
        for program in reversed(made.programs):
            if program.process is not None:
                program.end()


def fetched(agent: Agent, **environment: str) -> subprocess.CompletedProcess[str]:
    return command(spire.AGENT, "api", "fetch", "x509", "-socketPath", agent.socket, environment=environment)


def test_workloads_with_tokens(site: Site) -> None:
    agent = site.agent()
    token = site.issuer.token(ref="main")
    eventually(lambda: WORKLOAD in fetched(agent, **{VARIABLE: token}).stdout, "an SVID")
    refused = (site.issuer.token(ref="other"), site.issuer.token(ref="main", aud="vault"), "nonsense", "")
    for other in refused:
        done = fetched(agent, **{VARIABLE: other})
        assert done.returncode == 1
        assert WORKLOAD not in done.stdout
    for words in ("for none of the configured audiences", "cannot be read: it is no JWT"):
        assert words in agent.run.output()
    assert token not in agent.run.output()
    assert "Traceback" not in agent.run.output()
    (site.folder / "token").write_text(token)
    assert WORKLOAD in fetched(agent).stdout


def test_the_attestor_as_a_plugin(site: Site) -> None:
    agent = site.agent(plugin=PLUGIN, program=os.environ.get("SPIRE_AGENT_BIN") or spire.AGENT)
    token = site.issuer.token(ref="main")
    eventually(lambda: WORKLOAD in fetched(agent, **{VARIABLE: token}).stdout, f"an SVID: {agent.run.output()[-2000:]}")
    assert fetched(agent, **{VARIABLE: site.issuer.token(ref="main", exp=1)}).returncode == 1
    assert "the token has expired" in agent.run.output()
    assert fetched(agent).returncode == 1


def test_the_plugin_tells_people_what_it_is_for() -> None:
    done = command(PLUGIN)
    assert done.returncode == 1
    assert 'WorkloadAttestor "oidc_attestor"' in done.stderr
    assert command(PLUGIN, "--help").returncode == 0
    assert command(PLUGIN, "--version").stdout.strip()
