from __future__ import annotations

import socket
import subprocess
import sys

from tests.simulators.ports import free_port
from tests.simulators.spire import ROOT

ASK = "from tests.simulators.ports import free_port; print(free_port()); input()"


def test_no_port_is_given_twice_in_a_row_nor_while_it_is_taken() -> None:
    given = {free_port() for _ in range(50)}
    assert len(given) == 50
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        assert listening.getsockname()[1] not in {free_port() for _ in range(300)}


def test_processes_have_ports_apart() -> None:
    command = [sys.executable, "-c", ASK]
    both = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    blocks: set[int] = {free_port() // 200}
    for each in both:
        assert each.stdout is not None
        blocks.add(int(each.stdout.readline()) // 200)
    for each in both:
        each.communicate(b"\n", timeout=60)
    assert len(blocks) == 3
