"""The real Envoy, as operators run it beside SPIRE: it asks the agent for its secrets and speaks TLS with them.

    caller -> way_in (plain) -> [TLS] -> gate (TLS, with client certificates) -> echo

Both ends of the TLS in the middle are Envoy's own, each with secrets of its own; `gate` can be called by others too.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.simulators.spire import Program, eventually, free_port

PROGRAM = str(Path(sys.executable).parent / "envoy")
_TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_PROXY: Final = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_HTTP: Final = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

JSON = dict[str, Any]


@dataclass
class Envoy:
    """`certificate` and `validation` are the names of secrets; `peers` the SPIFFE IDs that `gate` lets in, `gate_id`
    the one that it is known by."""

    folder: Path
    agent_socket: str
    echo_port: int
    gate_id: str
    peers: Sequence[str]
    gate_certificate: str = "default"
    caller_certificate: str = "default"
    validation: str = "ROOTCA"
    api_type: str = "GRPC"
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    gate: int = field(default_factory=free_port)
    way_in: int = field(default_factory=free_port)
    admin: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "envoy.json"
        config.write_text(json.dumps(self._config()))
        command = (PROGRAM, "--disable-hot-restart", "--concurrency", "1", "--config-path", str(config))
        self.run = Program(command, self.folder / "log")

    def start(self) -> None:
        self.run.start()
        eventually(self.ready, f"a ready Envoy: {self.run.output()[-2000:]}")

    def ready(self) -> bool:
        assert self.run.running, f"Envoy ended: {self.run.output()[-4000:]}"
        try:
            return self.ask("ready") == "LIVE\n"
        except OSError:
            return False

    def ask(self, path: str) -> str:
        """What Envoy's administration says. Raises OSError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def counters(self, part: str) -> dict[str, int]:
        """Those whose name has `part` in it."""
        stats = json.loads(self.ask("stats?format=json"))["stats"]
        return {each["name"]: each["value"] for each in stats if part in each.get("name", "")}

    def echo(self, text: bytes = b"hello") -> bytes:
        """What comes back from behind both of its ends; nothing when they do not shake hands."""
        try:
            with socket.create_connection(("127.0.0.1", self.way_in), timeout=10) as sock:
                sock.sendall(text)
                return sock.recv(100)
        except ConnectionError:
            return b""

    def through_gate(self, context: ssl.SSLContext, text: bytes = b"hello") -> tuple[bytes, bytes]:
        """As another caller: the answer, and the certificate (DER) that the gate shows. Raises OSError."""
        with (
            socket.create_connection(("127.0.0.1", self.gate), timeout=10) as sock,
            context.wrap_socket(sock) as connection,
        ):
            connection.sendall(text)
            shown = connection.getpeercert(binary_form=True)
            assert shown is not None
            return connection.recv(100), shown

    def _config(self) -> JSON:
        gate_tls = {
            "@type": f"{_TLS}DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": self._common(self.gate_certificate, self.peers),
        }
        caller_tls = {
            "@type": f"{_TLS}UpstreamTlsContext",
            "common_tls_context": self._common(self.caller_certificate, [self.gate_id]),
        }
        agent = _cluster("spire_agent", {"pipe": {"path": self.agent_socket}})
        agent["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _HTTP,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
        to_gate = _cluster("gate", _address(self.gate))
        to_gate["transport_socket"] = _transport(caller_tls)
        return {
            "node": {"id": "test", "cluster": "test", "metadata": dict(self.metadata)},
            "admin": {"address": _address(self.admin)},
            "static_resources": {
                "listeners": [
                    _listener("way_in", self.way_in, "gate"),
                    _listener("gate", self.gate, "echo", _transport(gate_tls)),
                ],
                "clusters": [agent, to_gate, _cluster("echo", _address(self.echo_port))],
            },
        }

    def _common(self, certificate: str, peers: Sequence[str]) -> JSON:
        names = [{"san_type": "URI", "matcher": {"exact": peer}} for peer in peers]
        return {
            "tls_certificate_sds_secret_configs": [self._secret(certificate)],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": names},
                "validation_context_sds_secret_config": self._secret(self.validation),
            },
        }

    def _secret(self, name: str) -> JSON:
        source = {
            "api_type": self.api_type,
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "spire_agent"}}],
        }
        return {"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": source}}


@contextmanager
def echoing() -> Generator[int, None, None]:
    """The port of a server that sends back what it gets first."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(10)
                try:
                    sock.sendall(sock.recv(100))
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _address(port: int) -> JSON:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, address: JSON) -> JSON:
    endpoint = {"lb_endpoints": [{"endpoint": {"address": address}}]}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
    }


def _listener(name: str, port: int, cluster: str, transport: JSON | None = None) -> JSON:
    proxy = {"@type": _PROXY, "cluster": cluster, "stat_prefix": name}
    chain: JSON = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    if transport is not None:
        chain["transport_socket"] = transport
    return {"name": name, "address": _address(port), "filter_chains": [chain]}


def _transport(tls: JSON) -> JSON:
    return {"name": "envoy.transport_sockets.tls", "typed_config": tls}
