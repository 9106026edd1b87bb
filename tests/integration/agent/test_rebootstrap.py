"""A server whose keys were all replaced: agents that may rebootstrap end, start anew, and know it.

SPIRE_SERVER_BIN and SPIRE_AGENT_BIN put other halves in the place of ours.
"""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.integration.test_08_x509pop import NAMED, WORKLOAD, Site
from tests.simulators import spire
from tests.simulators.nodes import root
from tests.simulators.spire import Agent, Server


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, root(), [])
    yield made
    for program in reversed(made.programs):
        if program.process is not None:
            program.end()


class _Socket(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self.asked: list[dict[str, list[str]]] = []
        self.content: Callable[[], str] = str
        super().__init__(path, handler)

    def get_request(self) -> tuple[socket.socket, str]:
        request, _ = super().get_request()
        return request, "unix"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Socket)
        self.server.asked.append(parse_qs(urlsplit(self.path).query))
        body = self.server.content().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def address_string(self) -> str:
        return "test"


@contextmanager
def bundles(path: Path) -> Generator[_Socket]:
    with _Socket(str(path), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def configure(agent: Agent, source: str, mode: str, delay: str) -> None:
    """Replace the source of the bundle, and say when it is asked again."""
    lines = agent.config.read_text().splitlines()
    kept = [line for line in lines if "trust_bundle" not in line and "rebootstrap" not in line]
    place = next(number for number, line in enumerate(kept) if "trust_domain" in line)
    settings = f'  {source}\n  rebootstrap_mode = "{mode}"\n  rebootstrap_delay = "{delay}"'
    kept.insert(place, f'{settings}\n  experimental {{ sync_interval = "1s" }}')
    agent.config.write_text("\n".join(kept))


def replace_keys(site: Site, server: Server) -> None:
    """The server starts anew with nothing of what it had."""
    server.run.end()
    for path in (*server.folder.glob("datastore.sqlite3*"), site.folder / "keys.json", server.folder / "journal.pem"):
        path.unlink(missing_ok=True)
    server.start()
    server.create_entry(NAMED, WORKLOAD)


def state(agent: Agent) -> Any:
    return json.loads((agent.folder / "agent-data.json").read_text())


@pytest.mark.timeout(300)
def test_the_agent_ends_when_the_delay_is_over_and_its_next_start_asks_for_the_bundle(site: Site) -> None:
    server = site.server()
    agent = site.agent(server)
    server.create_entry(NAMED, WORKLOAD)
    path = site.folder / "bundle.sock"
    source = f'trust_bundle_url = "http://localhost/bundle?site=b&a=1"\n  trust_bundle_unix_socket = "{path}"'
    configure(agent, source, "always", "3s")
    with bundles(path) as asked:
        asked.content = server.bundle
        agent.start()
        assert WORKLOAD in agent.fetch()
        assert asked.asked[-1] == asked.asked[-1] | {
            "site": ["b"],
            "a": ["1"],
            "spire-attest-mode": ["bootstrap"],
            "spire-connection-attempts": ["1"],
            "spire-server-address": ["127.0.0.1"],
            "spire-server-port": [str(server.port)],
            "spiffe-trust-domain": ["example.org"],
        }
        found = state(agent)
        assert (found["bootstrap_use"], found["connection_attempts"]) == (2, 0)
        assert found["bootstrap_start_time"].startswith("0001-01-01T00:00:00")
        replace_keys(site, server)
        assert agent.run.wait() == 1
        log = agent.run.output()
        assert "Trust Bundle and Server don't agree, ignoring for now" in log
        assert "Trust Bundle and Server don't agree, rebootstrapping" in log
        assert "rebootstrapping" in log.splitlines()[-1] or "rebootstrap" in log.splitlines()[-2]
        found = state(agent)
        assert not found["svid"]
        assert not found["bundle"]
        assert (found["bootstrap_use"], found["connection_attempts"]) == (2, 0)
        assert not found["bootstrap_start_time"].startswith("0001")
        agent.start()
        assert asked.asked[-1]["spire-attest-mode"] == ["rebootstrap"]
        assert asked.asked[-1]["spire-connection-attempts"] == ["1"]
        assert len(asked.asked) == 2
        assert WORKLOAD in agent.fetch()


@pytest.mark.timeout(300)
def test_without_it_the_agent_ends_and_keeps_what_it_has(site: Site) -> None:
    server = site.server()
    agent = site.agent(server)
    configure(agent, f'trust_bundle_path = "{agent.folder}/bundle.pem"', "never", "1s")
    agent.start()
    replace_keys(site, server)
    assert agent.run.wait() == 1
    assert state(agent)["svid"]


@pytest.mark.timeout(300)
def test_a_start_that_meets_the_other_server_ends_too_and_the_one_after_it_is_good(site: Site) -> None:
    server = site.server()
    agent = site.agent(server)
    configure(agent, f'trust_bundle_path = "{agent.folder}/bundle.pem"', "auto", "0s")
    agent.start()
    agent.run.end()
    replace_keys(site, server)
    (agent.folder / "bundle.pem").write_text(server.bundle())
    agent.run.start()
    assert agent.run.wait() == 1
    agent.start()
    assert WORKLOAD in agent.fetch()


@pytest.mark.timeout(300)
def test_the_bundle_comes_from_the_agent_above(site: Site) -> None:
    """And from there again, when the server has other keys."""
    server = site.server()
    above = site.agent(server, "above")
    above.start()
    agent = spire.Agent(site.folder / "below", server, program=above.program, node_attestor=above.node_attestor)
    site.programs.append(agent.run)
    server.create_entry(NAMED, WORKLOAD)
    above.fetch()
    configure(agent, f'trust_bundle_spiffe_workload_api = "unix://{above.socket}"', "auto", "0s")
    (agent.folder / "bundle.pem").unlink()
    agent.start()
    assert WORKLOAD in agent.fetch()
