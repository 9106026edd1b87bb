"""Who may be given others' identities, as an agent's configuration says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import AgentConfig, load
from identity.spiffeid import SpiffeId
from operations.errors import ConfigurationError, ConfigurationErrors

FILE = """agent {{
  trust_domain = "example.org"  server_address = "h"  server_port = 8081  trust_bundle_path = "/b.pem"
  socket_path = "/run/spire/public/api.sock"
{}
}}
plugins {{ }}
"""
PID = "type.googleapis.com/spiffe.broker.WorkloadPIDReference"
ANY = 'allowed_reference_types = [{ type_url = "*" }]'


def loaded(folder: Path, settings: str) -> AgentConfig:
    """The settings start on line 4."""
    path = folder / "agent.conf"
    path.write_text(FILE.format(settings))
    return load(str(path))


def broker(folder: Path, *lines: str) -> AgentConfig:
    return loaded(folder, "experimental { broker {\n" + "\n".join(lines) + "\n} }")


def test_nobody_by_default(tmp_path: Path) -> None:
    config = loaded(tmp_path, "")
    assert (config.authorized_delegates, config.broker, config.log_selectors) == ((), None, ())


def test_delegates_and_logged_selectors(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        admin_socket_path = "/run/spire/admin/api.sock"  log_selectors = ["unix:uid", "k8s"]
        authorized_delegates = ["spiffe://example.org/a", "spiffe://example.org/b"]
        """,
    )
    assert config.authorized_delegates == ("spiffe://example.org/a", "spiffe://example.org/b")
    assert config.log_selectors == ("unix:uid", "k8s")
    assert config.warnings == ()


def test_delegates_without_a_socket_to_call_at_are_told_of(tmp_path: Path) -> None:
    (warning,) = loaded(tmp_path, 'authorized_delegates = ["spiffe://example.org/a"]').warnings
    assert warning.startswith("authorized_delegates has no effect without admin_socket_path")


def test_each_delegate_that_cannot_be_one_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationErrors) as caught:
        loaded(tmp_path, 'authorized_delegates = ["spiffe://example.org/a", "spiffe://other.org/a", "nonsense"]')
    assert [(each.line, each.reason) for each in caught.value.problems] == [
        (
            4,
            (
                'error validating authorized delegate "spiffe://other.org/a": SPIFFE ID "spiffe://other.org/a" is not '
                'a member of trust domain "example.org"'
            ),
        ),
        (4, 'error validating authorized delegate "nonsense": scheme is missing or invalid'),
    ]


def test_a_broker_endpoint(tmp_path: Path) -> None:
    found = broker(
        tmp_path,
        'socket_path = "/run/spire/broker/broker.sock"',
        'bind_address = "127.0.0.1:8443"',
        f"""brokers = [
          {{ id = "spiffe://example.org/broker"
            allowed_reference_types = [
              {{ type_url = "{PID}" }},
              {{ type_url = "x/y", allow_over_tcp = true }},
            ]
          }},
          {{ id = "spiffe://other.org/broker", {ANY} }},
        ]""",
    ).broker
    assert found is not None
    assert (found.socket_path, found.bind_address) == ("/run/spire/broker/broker.sock", ("127.0.0.1", 8443))
    assert found.brokers == {
        SpiffeId.parse("spiffe://example.org/broker"): {PID: False, "x/y": True},
        SpiffeId.parse("spiffe://other.org/broker"): {"*": False},
    }


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8443", ("", 8443)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:1", ("localhost", 1)),
        ("127.0.0.1:https", ("127.0.0.1", 443)),
    ],
)
def test_addresses(tmp_path: Path, text: str, address: tuple[str, int]) -> None:
    brokers = f'brokers = [{{ id = "spiffe://example.org/b", {ANY} }}]'
    found = broker(tmp_path, f'bind_address = "{text}"', brokers).broker
    assert found is not None
    assert found.bind_address == address


BROKER = 'id = "spiffe://example.org/b"'


@pytest.mark.parametrize(
    ("brokers", "reason"),
    [
        ("", "experimental.broker.brokers: at least one broker is required"),
        (f"{{ {ANY} }}", "experimental.broker.brokers[0].id: must be specified"),
        (
            f"{{ {BROKER}, {ANY} }}, {{ {BROKER}, {ANY} }}",
            "experimental.broker.brokers[spiffe://example.org/b].id: duplicate broker id",
        ),
        (f'{{ id = "b", {ANY} }}', "experimental.broker.brokers[b].id: scheme is missing or invalid"),
        (
            f"{{ {BROKER} }}",
            (
                "experimental.broker.brokers[spiffe://example.org/b].allowed_reference_types: "
                "must list at least one reference type URL"
            ),
        ),
        (
            f'{{ {BROKER}, allowed_reference_types = [{{ type_url = "x" }}, {{ allow_over_tcp = true }}] }}',
            (
                "experimental.broker.brokers[spiffe://example.org/b].allowed_reference_types[1].type_url: "
                "must be specified"
            ),
        ),
        (
            f'{{ {BROKER}, allowed_reference_types = [{{ type_url = "x" }}, {{ type_url = "*" }}] }}',
            (
                "experimental.broker.brokers[spiffe://example.org/b].allowed_reference_types: "
                'wildcard "*" must be the only allowed reference type'
            ),
        ),
    ],
)
def test_brokers_that_cannot_be_ones(tmp_path: Path, brokers: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        broker(tmp_path, 'socket_path = "/run/b.sock"', f"brokers = [{brokers}]")
    assert (caught.value.line, caught.value.reason) == (6, reason)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("", "experimental.broker requires socket_path, bind_address, or both"),
        (
            'socket_path = "/run/spire/public/b.sock"',
            (
                "broker socket cannot be in the same directory or a subdirectory as that containing the Workload API "
                "socket"
            ),
        ),
        (
            'bind_address = "8443"',
            'invalid experimental.broker.bind_address "8443": give host:port, for example 0.0.0.0:8443',
        ),
        (
            'bind_address = "127.0.0.1:65536"',
            'invalid experimental.broker.bind_address "127.0.0.1:65536": there is no port above 65535',
        ),
        (
            'bind_address = ":nowhere"',
            (
                'invalid experimental.broker.bind_address ":nowhere": '
                '"nowhere" is no port: give host:port, for example 0.0.0.0:8443'
            ),
        ),
        (
            'bind_address = "::1:8443"',
            (
                'invalid experimental.broker.bind_address "::1:8443": '
                "an IPv6 address is given in brackets, for example [::1]:8443"
            ),
        ),
        ('sockt_path = "/b"', 'unknown key "sockt_path" in agent.experimental.broker: did you mean "socket_path"?'),
    ],
)
def test_places_that_cannot_be_listened_at(tmp_path: Path, where: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        broker(tmp_path, where, f"brokers = [{{ {BROKER}, {ANY} }}]")
    assert caught.value.reason == reason
