"""An agent that knows workloads by their tokens, built in or by the plugin, and what such workloads are given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.simulators import spire
from tests.simulators.issuer import Issuer
from tests.simulators.spire import Agent, Server, eventually

NODE = "spiffe://example.org/node"
JOB = "spiffe://example.org/job"
PLUGIN = str(Path(sys.executable).with_name("spire-attestor-oidc"))


def block(issuer: Issuer, token_path: Path, *, external: bool) -> str:
    command = f'plugin_cmd = "{PLUGIN}"' if external else ""
    return f"""
  WorkloadAttestor "oidc_attestor" {{
    {command}
    plugin_data {{
      issuers "{issuer.url}" {{
        audiences = ["spire"]
        claims    = ["project.name"]
        ca_path   = "{issuer.ca_path}"
      }}
      token_path = "{token_path}"
      token_env  = "JOB_TOKEN"
    }}
  }}
"""


def jobs_get_their_identity(
    server: Server, folder: Path, issuer: Issuer, *, external: bool, program: str = spire.AGENT
) -> Agent:
    """Start an agent and see who is given what. Returns it, for its log to be read; it is ended."""
    attestor = f"{spire.JOIN_TOKEN}{block(issuer, folder / 'job.jwt', external=external)}"
    agent = Agent(folder / "agent", server, server.join_token(NODE), program=program, node_attestor=attestor)
    selectors = ["oidc_attestor:sub:job-1", "oidc_attestor:claim:project.name:shop", f"oidc_attestor:iss:{issuer.url}"]
    server.create_entry(NODE, JOB, selectors=selectors)
    agent.start()
    try:
        ask = [agent.program, "api", "fetch", "x509", "-socketPath", agent.socket]
        good, other = issuer.token(project={"name": "shop"}), issuer.token(project={"name": "billing"})
        eventually(lambda: JOB in _said(ask, JOB_TOKEN=good), "the identity of a job with its token in the environment")
        (folder / "job.jwt").write_text(good)
        assert JOB in _said(ask)
        (folder / "job.jwt").unlink()
        for token in (other, good.rpartition(".")[0] + ".AAAA", issuer.token(aud="billing", project={"name": "shop"})):
            assert "no identity issued" in _said(ask, JOB_TOKEN=token)
        assert "no identity issued" in _said(ask)
    finally:
        agent.run.end()
    log = agent.run.output()
    assert "none of the audiences" in log
    assert "by none of the keys" in log
    assert good not in log, "a token is a secret"
    return agent


def _said(command: Sequence[str], **environment: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr
