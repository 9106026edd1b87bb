"""The settings of the k8s workload attestor: SPIRE's defaults and rules, in its words."""

from __future__ import annotations

import pytest

from attestors.k8s.configuration import Configuration
from operations import config, hcl
from operations.errors import ConfigurationError

ONE = 'brokers = [{ id = "spiffe://example.org/broker" }]'


def read(text: str) -> Configuration:
    return config.bind(Configuration, hcl.parse(text, "agent.conf"))


def test_defaults() -> None:
    found = read("")
    assert (found.secure, found.port) == (True, 10250)
    assert (found.poll_attempts, found.poll_interval, found.reload_seconds) == (60, 0.5, 60.0)
    assert found.ca_file == "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    assert found.token_file == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert found.node({"MY_NODE_NAME": "node-7"}) == "node-7"
    assert found.node({}) == ""
    assert found.use_new_container_locator
    assert not found.disable_container_selectors
    assert found.sigstore is None
    assert found.experimental.broker is None


def test_everything_at_once() -> None:
    found = read("""
        kubelet_secure_port = 10251
        max_poll_attempts = 7
        poll_retry_interval = "250ms"
        kubelet_ca_path = "/ca"
        skip_kubelet_verification = true
        token_path = "/token"
        node_name_env = "NODE"
        reload_interval = "2m"
        disable_container_selectors = true
        use_new_container_locator = false
        verbose_container_locator_logs = true
        enable_namespace_labels = true
        sigstore { ignore_tlog = true }
        experimental {
          api_server { cache { enabled = true } }
          broker {
            access_policy = "enforced"
            brokers = [
              { id = "spiffe://example.org/broker", pod_reference_scope = "cluster" },
              { id = "spiffe://example.org/other" },
            ]
          }
        }
    """)
    assert (found.port, found.poll_attempts, found.poll_interval, found.reload_seconds) == (10251, 7, 0.25, 120.0)
    assert (found.ca_file, found.token_file) == ("/ca", "/token")
    assert found.node({"NODE": "a", "MY_NODE_NAME": "b"}) == "a"
    assert not found.use_new_container_locator
    assert found.sigstore is not None
    assert found.sigstore.ignore_tlog
    assert found.experimental.api_server.cache.enabled
    broker = found.experimental.broker
    assert broker is not None
    first, second = broker.entry("spiffe://example.org/broker"), broker.entry("spiffe://example.org/other")
    assert first is not None
    assert first.anywhere
    assert second is not None
    assert not second.anywhere
    assert broker.entry("spiffe://example.org/third") is None


def test_the_node_name_comes_before_the_environment() -> None:
    assert read('node_name = "a" node_name_env = "NODE"').node({"NODE": "b"}) == "a"


def test_the_read_only_port() -> None:
    found = read("kubelet_read_only_port = 10255")
    assert (found.secure, found.port) == (False, 10255)


def test_what_is_not_positive_means_the_default() -> None:
    found = read('max_poll_attempts = -1 poll_retry_interval = "-1s" reload_interval = "0" kubelet_secure_port = -5')
    assert (found.poll_attempts, found.poll_interval, found.reload_seconds, found.port) == (60, 0.5, 60.0, 10250)


def permissive(brokers: str) -> str:
    return f'experimental {{ broker {{ access_policy = "permissive" brokers = [{brokers}] }} }}'


REFUSED = {
    'poll_retry_interval = "soon"': 'unable to parse poll retry interval: time: invalid duration "soon"',
    'reload_interval = "5"': 'unable to parse reload interval: time: missing unit in duration "5"',
    "kubelet_secure_port = 1 kubelet_read_only_port = 2": "cannot use both the read-only and secure port",
    "kubelet_secure_port = 65536": "kubelet_secure_port must not be greater than 65535",
    "kubelet_read_only_port = 65536": "kubelet_read_only_port must not be greater than 65535",
    'certificate_path = "/cert"': "the private key path is required with the certificate path",
    'private_key_path = "/key"': "the certificate path is required with the private key path",
    "kubelet_port = 1": 'unknown key "kubelet_port"',
    "experimental { broker { } }": (
        "experimental.broker.access_policy: must be specified as one of [permissive, enforced]"
    ),
    f'experimental {{ broker {{ access_policy = "lax" {ONE} }} }}': (
        'experimental.broker.access_policy: unsupported value "lax"; must be one of [permissive, enforced]'
    ),
    'experimental { broker { access_policy = "permissive" } }': (
        "experimental.broker.brokers: at least one broker is required"
    ),
    permissive("{ }"): ("experimental.broker.brokers[0].id: must be specified"),
    permissive('{ id = "spiffe://a/b" }, { id = "spiffe://a/b" }'): (
        "experimental.broker.brokers[spiffe://a/b].id: duplicate broker id"
    ),
    permissive('{ id = "b" }'): ("experimental.broker.brokers[b].id: scheme is missing or invalid"),
    permissive('{ id = "spiffe://a/b" pod_reference_scope = "x" }'): (
        'experimental.broker.brokers[spiffe://a/b].pod_reference_scope: unsupported value "x"; '
        "must be one of [agent_node, cluster]"
    ),
    f'disable_kubelet_client = true experimental {{ broker {{ access_policy = "enforced" {ONE} }} }}': (
        'experimental.broker.brokers[spiffe://example.org/broker].pod_reference_scope must be "cluster" '
        "when disable_kubelet_client is true"
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read(text)
    assert REFUSED[text] in str(refusal.value)
    assert str(refusal.value).startswith("agent.conf:1: ")


KUBELET = {
    "kubelet_read_only_port": "1",
    "kubelet_secure_port": "1",
    "kubelet_ca_path": '"x"',
    "skip_kubelet_verification": "true",
    "token_path": '"x"',
    "certificate_path": '"x"',
    "private_key_path": '"x"',
    "use_anonymous_authentication": "true",
    "node_name_env": '"x"',
    "node_name": '"x"',
    "reload_interval": '"1m"',
}


@pytest.mark.parametrize("key", KUBELET)
def test_a_disabled_kubelet_client_has_no_settings(key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"disable_kubelet_client cannot be used with {key}$"):
        read(f"disable_kubelet_client = true {key} = {KUBELET[key]}")


def test_a_disabled_kubelet_client() -> None:
    assert read("disable_kubelet_client = true").disable_kubelet_client


def test_half_a_pair_does_not_matter_to_those_who_show_none() -> None:
    assert read('certificate_path = "/cert" use_anonymous_authentication = true').use_anonymous_authentication
    assert not read('certificate_path = "/cert" kubelet_read_only_port = 10255').secure
