"""Real servers and agents as child processes, ours or others: started, asked by their own commands, ended by pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.simulators.ports import free_port as free_port

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SERVER = str(BIN / "spire-server")
AGENT = str(BIN / "spire-agent")
PATIENCE = 120.0
"""Seconds that a condition may take. Generous: machines that run tests are busy."""

T = TypeVar("T")


def eventually(condition: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """The first true result of `condition`, asked again and again."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


@dataclass
class Program:
    """One long-running process with its log in a file."""

    command: Sequence[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | self.environment
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self, seconds: float = PATIENCE) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.running:
            self.process.send_signal(number)
        return self.wait()

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def command(
    *arguments: str, timeout: float = PATIENCE, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its status."""
    return subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | (environment or {}),
        check=False,
    )


MEMORY = 'KeyManager "memory" { plugin_data {} }'


JOIN_TOKEN = 'NodeAttestor "join_token" { plugin_data {} }'


@dataclass
class Server:
    """A server in its own folder.

    `key_manager` and `node_attestor` are HCL blocks of plugins, `settings` more HCL lines of the server block, and
    `blocks` more of the file.
    """

    folder: Path
    key_manager: str = MEMORY
    settings: str = ""
    blocks: str = ""
    program: str = SERVER
    environment: dict[str, str] = field(default_factory=dict[str, str])
    port: int = field(default_factory=free_port)
    trust_domain: str = "example.org"
    node_attestor: str = JOIN_TOKEN

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket = str(self.folder / "api.sock")
        self.config = self.folder / "server.conf"
        self.configure()
        self.run = Program([self.program, "run", "-config", str(self.config)], self.folder / "log", self.environment)

    def configure(self) -> None:
        self.config.write_text(f"""
server {{
  trust_domain = "{self.trust_domain}"
  bind_address = "127.0.0.1"
  bind_port = {self.port}
  socket_path = "{self.socket}"
  data_dir = "{self.folder}"
  log_level = "DEBUG"
  ratelimit {{
    attestation = false
    signing = false
  }}
  {self.settings}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{
    database_type = "sqlite3"
    connection_string = "{self.folder}/datastore.sqlite3"
  }} }}
  {self.node_attestor}
  {self.key_manager}
}}
{self.blocks}
""")

    def start(self) -> None:
        self.run.start()
        eventually(self.healthy, f"a healthy server: {self.run.output()[-2000:]}")

    def healthy(self) -> bool:
        assert self.run.running, f"the server ended: {self.run.output()[-4000:]}"
        return self.ask("healthcheck", check=False).returncode == 0

    def ask(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One of the server's commands on its admin socket."""
        words = {"healthcheck": 1, "localauthority": 3}.get(arguments[0], 2)
        done = command(self.program, *arguments[:words], "-socketPath", self.socket, *arguments[words:])
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def ask_json(self, *arguments: str) -> Any:
        return json.loads(self.ask(*arguments, "-output", "json").stdout)

    def join_token(self, spiffe_id: str = "", ttl: int = 600) -> str:
        naming = ("-spiffeID", spiffe_id) if spiffe_id else ()
        return str(self.ask_json("token", "generate", "-ttl", str(ttl), *naming)["value"])

    def bundle(self) -> str:
        return self.ask("bundle", "show").stdout

    def create_entry(self, parent: str, spiffe_id: str, *more: str, selectors: Sequence[str] = ()) -> str:
        chosen = [word for selector in selectors or [f"unix:uid:{os.getuid()}"] for word in ("-selector", selector)]
        made = self.ask_json("entry", "create", "-parentID", parent, "-spiffeID", spiffe_id, *chosen, *more)
        assert made["results"][0]["status"]["code"] == 0, made
        return str(made["results"][0]["entry"]["id"])


@dataclass
class Agent:
    """An agent in its own folder, told of a server and a join token."""

    folder: Path
    server: Server
    token: str = ""
    key_manager: str = ""
    settings: str = ""
    blocks: str = ""
    program: str = AGENT
    environment: dict[str, str] = field(default_factory=dict[str, str])
    node_attestor: str = JOIN_TOKEN
    log_level: str = "DEBUG"

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket = str(self.folder / "api.sock")
        self.address = f"unix://{self.socket}"
        self.config = self.folder / "agent.conf"
        self.key_manager = self.key_manager or f'KeyManager "disk" {{ plugin_data {{ directory = "{self.folder}" }} }}'
        self.configure()
        self.run = Program([self.program, "run", "-config", str(self.config)], self.folder / "log", self.environment)

    def configure(self) -> None:
        bundle = self.folder / "bundle.pem"
        if not bundle.exists():
            bundle.write_text(self.server.bundle())
        self.config.write_text(f"""
agent {{
  trust_domain = "{self.server.trust_domain}"
  server_address = "127.0.0.1"
  server_port = {self.server.port}
  socket_path = "{self.socket}"
  data_dir = "{self.folder}"
  trust_bundle_path = "{bundle}"
  join_token = "{self.token}"
  log_level = "{self.log_level}"
  {self.settings}
}}
plugins {{
  {self.node_attestor}
  {self.key_manager}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
{self.blocks}
""")

    def start(self) -> None:
        self.run.start()
        eventually(self.healthy, f"a healthy agent: {self.run.output()[-2000:]}")

    def healthy(self) -> bool:
        assert self.run.running, f"the agent ended: {self.run.output()[-4000:]}"
        return self.ask("healthcheck", check=False).returncode == 0

    def ask(self, *arguments: str, check: bool = True, program: str = "") -> subprocess.CompletedProcess[str]:
        """One of the agent's commands on the Workload API's socket."""
        words = 1 if arguments[0] == "healthcheck" else 3
        done = command(program or self.program, *arguments[:words], "-socketPath", self.socket, *arguments[words:])
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def fetch(self) -> str:
        """What `api fetch x509` prints, once there is something to fetch."""

        def fetched() -> str | None:
            done = self.ask("api", "fetch", "x509", check=False)
            return done.stdout if done.returncode == 0 else None

        return eventually(fetched, f"an X509-SVID: {self.run.output()[-2000:]}")
