from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.errors import InvalidArgument
from plugins.external.handshake import Address, environment, parse


def test_what_a_plugin_finds_in_its_environment() -> None:
    assert environment("KeyManager") == {
        "KeyManager": "KeyManager",
        "PLUGIN_MIN_PORT": "10000",
        "PLUGIN_MAX_PORT": "25000",
        "PLUGIN_PROTOCOL_VERSIONS": "1",
    }


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("1|1|unix|/tmp/plugin1|grpc", Address("unix", "/tmp/plugin1")),
        ("1|1|unix|/tmp/plugin1|grpc|\n", Address("unix", "/tmp/plugin1")),
        ("1|1|unix|/tmp/plugin1|grpc||false\n", Address("unix", "/tmp/plugin1")),
        ("1|1|tcp|127.0.0.1:10000|grpc", Address("tcp", "127.0.0.1:10000")),
        ("1|1|tcp|[::1]:10000|grpc", Address("tcp", "[::1]:10000")),
    ],
)
def test_a_line(line: str, address: Address) -> None:
    assert parse(line) == address


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("", 'Unrecognized remote plugin message: ""'),
        ("hello, world\n", 'Unrecognized remote plugin message: "hello, world"'),
        ("1|1|unix", "Unrecognized remote plugin message"),
        ("x|1|unix|/a|grpc", "error parsing core protocol version"),
        (
            "2|1|unix|/a|grpc",
            "incompatible core API version with plugin. Plugin version: 2, Core version: 1",
        ),
        ("1|x|unix|/a|grpc", "Error parsing protocol version"),
        ("1|2|unix|/a|grpc", "incompatible API version with plugin. Plugin version: 2, Client versions: [1]"),
        ("1|1|pipe|/a|grpc", 'unknown address type: "pipe"'),
        ("1|1|unix||grpc", "is no path of a Unix socket"),
        (f"1|1|unix|/{'a' * 200}|grpc", "is no path of a Unix socket"),
        ("1|1|tcp|192.0.2.1:80|grpc", "calls to plugins are not encrypted"),
        ("1|1|tcp|localhost:80|grpc", "is not one of this machine's own"),
        ("1|1|tcp|127.0.0.1:0|grpc", "is not one of this machine's own"),
        ("1|1|tcp|127.0.0.1:99999|grpc", "is not one of this machine's own"),
        ("1|1|tcp|127.0.0.1|grpc", "is not one of this machine's own"),
        ("1|1|unix|/a", 'unsupported plugin protocol "netrpc". Supported: [grpc]'),
        ("1|1|unix|/a|netrpc", 'unsupported plugin protocol "netrpc". Supported: [grpc]'),
    ],
)
def test_a_line_that_is_refused(line: str, fault: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse(line)
    assert fault in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@given(st.text(max_size=300) | st.lists(st.text(max_size=20), min_size=4, max_size=8).map("|".join))
def test_any_line_is_an_address_or_refused(line: str) -> None:
    fault = ""
    try:
        found = parse(line).address
    except InvalidArgument as error:
        found, fault = "", str(error)
    assert found or fault
    assert "\n" not in fault
