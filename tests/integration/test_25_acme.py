"""A bundle endpoint whose certificate comes by ACME: a server killed amid its order, and a CA that refuses."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.integration.conftest import MakeServer
from tests.simulators.acme import AcmeServer, problem
from tests.simulators.ports import free_port
from tests.simulators.spire import command, eventually
from tests.simulators.web_clients import get

NAME = "bundle.test"


def settings(ca: AcmeServer, name: str = NAME) -> str:
    return f"""federation {{ bundle_endpoint {{
      address = "127.0.0.1"
      port = {ca.port}
      profile "https_web" {{ acme {{
        directory_url = "{ca.directory}"
        domain_name = "{name}"
        email = "ops@example.org"
        tos_accepted = true
      }} }}
    }} }}"""


@pytest.mark.timeout(300)
def test_a_server_killed_amid_its_order_goes_on_with_it(tmp_path: Path, make_server: MakeServer) -> None:
    ordered = threading.Event()
    with AcmeServer(tmp_path, free_port()) as ca:
        root = ca.authority.certificate.public_bytes(Encoding.PEM).decode()
        ca.answers["finalize"] = [problem("serverInternal", "not today", 500)]
        ca.entered = lambda step: ordered.set() if step == "authorization" else None
        server = make_server(settings=settings(ca))
        server.run.environment["SSL_CERT_FILE"] = str(ca.authority.file)
        server.start()
        assert ordered.wait(60)
        eventually(lambda: "serverInternal: not today" in server.run.output(), "the line about the refusal")
        assert get(ca.port, NAME, root) is None
        assert server.healthy(), "the rest goes on"
        server.run.end(signal.SIGKILL)

        server.start()
        found = eventually(lambda: get(ca.port, NAME, root), f"the bundle: {server.run.output()}")
        assert [key["use"] for key in json.loads(found[1])["keys"]] == ["x509-svid", "jwt-svid"]
        assert ca.orders == 1
        assert len(ca.contacts) == 2
        by_use = {use["purpose"] for key in server.ask_json("keys", "list")["keys"] for use in key["used_by"]}
        assert by_use == {"X.509 authority", "JWT authority", "ACME account"}
        server.run.end()


def test_a_name_that_no_ca_would_take_ends_the_start(tmp_path: Path, make_server: MakeServer) -> None:
    with AcmeServer(tmp_path, free_port()) as ca:
        server = make_server(settings=settings(ca, "*.test"))
        ended = command(server.program, "run", "-config", str(server.config), environment=server.environment)
    assert ended.returncode == 1
    (line,) = [line for line in (ended.stdout + ended.stderr).splitlines() if "*.test" in line]
    assert "domain_name" in line
