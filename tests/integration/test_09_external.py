"""`validate` asks external plugins, too, as a server and an agent with them would be configured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.simulators.spire import AGENT, SERVER, command

ROOT = Path(__file__).parents[2]

SERVER_CONF = """server {{
  trust_domain = "example.org"
  data_dir = "{folder}"
}}
plugins {{
  DataStore "sql" {{ plugin_data {{
    database_type = "sqlite3"
    connection_string = "{folder}/datastore.sqlite3"
  }} }}
{plugin}
}}
"""
AGENT_CONF = """agent {{
  trust_domain = "example.org"
  data_dir = "{folder}"
  server_address = "127.0.0.1"
  server_port = 8081
  insecure_bootstrap = true
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
{plugin}
}}
"""
PLUGIN = """  KeyManager "py" {{
    plugin_cmd = "{python}"
    plugin_args = ["-m", "tests.simulators.plugin"]
    plugin_data {{ {data} }}
  }}"""


@pytest.mark.parametrize(
    ("program", "text", "words"), [(SERVER, SERVER_CONF, "SPIRE server"), (AGENT, AGENT_CONF, "SPIRE agent")]
)
def test_validate_asks_the_plugin(program: str, text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "spire.conf"
    environment = {"PYTHONPATH": str(ROOT)}
    for data, said in (("a = 1", f"{words} configuration file is valid.\n"), ("refuse = true", "it says refuse")):
        plugin = PLUGIN.format(python=sys.executable, data=data)
        path.write_text(text.format(folder=tmp_path, plugin=plugin))
        done = command(program, "validate", "-config", str(path), environment=environment)
        assert said in done.stdout + done.stderr
        assert done.returncode == (0 if data == "a = 1" else 1)
    assert f"{path}:" in done.stderr
