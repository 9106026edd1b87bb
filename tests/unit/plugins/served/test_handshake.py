from __future__ import annotations

from plugins.external import handshake as host
from plugins.served.handshake import Handshake, invited


def test_the_line_is_what_a_host_reads() -> None:
    line = Handshake.of({}).line("/tmp/x/plugin.sock", "")
    assert line == "1|1|unix|/tmp/x/plugin.sock|grpc|\n"
    assert host.parse(line) == host.Address("unix", "/tmp/x/plugin.sock")


def test_the_line_has_the_certificate_of_mutual_tls() -> None:
    made = Handshake.of({"PLUGIN_CLIENT_CERT": "pem"})
    assert made.client_certificate == "pem"
    assert made.line("/p", "Y2VydA") == "1|1|unix|/p|grpc|Y2VydA\n"


def test_a_host_that_asks_for_one_shared_connection_is_told_no() -> None:
    assert Handshake.of({"PLUGIN_MULTIPLEX_GRPC": "true"}).line("/p", "") == "1|1|unix|/p|grpc||false\n"


def test_the_host_may_name_the_folder() -> None:
    assert Handshake.of({"PLUGIN_UNIX_SOCKET_DIR": "/run/x"}).folder == "/run/x"
    assert Handshake.of({"PLUGIN_UNIX_SOCKET_DIR": ""}).folder is None


def test_the_cookie_is_the_type() -> None:
    assert invited("KeyManager", {"KeyManager": "KeyManager"})
    assert not invited("KeyManager", {"KeyManager": "1"})
    assert not invited("KeyManager", {"NodeAttestor": "NodeAttestor"})
