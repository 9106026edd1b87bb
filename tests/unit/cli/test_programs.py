"""The two programs as a whole: their commands, help, and what happens to those that are not known."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agent.cli.main import COMMANDS as AGENT_COMMANDS
from agent.cli.main import GROUPS as AGENT_GROUPS
from operations.flags import Program
from operations.version import VERSION
from server.cli.main import COMMANDS as SERVER_COMMANDS
from server.cli.main import GROUPS as SERVER_GROUPS

ROOT = Path(__file__).parents[3]
SERVER = Program("spire-server", VERSION, SERVER_COMMANDS, SERVER_GROUPS)
AGENT = Program("spire-agent", VERSION, AGENT_COMMANDS, AGENT_GROUPS)
HEAVY = ("cryptography", "OpenSSL", "sqlalchemy", "hcl2", "lark", "pkcs11", "msgspec")


def test_the_version_is_that_of_the_package() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


@pytest.mark.parametrize("program", [SERVER, AGENT], ids=["server", "agent"])
def test_every_command_has_help(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    for command in SERVER_COMMANDS if program is SERVER else AGENT_COMMANDS:
        assert program.run([*command.name.split(), "-h"]) == 0
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"Usage of {command.usage_name or command.name}:\n  -")
        _assert_readable(captured.err)


@pytest.mark.parametrize("program", [SERVER, AGENT], ids=["server", "agent"])
def test_every_line_of_the_overviews_says_something(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    commands = SERVER_COMMANDS if program is SERVER else AGENT_COMMANDS
    groups = {" ".join(words[:size]) for command in commands for words in [command.name.split()] for size in (1, 2)}
    for group in sorted(groups):
        assert program.run([*group.split(), "-h"]) == 0
    assert program.run(["-h"]) == 0
    shown = capsys.readouterr().err
    _assert_readable(shown)
    assert not [line for line in shown.splitlines() if re.fullmatch(r"    [a-z0-9]+ *", line)]


def _assert_readable(text: str) -> None:
    assert [line for line in text.splitlines() if len(line.expandtabs()) > 80] == []


@pytest.mark.parametrize("program", [SERVER, AGENT], ids=["server", "agent"])
@pytest.mark.parametrize("line", [[], ["nonsense"]], ids=["none", "unknown"])
def test_no_command(program: Program, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(line) == 127
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"Usage: {program.name} [--version] [--help] <command> [<args>]\n")


@pytest.mark.parametrize(
    ("program", "command", "complaint"),
    [
        (SERVER, "run", "flag provided but not defined: -bad"),
        (
            SERVER,
            "validate",
            "SPIRE server configuration file is invalid: flag provided but not defined: -bad",
        ),
        (AGENT, "run", "flag provided but not defined: -bad"),
        (AGENT, "validate", "SPIRE agent configuration file is invalid: flag provided but not defined: -bad"),
        (AGENT, "api fetch", "flag provided but not defined: -bad"),
        (AGENT, "api watch", "flag provided but not defined: -bad"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_flag_is_repeated_where_spire_does(
    program: Program, command: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.run([*command.split(), "-bad"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "flag provided but not defined: -bad"
    assert lines[-1] == complaint


@pytest.mark.parametrize(("program", "prefix"), [(SERVER, "server"), (AGENT, "agent")], ids=["server", "agent"])
def test_a_missing_configuration(program: Program, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "there is no configuration file /nonexistent: name it with -config\n"
    assert program.run(["run", "-config", "/nonexistent"]) == 1
    assert capsys.readouterr() == ("", reason)
    assert program.run(["validate", "-config", "/nonexistent"]) == 1
    assert capsys.readouterr() == ("", f"SPIRE {prefix} configuration file is invalid: {reason}")


CONFIGURATIONS = {
    "server": """server { trust_domain = "example.org" data_dir = "." }
plugins {
    DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "a.sqlite3" } }
    KeyManager "memory" { plugin_data {} }
}
""",
    "agent": """agent {
    trust_domain = "example.org"
    data_dir = "."
    server_address = "localhost"
    server_port = 1
    insecure_bootstrap = true
}
plugins {
    KeyManager "memory" { plugin_data {} }
    NodeAttestor "join_token" { plugin_data {} }
    WorkloadAttestor "unix" { plugin_data {} }
}
""",
}


@pytest.mark.parametrize(("program", "kind"), [(SERVER, "server"), (AGENT, "agent")], ids=["server", "agent"])
def test_validate(program: Program, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "spire.conf"
    file.write_text(CONFIGURATIONS[kind])
    assert program.run(["validate", "-config", str(file)]) == 0
    assert capsys.readouterr() == (f"SPIRE {kind} configuration file is valid.\n", "")
    file.write_text(CONFIGURATIONS[kind].replace('"memory"', '"memroy"'))
    line = 1 + file.read_text().partition("memroy")[0].count("\n")
    assert program.run(["validate", "-config", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    reason = f'SPIRE {kind} configuration file is invalid: {file}:{line}: no built-in plugin "memroy"'
    assert captured.err.startswith(reason)
    assert captured.err.count("\n") == 1


NOTED = {
    "server": ("data_dir", "profiling_enabled = true\n    data_dir"),
    "agent": ("data_dir", 'authorized_delegates = ["spiffe://example.org/d"]\n    data_dir'),
}


@pytest.mark.parametrize(("program", "kind"), [(SERVER, "server"), (AGENT, "agent")], ids=["server", "agent"])
def test_validate_passes_on_what_a_run_would_warn_of(
    program: Program, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spire.conf"
    file.write_text(CONFIGURATIONS[kind].replace(*NOTED[kind], 1))
    assert program.run(["validate", "-config", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out == f"SPIRE {kind} configuration file is valid.\n"
    assert err.startswith("warning: ")
    assert "has no effect" in err


def test_validate_tells_all_that_is_wrong_with_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "spire.conf"
    faults = """ca_ttl = "long" }
plugins {
    KeyManager "disk" { plugin_data {} }
    NodeAttestor "join_token" { plugin_data_file = "/nonexistent.conf" }
"""
    file.write_text(CONFIGURATIONS["server"].replace("}\nplugins {\n", faults, 1))
    assert SERVER.run(["validate", "-config", str(file)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "SPIRE server configuration file is invalid.",
        "Validation errors:",
        f'\t{file}:1: ca_ttl "long" is no duration such as 1h30m: time: invalid duration "long"',
        f'\t{file}:3: KeyManager "disk": keys_path must be configured',
        f"\t{file}:4: failed to read plugin configuration: open /nonexistent.conf: no such file or directory",
        f"\t{file}:6: plugins of type KeyManager: enable exactly 1, not 2",
    ]


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("server", "healthcheck"),
        ("server", "entry show"),
        ("server", "entry create -spiffeID spiffe://a/b -parentID spiffe://a/c -selector a:b"),
        ("server", "agent list"),
        ("server", "bundle show"),
        ("server", "token generate"),
        ("server", "jwt mint -spiffeID spiffe://a/b -audience c"),
        ("agent", "healthcheck"),
        ("agent", "api fetch x509"),
        ("agent", "api fetch jwt -audience a"),
    ],
)
def test_commands_import_nothing_heavy(module: str, command: str) -> None:
    """What a command costs is mostly its imports; the reachability of a server does not matter here."""
    code = f"""
import sys
from {module}.cli.main import COMMANDS
from operations.flags import Program
status = Program("p", "v", COMMANDS).run({[*command.split(), "-socketPath", "/nonexistent"]!r})
print(status, *sorted(set(sys.modules) & {set(HEAVY)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n", done.stderr


def test_output_that_nobody_reads_is_no_error() -> None:
    """As in `spire-server -h 2>&1 | head -1`, for standard output."""
    code = """
import sys
from operations.flags import Program
from server.cli import main
class Endless(Program):
    def run(self, args):
        while True:
            print("x" * 4096)
main.Program = Endless
main.main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1
