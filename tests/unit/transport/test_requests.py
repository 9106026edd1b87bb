"""What a server reads in a request's headers, and what the kernel says of a caller."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from transport import unix
from transport.engine import pack
from transport.server_connection import RequestHead
from transport.status import Code


def head(**changed: str) -> RequestHead:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/tests.echo.Echo/Unary",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    fields |= {name.replace("_", "-").replace("pseudo-", ":"): value for name, value in changed.items()}
    return RequestHead.parse(pack((name.encode(), value.encode("latin-1")) for name, value in fields.items()))


def test_a_request() -> None:
    read = head(grpc_timeout="250m", workload_spiffe_io="true")
    assert read.refusal is None
    assert (read.path, read.timeout, read.encoding) == ("/tests.echo.Echo/Unary", 0.25, "identity")
    assert read.metadata["workload-spiffe-io"] == "true"
    assert head(grpc_timeout="250m", workload_spiffe_io="true") is read


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc;charset=utf-8"])
def test_subtypes_are_accepted(content_type: str) -> None:
    assert head(content_type=content_type).refusal is None


@pytest.mark.parametrize(
    ("changed", "status", "code", "text"),
    [
        ({"content_type": "text/html"}, 415, Code.INVALID_ARGUMENT, 'invalid gRPC request content-type "text/html"'),
        ({"content_type": "application/grpcx"}, 415, Code.INVALID_ARGUMENT, "invalid gRPC request content-type"),
        ({"pseudo_method": "GET"}, 405, Code.INTERNAL, "should be POST"),
        ({"grpc_encoding": "gzip"}, 200, Code.UNIMPLEMENTED, 'grpc-encoding "gzip"'),
        ({"grpc_timeout": "1x"}, 400, Code.INTERNAL, "malformed grpc-timeout: "),
    ],
)
def test_what_is_refused(changed: dict[str, str], status: int, code: Code, text: str) -> None:
    read = head(**changed)
    assert read.refusal is not None
    assert (read.http_status, read.refusal.code) == (status, code)
    assert text in read.refusal.message


def test_the_start_of_a_process_is_read_behind_a_name_with_brackets_and_spaces() -> None:
    name = Path(f"/proc/{os.getpid()}/comm")
    before = name.read_text()
    name.write_text("a) b (c) 1 2")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = unix.caller(ours)
    name.write_text(before)
    assert process.pid == os.getpid()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 < process.started / os.sysconf("SC_CLK_TCK") <= uptime
