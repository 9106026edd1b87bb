"""An operator guards the server's APIs by a policy of theirs: a slip is told before it counts, and the way back in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import MakeServer
from tests.simulators.spire import MEMORY, Server, command

EXAMPLES = Path(__file__).parents[2] / "docs/runbooks/authorization-policy"


def validate(server: Server) -> subprocess.CompletedProcess[str]:
    return command(server.program, "validate", "-config", str(server.config))


@pytest.mark.timeout(300)
def test_operators_that_only_read_but_for_one_program(make_server: MakeServer, tmp_path: Path) -> None:
    policy, data = tmp_path / "policy.rego", tmp_path / "data.json"
    settings = f"""experimental {{ auth_opa_policy_engine {{ local {{
      rego_path = "{policy}"
      policy_data_path = "{data}"
    }} }} }}"""
    methods = json.loads((EXAMPLES / "policy_data.json").read_text())
    data.write_text(json.dumps({**methods, "writers": ["/usr/bin/another"]}))
    rules = (EXAMPLES / "read-only.rego").read_text()
    policy.write_text(rules + "\nwrites if not forbiden\n")
    server = make_server(key_manager=MEMORY, settings=settings)
    line = rules.count("\n") + 2

    validated = validate(server)
    assert validated.returncode == 1
    assert f"{policy}:{line}: a name is used that is not defined there" in validated.stderr
    assert "Traceback" not in validated.stderr
    server.run.start()
    assert server.run.wait() == 1
    assert f"{policy}:{line}: a name is used that is not defined there" in server.run.output()

    policy.write_text(rules)
    assert validate(server).returncode == 0
    server.start()
    assert server.ask_json("entry", "count")["count"] == 0
    refused = server.ask("token", "generate", check=False)
    assert refused.returncode == 1
    assert "authorization denied for method /spire.api.server.agent.v1.Agent/CreateJoinToken" in refused.stderr
    assert "The authorization policy decides who may call what" in server.run.output()

    # The way back in is the file, and a restart.
    server.run.end()
    server.settings = ""
    server.configure()
    server.start()
    assert server.join_token()
