"""Identities for a delegate and for a broker, of real processes, by a real agent."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from google.protobuf.any_pb2 import Any

from generated.spiffe.broker import api_pb2 as broker_api
from generated.spire.api.agent.delegatedidentity.v1 import delegatedidentity_pb2 as api
from generated.spire.api.types import selector_pb2
from tests.simulators import spire
from transport.client import Channel
from transport.limits import Limits
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity, client_context

SERVER = os.environ.get("SPIRE_SERVER_BIN") or spire.SERVER
NODE = "spiffe://example.org/node"
DELEGATE = "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/"
PID = "type.googleapis.com/spiffe.broker.WorkloadPIDReference"
UNIX = 'WorkloadAttestor "unix" { plugin_data {} }'
BY_PATH = 'WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }'
PATIENCE = spire.PATIENCE


@dataclass
class Node:
    server: spire.Server
    agent: spire.Agent
    admin: str
    broker: str
    broker_port: int


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """This user's processes are the delegate, and the broker over TCP with any reference."""
    admin, broker, port = str(tmp_path / "admin" / "a.sock"), str(tmp_path / "broker" / "b.sock"), spire.free_port()
    server = spire.Server(tmp_path / "server", program=SERVER)
    agent: spire.Agent | None = None
    try:
        server.start()
        server.create_entry(NODE, "spiffe://example.org/delegate")
        settings = f"""
          admin_socket_path = "{admin}"
          authorized_delegates = ["spiffe://example.org/delegate"]
          experimental {{ broker {{
            socket_path = "{broker}"
            bind_address = "127.0.0.1:{port}"
            brokers = [{{
              id = "spiffe://example.org/delegate"
              allowed_reference_types = [{{ type_url = "*", allow_over_tcp = true }}]
            }}]
          }} }}"""
        agent = spire.Agent(tmp_path / "agent", server, token=server.join_token(NODE), settings=settings)
        agent.config.write_text(agent.config.read_text().replace(UNIX, BY_PATH))
        agent.start()
        agent.fetch()  # servers may take their time until agents hear of an entry
        yield Node(server, agent, admin, broker, port)
    finally:
        for program in (agent, server):
            if program is not None and program.run.process is not None:
                program.run.end()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A workload that is known by its program."""
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / "app")
    with subprocess.Popen([program, "600"]) as process:
        yield process
        process.kill()


def svids(channel: Channel, *selectors: str, pid: int = 0) -> asyncio.Future[api.SubscribeToX509SVIDsResponse]:
    messages = [selector_pb2.Selector(type=each.partition(":")[0], value=each.partition(":")[2]) for each in selectors]
    request = api.SubscribeToX509SVIDsRequest(selectors=messages, pid=pid)
    stream = channel.server_stream(
        DELEGATE + "SubscribeToX509SVIDs", request, api.SubscribeToX509SVIDsResponse, timeout=PATIENCE
    )
    return asyncio.ensure_future(anext(stream))


async def test_a_real_process_by_its_pid(node: Node, app: subprocess.Popen[bytes], tmp_path: Path) -> None:
    selector = f"unix:path:{tmp_path}/app"
    await asyncio.to_thread(node.server.create_entry, NODE, "spiffe://example.org/app", selectors=[selector])
    async with Channel.unix(node.admin) as channel, asyncio.timeout(PATIENCE):
        while True:
            response = await svids(channel, pid=app.pid)
            found = {each.x509_svid.id.path for each in response.x509_svids}
            if found == {"/app", "/delegate"}:
                break
            await asyncio.sleep(0.2)
        response = await svids(channel, selector)
        assert [each.x509_svid.id.path for each in response.x509_svids] == ["/app"]
    await asyncio.to_thread(node.agent.fetch)
    async with (
        Channel.tcp(
            "127.0.0.1", node.broker_port, lambda: client_context(_own(node, tmp_path / "own")), lambda _: None
        ) as channel,
        asyncio.timeout(PATIENCE),
    ):
        value = broker_api.WorkloadPIDReference(pid=app.pid).SerializeToString()
        request = broker_api.SubscribeToX509SVIDRequest(
            reference=broker_api.WorkloadReference(reference=Any(type_url=PID, value=value))
        )
        stream = channel.server_stream(
            "/spiffe.broker.API/SubscribeToX509SVID",
            request,
            broker_api.SubscribeToX509SVIDResponse,
            metadata={"broker.spiffe.io": "true"},
        )
        assert {each.spiffe_id for each in (await anext(stream)).svids} == {
            "spiffe://example.org/app",
            "spiffe://example.org/delegate",
        }


def _own(node: Node, folder: Path) -> InProcessIdentity:
    """This process's own SVID, written by a command."""
    folder.mkdir(exist_ok=True)
    node.agent.ask("api", "fetch", "x509", "-write", str(folder))
    chain = x509.load_pem_x509_certificates((folder / "svid.0.pem").read_bytes())
    key = load_pem_private_key((folder / "svid.0.key").read_bytes(), None)
    return InProcessIdentity(
        tuple(each.public_bytes(Encoding.DER) for each in chain),
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    )


def test_the_sockets_are_for_the_agents_group(node: Node) -> None:
    for path in (node.admin, node.broker):
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o770
    log = node.agent.run.output()
    assert "Starting SPIFFE Broker Endpoint" in log


async def test_a_delegate_out_of_hand_is_told_so_and_others_are_served(node: Node) -> None:
    process = node.agent.run.process
    assert process
    before = _memory(process.pid)
    channels = [Channel.unix(node.admin, limits=Limits(handshake=PATIENCE)) for _ in range(10)]
    try:
        streams = [svids(channel, "test:a", f"test:{number}") for number in range(300) for channel in channels]
        async with asyncio.timeout(PATIENCE):
            ended = await asyncio.gather(*streams, return_exceptions=True)
        refused = [each for each in ended if isinstance(each, RpcError)]
        assert {each.code for each in refused} == {Code.RESOURCE_EXHAUSTED}
        assert len(ended) - len(refused) == 1024
        assert "spiffe://example.org/delegate" in await asyncio.to_thread(node.agent.fetch)
        assert _memory(process.pid) - before < 100
    finally:
        for channel in channels:
            await channel.close()
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(100_000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(50_000)):
        for path in (node.admin, node.broker):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                try:
                    sock.sendall(garbage)
                except (BrokenPipeError, ConnectionResetError):
                    continue
    async with Channel.unix(node.admin) as channel, asyncio.timeout(PATIENCE):
        while True:
            try:
                assert not (await svids(channel, "test:a")).x509_svids
                break
            except RpcError as error:
                if error.code is not Code.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(0.2)
    assert "Traceback" not in node.agent.run.output()


def _memory(pid: int) -> float:
    """Resident, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000
