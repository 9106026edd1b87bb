"""Clients on the published SDKs meet on our agent, step for step, what they meet on SPIRE's: delegates and brokers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from identity.bundles import to_pem
from tests.simulators import pki, spire
from tests.simulators.once import go_program

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]
HERE = Path(__file__).parent / "agentsdk"
PROGRAMS = {"ours": spire.AGENT} | ({"other": other} if (other := os.environ.get("SPIRE_AGENT_BIN")) else {})
NODE = "spiffe://example.org/node"
TYPE = "type.googleapis.com/spiffe.broker"


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> str:
    return go_program(tmp_path_factory, HERE)


@dataclass
class Node:
    server: spire.Server
    agent: spire.Agent
    admin: str
    broker: str
    broker_tcp: str

    def become(self, name: str) -> None:
        """Register this user's processes, and wait until the agent knows."""
        spiffe_id = f"spiffe://example.org/{name}"
        self.server.create_entry(NODE, spiffe_id, "-entryID", name)
        spire.eventually(lambda: spiffe_id in self.agent.fetch(), f"the agent to know of {spiffe_id}")


@pytest.fixture(params=list(PROGRAMS.values()), ids=list(PROGRAMS))
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """Workloads a1 and a2 with the same hint and an admin have the selector test:a, b has test:b and federates."""
    server = spire.Server(tmp_path / "server")
    agent: spire.Agent | None = None
    admin, broker = str(tmp_path / "admin" / "admin.sock"), str(tmp_path / "broker" / "broker.sock")
    address = f"127.0.0.1:{spire.free_port()}"
    try:
        server.start()
        foreign = tmp_path / "foreign.pem"
        foreign.write_text(to_pem([pki.Authority.root("spiffe://other.org").der]))
        server.ask("bundle", "set", "-id", "spiffe://other.org", "-path", str(foreign))
        for name, *more in (("a1", "-hint", "x"), ("a2", "-hint", "x"), ("admin", "-admin")):
            path = f"spiffe://example.org/{name}"
            server.create_entry(NODE, path, "-entryID", name, *more, selectors=["test:a"])
        federated = ("-federatesWith", "spiffe://other.org")
        server.create_entry(NODE, "spiffe://example.org/b", "-entryID", "b", *federated, selectors=["test:b"])
        settings = f"""
          admin_socket_path = "{admin}"
          authorized_delegates = ["spiffe://example.org/delegate"]
          experimental {{
            sync_interval = "1s"
            broker {{
              socket_path = "{broker}"
              bind_address = "{address}"
              brokers = [{{
                id = "spiffe://example.org/broker"
                allowed_reference_types = [
                  {{ type_url = "{TYPE}.WorkloadPIDReference" }},
                  {{ type_url = "{TYPE}.KubernetesObjectReference", allow_over_tcp = true }},
                ]
              }}]
            }}
          }}"""
        agent = spire.Agent(
            tmp_path / "agent", server, token=server.join_token(NODE), program=request.param, settings=settings
        )
        agent.run.start()
        spire.eventually(lambda: Path(admin).exists() and Path(broker).exists(), "the agent's sockets")
        yield Node(server, agent, admin, broker, address)
    finally:
        for program in (agent, server):
            if program is not None and program.run.process is not None:
                program.run.end()


def steps(name: str, *command: str) -> None:
    done = spire.command(*command, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = (HERE / f"{name}.txt").read_text().splitlines()
    assert [line.rstrip() for line in done.stdout.splitlines()] == wanted


def test_delegates(node: Node, client: str) -> None:
    steps("nobody", client, "-admin", node.admin)
    node.become("other")
    steps("undelegated", client, "-admin", node.admin)
    node.become("delegate")
    steps("delegate", client, "-admin", node.admin)


def test_brokers(node: Node, client: str) -> None:
    node.become("broker")
    where = ("-workload", node.agent.socket, "-broker", node.broker, "-broker-tcp", node.broker_tcp)
    steps("broker", client, *where)
