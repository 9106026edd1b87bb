"""A running server and agent, looked at: scraped over TLS by SPIFFE IDs, probed, debugged, their logs rotated."""

from __future__ import annotations

import functools
import http.client
import json
import os
import re
import signal
import socket
import ssl
import struct
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.simulators.spire import MEMORY, PATIENCE, Agent, Program, Server, command, eventually, free_port

SCRAPER = "spiffe://example.org/scraper"
OTHER = "spiffe://example.org/other"


@dataclass
class Pair:
    server: Server
    agent: Agent
    ports: dict[str, int]
    admin: str


def blocks(metrics: int, health: int, statsd: int) -> str:
    return f"""
telemetry {{
  Statsd = [ {{ address = "127.0.0.1:{statsd}" }} ]
  Prometheus {{
    host = "127.0.0.1"
    port = {metrics}
    tls {{
      use_spire_svid = true
      authorized_spiffe_ids = ["{SCRAPER}"]
    }}
  }}
  InMem {{}}
}}
health_checks {{
  listener_enabled = true
  bind_address = "127.0.0.1"
  bind_port = "{health}"
}}
"""


@pytest.fixture
def collector() -> Iterator[socket.socket]:
    """Of StatsD."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.settimeout(PATIENCE)
        yield made


@pytest.fixture
def pair(tmp_path: Path, programs: list[Program], collector: socket.socket) -> Pair:
    statsd = collector.getsockname()[1]
    ports = {
        name: free_port() for name in ("server metrics", "server health", "agent metrics", "agent health", "profiles")
    }
    server = Server(
        tmp_path / "server",
        key_manager=MEMORY,
        settings=f'proxy_protocol_trusted_cidrs = ["127.0.0.0/8"]\nlog_file = "{tmp_path}/server.log"\n'
        f"audit_log_enabled = true\nprofiling_enabled = true\nprofiling_port = {ports['profiles']}",
        blocks=blocks(ports["server metrics"], ports["server health"], statsd),
    )
    programs.append(server.run)
    server.start()
    admin = str(tmp_path / "private" / "admin.sock")
    agent = Agent(
        tmp_path / "agent",
        server,
        token=server.join_token("spiffe://example.org/host"),
        key_manager=MEMORY,
        settings=f'admin_socket_path = "{admin}"',
        blocks=blocks(ports["agent metrics"], ports["agent health"], statsd),
    )
    programs.append(agent.run)
    agent.start()
    return Pair(server, agent, ports, admin)


def credentials(pair: Pair, spiffe_id: str, folder: Path) -> ssl.SSLContext:
    """A workload's, which asks for whom it trusts to be the other end by itself."""
    pair.server.create_entry("spiffe://example.org/host", spiffe_id)
    folder.mkdir()

    def written() -> bool:
        done = pair.agent.ask("api", "fetch", "x509", "-write", str(folder), check=False)
        return done.returncode == 0 and spiffe_id in done.stdout

    eventually(written, f"the SVID of {spiffe_id}")
    listed = pair.agent.ask("api", "fetch", "x509", "-output", "json").stdout
    index = [each["spiffe_id"] for each in json.loads(listed)["svids"]].index(spiffe_id)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # an X509-SVID names no host
    context.load_verify_locations(str(folder / f"bundle.{index}.pem"))
    context.load_cert_chain(str(folder / f"svid.{index}.pem"), str(folder / f"svid.{index}.key"))
    return context


def scrape(port: int, context: ssl.SSLContext) -> tuple[str, str]:
    """The metrics, and the SPIFFE ID that served them."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics")
        assert isinstance(connection.sock, ssl.SSLSocket)
        peer: Any = connection.sock.getpeercert() or {}
        names = peer.get("subjectAltName", ())  # empty where the client does not verify
        return connection.getresponse().read().decode(), "".join(value for _, value in names)
    finally:
        connection.close()


def probe(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_over_tls_with_the_programs_own_svids(pair: Pair, tmp_path: Path) -> None:
    good = credentials(pair, SCRAPER, tmp_path / "good")
    text, served_by = scrape(pair.ports["server metrics"], good)
    assert served_by == "spiffe://example.org/spire/server"
    assert re.search(
        r'^spire_server_rpc_agent_v1_agent_attest_agent\{host="[^"]*",status="OK"\} 1$', text, re.MULTILINE
    )
    assert "# TYPE spire_server_datastore_node_create_elapsed_time summary" in text
    text, served_by = scrape(pair.ports["agent metrics"], good)
    assert served_by.startswith("spiffe://example.org/spire/agent/join_token/")
    assert "# TYPE spire_agent_workload_api_connections gauge" in text
    assert "# TYPE spire_agent_rpc_workload_api_fetch_x509svid counter" in text

    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    other = credentials(pair, OTHER, tmp_path / "other")
    for refused in (anonymous, other):
        for name in ("server metrics", "agent metrics"):
            with pytest.raises((OSError, http.client.HTTPException)):
                scrape(pair.ports[name], refused)


def test_statsd_and_profiles(pair: Pair, collector: socket.socket) -> None:
    wanted = [
        rb"^spire_server\.rpc\.agent\.v1\.agent\.attest_agent\.OK\.[^:]+:1\.000000\|c$",
        rb"^spire_agent\.manager\.sync\.fetch_entries_updates\.elapsed_time\.OK\.[^:]+:[0-9]+\.[0-9]{6}\|ms$",
    ]
    received = b""
    while not all(re.search(each, received, re.MULTILINE) for each in wanted):
        received += collector.recv(65536)
    assert "_tell_uptime" in probe(pair.ports["profiles"], "debug/pprof/goroutine?debug=1")[1]
    assert probe(pair.ports["profiles"], "debug/pprof/profile?seconds=0") == (400, "seconds must be 1 to 300\n")


def is_ready(port: int) -> bool:
    return probe(port, "ready")[0] == 200


def test_health_of_both(pair: Pair) -> None:
    server = '{"catalog.datastore":{},"server":{},"server.ca":{},"server.ca.rotator":{}}\n'
    for name, body in (("server health", server), ("agent health", '{"agent":{}}\n')):
        port = pair.ports[name]
        eventually(functools.partial(is_ready, port), f"a ready {name}")
        assert probe(port, "live") == (200, body)
        assert probe(port, "ready") == (200, body)
        assert probe(port, "nothing") == (404, "404 page not found\n")


def ask_agent(pair: Pair, *arguments: str) -> str:
    done = command(pair.agent.program, *arguments, "-socketPath", pair.admin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_look_into_both(pair: Pair) -> None:
    server = pair.server.ask_json("debug", "getinfo")
    assert (server["agents_count"], server["federated_bundles_count"]) == (1, 1)
    assert [each["subject"].rpartition("O=")[2] for each in server["svid_chain"]] == ["SPIRE,C=US", "SPIFFE,C=US"]
    agent = json.loads(ask_agent(pair, "debug", "getinfo", "-output", "json"))
    assert agent["svid_chain"][0]["id"]["path"].startswith("/spire/agent/join_token/")
    assert int(agent["last_sync_success"]) > 0
    assert "Uptime:" in pair.server.ask("debug", "getinfo").stdout
    assert "Last Sync Success:" in ask_agent(pair, "debug", "getinfo")


def test_levels_change_while_both_run(pair: Pair) -> None:
    log = Path(pair.server.folder.parent / "server.log")
    assert pair.server.ask("logger", "get").stdout == "Logger Level : debug\nLaunch Level : debug\n\n"
    assert pair.server.ask("logger", "set", "-level", "error").stdout.startswith("Logger Level : error\n")
    size = log.stat().st_size
    pair.server.ask("bundle", "show")
    assert log.stat().st_size == size, "not even the audit line is written"
    assert pair.server.ask("logger", "reset").stdout.startswith("Logger Level : debug\n")
    pair.server.ask("bundle", "show")
    assert log.stat().st_size > size
    assert ask_agent(pair, "logger", "set", "-level", "warn") == "Logger Level : warning\nLaunch Level : debug\n\n"
    assert ask_agent(pair, "logger", "reset") == "Logger Level : debug\nLaunch Level : debug\n\n"
    assert command(pair.agent.program, "logger", "get", "-socketPath", pair.agent.socket).returncode == 1


def test_signals(pair: Pair) -> None:
    """SIGUSR2 opens a log that was moved away anew, SIGUSR1 writes the metrics in memory to it."""
    log = Path(pair.server.folder.parent / "server.log")
    moved = log.with_suffix(".1")
    log.rename(moved)
    process = pair.server.run.process
    assert process is not None
    os.kill(process.pid, signal.SIGUSR2)
    eventually(log.exists, "a new log file")

    def written() -> bool:
        # The metrics of the second that is not over are not written yet.
        os.kill(process.pid, signal.SIGUSR1)
        return "'spire_server.started." in log.read_text()

    eventually(written, "the metrics in the log")
    assert re.search(r"msg=\"\[[-0-9: +]+ UTC\]\[G\] 'spire_server\.started\.", log.read_text())
    assert moved.stat().st_size > 0
    assert pair.server.healthy()


def test_a_proxy_says_who_calls(pair: Pair) -> None:
    """What comes behind its header is TLS, and the audit log has the caller's address."""
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(">H4s4sHH", 12, bytes((192, 0, 2, 7)), bytes(4), 4711, 8081)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    grpc_call = _get_bundle()
    with socket.create_connection(("127.0.0.1", pair.server.port), PATIENCE) as sock:
        sock.sendall(header)
        with context.wrap_socket(sock) as tls:
            tls.sendall(grpc_call)
            assert tls.recv(100)
            log = Path(pair.server.folder.parent / "server.log")
            eventually(
                lambda: 'caller_addr="192.0.2.7:4711"' in log.read_text(), "the caller's address in the audit log"
            )


def _get_bundle() -> bytes:
    """An HTTP/2 connection's beginning with a call of Bundle.GetBundle, its headers literal (RFC 7541, 6.2.2)."""

    def field(name: bytes, value: bytes) -> bytes:
        return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value

    fields = b"".join(
        field(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", b"/spire.api.server.bundle.v1.Bundle/GetBundle"),
            (b":authority", b"x"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        )
    )
    headers = len(fields).to_bytes(3) + b"\x01\x04" + (1).to_bytes(4) + fields
    data = (5).to_bytes(3) + b"\x00\x01" + (1).to_bytes(4) + bytes(5)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" + headers + data
