"""The settings of the k8s workload attestor, with SPIRE's defaults, rules and words."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from attestors.sigstore import configuration as sigstore
from identity.spiffeid import SpiffeId
from operations import duration
from operations.errors import InvalidArgument
from operations.quoting import quote

AGENT_NODE = "agent_node"
CLUSTER = "cluster"
ENFORCED = "enforced"
PERMISSIVE = "permissive"

_SECURE_PORT = 10250
_LAST_PORT = 65535
_CA_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - where it is, not what it is
_NODE_NAME_ENV = "MY_NODE_NAME"
_POLL_ATTEMPTS = 60
_POLL_RETRY_INTERVAL = 0.5
_RELOAD_INTERVAL = 60.0
_BROKER = "experimental.broker"


class _Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all blocks."""


class Cache(_Block, frozen=True, kw_only=True):
    enabled: bool = False


class ApiServer(_Block, frozen=True, kw_only=True):
    cache: Cache = Cache()


class BrokerEntry(_Block, frozen=True, kw_only=True):
    """`pod_reference_scope` says whether the broker's pods may be on other nodes: agent_node or cluster."""

    id: str = ""
    pod_reference_scope: str = ""

    @property
    def anywhere(self) -> bool:
        return self.pod_reference_scope == CLUSTER


class Broker(_Block, frozen=True, kw_only=True):
    """Who may name pods and other objects over the agent's broker API, and whether Kubernetes is asked about each."""

    access_policy: str = ""
    brokers: tuple[BrokerEntry, ...] = ()

    def check(self) -> None:
        """Raises InvalidArgument."""
        choice = f"one of [{PERMISSIVE}, {ENFORCED}]"
        if not self.access_policy:
            raise InvalidArgument(f"{_BROKER}.access_policy: must be specified as {choice}")
        if self.access_policy not in (PERMISSIVE, ENFORCED):
            value = quote(self.access_policy)
            raise InvalidArgument(f"{_BROKER}.access_policy: unsupported value {value}; must be {choice}")
        if not self.brokers:
            raise InvalidArgument(f"{_BROKER}.brokers: at least one broker is required")
        seen: set[str] = set()
        for index, entry in enumerate(self.brokers):
            _check_broker(entry, index, seen)
            seen.add(entry.id)

    def entry(self, broker: str) -> BrokerEntry | None:
        return next((each for each in self.brokers if each.id == broker), None)


class Experimental(_Block, frozen=True, kw_only=True):
    api_server: ApiServer = ApiServer()
    broker: Broker | None = None


class Configuration(_Block, frozen=True, kw_only=True):
    """Durations are in Go's notation; numbers that are not positive, and texts that are empty, mean the default."""

    kubelet_read_only_port: int = 0
    kubelet_secure_port: int = 0
    disable_kubelet_client: bool = False
    max_poll_attempts: int = 0
    poll_retry_interval: str = ""
    kubelet_ca_path: str = ""
    skip_kubelet_verification: bool = False
    token_path: str = ""
    certificate_path: str = ""
    private_key_path: str = ""
    use_anonymous_authentication: bool = False
    node_name_env: str = ""
    node_name: str = ""
    reload_interval: str = ""
    disable_container_selectors: bool = False
    use_new_container_locator: bool = True
    verbose_container_locator_logs: bool = False
    enable_namespace_labels: bool = False
    sigstore: sigstore.Configuration | None = None
    experimental: Experimental = Experimental()

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if self.experimental.broker is not None:
            self.experimental.broker.check()
        self._check_disabled()
        _seconds(self.poll_retry_interval, 0.0, "poll retry")
        _seconds(self.reload_interval, 0.0, "reload")
        if self.kubelet_secure_port > 0 and self.kubelet_read_only_port > 0:
            raise InvalidArgument("cannot use both the read-only and secure port")
        for key in ("kubelet_secure_port", "kubelet_read_only_port"):
            if getattr(self, key) > _LAST_PORT:
                raise InvalidArgument(f"{key} must not be greater than {_LAST_PORT}")
        if self.secure and not self.use_anonymous_authentication:
            self._check_pair()

    @property
    def secure(self) -> bool:
        """Whether the kubelet is asked over TLS."""
        return self.kubelet_read_only_port <= 0

    @property
    def port(self) -> int:
        if not self.secure:
            return self.kubelet_read_only_port
        return self.kubelet_secure_port if self.kubelet_secure_port > 0 else _SECURE_PORT

    @property
    def poll_attempts(self) -> int:
        return self.max_poll_attempts if self.max_poll_attempts > 0 else _POLL_ATTEMPTS

    @property
    def poll_interval(self) -> float:
        """Seconds."""
        return _seconds(self.poll_retry_interval, _POLL_RETRY_INTERVAL, "poll retry")

    @property
    def reload_seconds(self) -> float:
        return _seconds(self.reload_interval, _RELOAD_INTERVAL, "reload")

    @property
    def ca_file(self) -> str:
        return self.kubelet_ca_path or _CA_PATH

    @property
    def token_file(self) -> str:
        return self.token_path or _TOKEN_PATH

    def node(self, environment: Mapping[str, str] = os.environ) -> str:
        """The name by which the kubelet is asked; empty where none is known, which means this host."""
        return self.node_name or environment.get(self.node_name_env or _NODE_NAME_ENV, "")

    def _check_pair(self) -> None:
        if self.certificate_path and not self.private_key_path:
            raise InvalidArgument("the private key path is required with the certificate path")
        if self.private_key_path and not self.certificate_path:
            raise InvalidArgument("the certificate path is required with the private key path")

    def _check_disabled(self) -> None:
        if not self.disable_kubelet_client:
            return
        conflicts = {
            "kubelet_read_only_port": self.kubelet_read_only_port > 0,
            "kubelet_secure_port": self.kubelet_secure_port > 0,
            "kubelet_ca_path": self.kubelet_ca_path,
            "skip_kubelet_verification": self.skip_kubelet_verification,
            "token_path": self.token_path,
            "certificate_path": self.certificate_path,
            "private_key_path": self.private_key_path,
            "use_anonymous_authentication": self.use_anonymous_authentication,
            "node_name_env": self.node_name_env,
            "node_name": self.node_name,
            "reload_interval": self.reload_interval,
        }
        for key, given in conflicts.items():
            if given:
                raise InvalidArgument(f"disable_kubelet_client cannot be used with {key}")
        for entry in self.experimental.broker.brokers if self.experimental.broker else ():
            if not entry.anywhere:
                name = f"{_BROKER}.brokers[{entry.id}].pod_reference_scope"
                raise InvalidArgument(f'{name} must be "{CLUSTER}" when disable_kubelet_client is true')


def _check_broker(entry: BrokerEntry, index: int, seen: set[str]) -> None:
    if not entry.id:
        raise InvalidArgument(f"{_BROKER}.brokers[{index}].id: must be specified")
    place = f"{_BROKER}.brokers[{entry.id}]"
    if entry.id in seen:
        raise InvalidArgument(f"{place}.id: duplicate broker id")
    try:
        SpiffeId.parse(entry.id)
    except InvalidArgument as error:
        raise InvalidArgument(f"{place}.id: {error}") from error
    if entry.pod_reference_scope not in ("", AGENT_NODE, CLUSTER):
        value = quote(entry.pod_reference_scope)
        choice = f"must be one of [{AGENT_NODE}, {CLUSTER}]"
        raise InvalidArgument(f"{place}.pod_reference_scope: unsupported value {value}; {choice}")


def _seconds(text: str, default: float, what: str) -> float:
    """Raises InvalidArgument."""
    if not text:
        return default
    try:
        seconds = duration.parse(text).total_seconds()
    except ValueError as error:
        raise InvalidArgument(f"unable to parse {what} interval: {error}") from error
    return seconds if seconds > 0 else default
