from datetime import timedelta
from pathlib import Path

import pytest

from agent.config import AgentConfig, Overrides, declare_flags, load
from agent.config.file import RateLimit
from operations.errors import ConfigurationError, ConfigurationErrors
from operations.flags import FlagSet
from plugins.keymanager import KeyType

EXAMPLE = Path(__file__).parents[3] / "conf" / "agent" / "agent.conf"
BASE = 'agent {{\n  trust_domain = "example.org"  server_address = "h"  server_port = 8081\n{}\n}}\nplugins {{ }}\n'


def configured(folder: Path, settings: str = "", bundle: str = 'trust_bundle_path = "/b.pem"') -> str:
    """A file whose settings start on line 4."""
    path = folder / "agent.conf"
    path.write_text(BASE.format(f"  {bundle}\n{settings}"))
    return str(path)


def loaded(folder: Path, settings: str = "", bundle: str = 'trust_bundle_path = "/b.pem"') -> AgentConfig:
    return load(configured(folder, settings, bundle))


def test_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert (config.trust_domain.name, config.server_address, config.server_port) == ("example.org", "h", 8081)
    assert (config.data_dir, config.socket_path) == (".", "/tmp/spire-agent/public/api.sock")
    assert (config.trust_bundle_path, config.trust_bundle_format, config.trust_bundle_url) == ("/b.pem", "pem", None)
    assert (config.log_level, config.log_format) == ("INFO", "text")
    assert config.workload_key_type is KeyType.EC_P256
    assert (config.join_token, config.availability_target, config.sync_interval) == (None, None, None)
    assert config.use_sync_authorized_entries
    assert not any((config.insecure_bootstrap, config.allow_unauthenticated_verifiers, config.require_pq_kem))
    assert (config.x509_svid_cache_max_size, config.jwt_svid_cache_max_size) == (0, 0)
    assert (config.sds.default_svid_name, config.sds.default_bundle_name) == ("default", "ROOTCA")
    assert config.sds.default_all_bundles_name == "ALL"
    assert not any((config.sds.disable_spiffe_cert_validation, config.disable_sds_api))


def test_every_supported_setting(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("confidential\n")
    config = loaded(
        tmp_path,
        f"""
        data_dir = "/data"  log_source_location = true  join_token_file = "{tmp_path}/token"
        workload_x509_svid_key_type = "rsa-2048"  allow_unauthenticated_verifiers = true
        allowed_foreign_jwt_claims = ["a"]  availability_target = "24h"  x509_svid_cache_max_size = 5
        jwt_svid_cache_max_size = 6  disable_sds_api = true  rebootstrap_mode = "never"  rebootstrap_delay = "1m"
        experimental {{ sync_interval = "2s"  use_sync_authorized_entries = false  require_pq_kem = true }}
        """,
        'trust_bundle_url = "http://localhost/b?x=1"  trust_bundle_unix_socket = "/s"  trust_bundle_format = "spiffe"',
    )
    assert (config.trust_bundle_url, config.trust_bundle_unix_socket) == ("http://localhost/b?x=1", "/s")
    assert config.trust_bundle_format == "spiffe"
    assert config.join_token == "confidential"
    assert "confidential" not in repr(config)
    assert config.workload_key_type is KeyType.RSA_2048
    assert config.allowed_foreign_jwt_claims == ("a",)
    assert (config.availability_target, config.sync_interval) == (timedelta(hours=24), timedelta(seconds=2))
    assert (config.x509_svid_cache_max_size, config.jwt_svid_cache_max_size) == (5, 6)
    assert not config.use_sync_authorized_entries
    assert config.require_pq_kem
    assert config.disable_sds_api
    assert (config.rebootstrap_mode, config.rebootstrap_delay) == ("never", timedelta(minutes=1))
    assert config.warnings == ("experimental.use_sync_authorized_entries is deprecated and will go: remove the key",)


def test_names_for_envoy(tmp_path: Path) -> None:
    given = 'default_svid_name = "mine"  default_bundle_name = ""  disable_spiffe_cert_validation = true'
    sds = loaded(tmp_path, f"sds {{ {given} }}").sds
    assert (sds.default_svid_name, sds.default_bundle_name, sds.default_all_bundles_name) == ("mine", "ROOTCA", "ALL")
    assert sds.disable_spiffe_cert_validation


def test_one_name_for_two_of_envoy_s_bundles_is_warned_of(tmp_path: Path) -> None:
    (warning,) = loaded(tmp_path, 'sds { default_bundle_name = "ALL" }').warnings
    assert warning.startswith('sds.default_bundle_name and sds.default_all_bundles_name are both "ALL"')


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ('trust_domian = "x"', 'unknown key "trust_domian" in agent: did you mean "trust_domain"?'),
        (
            'join_token = "a"  join_token_file = "b"',
            "join_token and join_token_file exclude each other: keep one",
        ),
        ('join_token_file = "/none"', 'join_token_file "/none" cannot be read: No such file or directory'),
        (
            'workload_x509_svid_key_type = "rsa-4096"',
            'workload_x509_svid_key_type "rsa-4096" is unknown: use ec-p256, ec-p384 or rsa-2048',
        ),
        ('availability_target = "1h"', 'availability_target "1h" is too short: use 24h0m0s or more'),
        ('availability_target = "x"', 'availability_target "x" is no duration such as 48h: time: invalid duration "x"'),
        ("x509_svid_cache_max_size = -1", "x509_svid_cache_max_size must not be negative: it is -1"),
        (
            'experimental { sync_interval = "x" }',
            'experimental.sync_interval "x" is no duration such as 10s: time: invalid duration "x"',
        ),
        ('rebootstrap_mode = "sometimes"', 'rebootstrap_mode "sometimes" is unknown: use never, auto or always'),
        (
            'rebootstrap_delay = "soon"',
            'rebootstrap_delay "soon" is no duration such as 10m: time: invalid duration "soon"',
        ),
        (
            'socket_path = "/run/spire/api.sock"\nadmin_socket_path = "/run/spire/private/admin.sock"',
            (
                "admin socket cannot be in the same directory or a subdirectory as that containing the Workload API "
                "socket"
            ),
        ),
        ('sds { default_name = "x" }', 'unknown key "default_name" in agent.sds: did you mean "default_svid_name"?'),
        (
            "experimental { ratelimit { fetch_jwt_svid = -1 } }",
            "experimental.ratelimit.fetch_jwt_svid must not be negative",
        ),
        (
            'experimental { jwt_svid_cache_hit_timeout = "soon" }',
            'could not parse jwt_svid_cache_hit_timeout: time: invalid duration "soon"',
        ),
        (
            'experimental { jwt_svid_cache_hit_timeout = "4.9s" }',
            "jwt_svid_cache_hit_timeout (4.9s) must be at least 5s",
        ),
        (
            'experimental { jwt_svid_cache_hit_timeout = "30s" }',
            "jwt_svid_cache_hit_timeout (30s) must be less than 30s",
        ),
        ('trust_bundle_unix_socket = "/s"', "trust_bundle_unix_socket needs trust_bundle_url too: set both"),
        ('trust_bundle_format = "der"', 'trust_bundle_format "der" is unknown: use pem or spiffe'),
        ("insecure_bootstrap = true", "insecure_bootstrap and trust_bundle_path exclude each other: keep one"),
    ],
)
def test_faults(tmp_path: Path, settings: str, reason: str) -> None:
    with pytest.raises((ConfigurationError, ConfigurationErrors)) as error:
        loaded(tmp_path, settings)
    assert isinstance(error.value, ConfigurationError)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("bundle", "reason"),
    [
        (
            "",
            (
                "nothing says which server to trust: "
                "set trust_bundle_path, trust_bundle_url or trust_bundle_spiffe_workload_api"
            ),
        ),
        (
            'insecure_bootstrap = true  rebootstrap_mode = "auto"',
            "rebootstrap_mode auto and insecure_bootstrap exclude each other: give the agent a trust bundle",
        ),
        (
            'trust_bundle_spiffe_workload_api = "unix:///s"  trust_bundle_path = "/b"',
            "trust_bundle_path and trust_bundle_spiffe_workload_api exclude each other: keep one",
        ),
        (
            'trust_bundle_spiffe_workload_api = "unix:///s"  trust_bundle_unix_socket = "/s"',
            "trust_bundle_unix_socket needs trust_bundle_url too: set both",
        ),
        ('trust_bundle_url = "http://x"', "trust_bundle_url must begin with https://"),
        ('trust_bundle_url = "https:///x"', "trust_bundle_url names no host"),
        ('trust_bundle_url = "https://x:99999/"', "trust_bundle_url is no URL: Port out of range 0-65535"),
        (
            'trust_bundle_url = "https://x"  trust_bundle_unix_socket = "/s"',
            "trust_bundle_url must begin with http:// beside trust_bundle_unix_socket",
        ),
        (
            'trust_bundle_url = "http://x?spire-a=1"  trust_bundle_unix_socket = "/s"',
            'trust_bundle_url has the query parameter "spire-a": names with spire- are reserved',
        ),
        (
            'trust_bundle_url = "https://x"  trust_bundle_path = "/b"',
            "trust_bundle_url and trust_bundle_path exclude each other: keep one",
        ),
        (
            'insecure_bootstrap = true  trust_bundle_url = "https://x"',
            "insecure_bootstrap and trust_bundle_url exclude each other: keep one",
        ),
        (
            'insecure_bootstrap = true  trust_bundle_url = "https://x"  trust_bundle_path = "/b"',
            "insecure_bootstrap, trust_bundle_url and trust_bundle_path exclude each other: keep one",
        ),
        *(
            (
                f'trust_bundle_spiffe_workload_api = "{address}"',
                f'trust_bundle_spiffe_workload_api "{address}" cannot be used: {reason}',
            )
            for address, reason in (
                ("/run/api.sock", "it must begin with unix:// or tcp://"),
                ("http://127.0.0.1", "it must begin with unix:// or tcp://"),
                ("unix:api.sock", "it must be unix:// and a path"),
                ("unix://", "it must name a socket, such as unix:///run/spire/agent.sock"),
                ("unix:///s?a=b", "it must have no user, query or fragment"),
                ("tcp://localhost:1", "it must be tcp://IP:port, and no name"),
                ("tcp://127.0.0.1", "it must be tcp://IP:port"),
                ("tcp://127.0.0.1:1/path", "it must be tcp://IP:port"),
            )
        ),
    ],
)
def test_exactly_one_source_of_trust(tmp_path: Path, bundle: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        loaded(tmp_path, bundle=bundle)
    assert error.value.reason == reason


def test_an_empty_join_token_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(
        ConfigurationError, match=r'agent\.conf:4: join_token_file ".*" is empty: put the token into it'
    ):
        loaded(tmp_path, f'join_token_file = "{tmp_path}/token"')


def test_missing_settings(tmp_path: Path) -> None:
    path = tmp_path / "agent.conf"
    path.write_text("agent { insecure_bootstrap = true }\nplugins { }")
    with pytest.raises(ConfigurationErrors) as errors:
        load(str(path))
    assert [problem.reason for problem in errors.value.problems] == [
        "server_address must be configured",
        "server_port must be configured",
        "trust_domain must be configured",
    ]
    path.write_text("plugins { }")
    with pytest.raises(ConfigurationError, match=r"agent section must be configured$"):
        load(str(path))


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = configured(tmp_path, bundle="")
    flags = FlagSet("run")
    read = declare_flags(flags)
    flags.parse(["-config", path, "-insecureBootstrap", "-joinToken", "t", "-serverPort", "9", "-dataDir", "/d"])
    config = read()
    assert config.insecure_bootstrap
    assert (config.join_token, config.server_port, config.data_dir) == ("t", 9, "/d")


def test_the_workload_api_may_be_switched_off(tmp_path: Path) -> None:
    assert not loaded(tmp_path).disable_workload_api
    assert loaded(tmp_path, "disable_workload_api = true").disable_workload_api
    config = load(configured(tmp_path), Overrides(disable_workload_api=True))
    assert config.disable_workload_api
    assert config.serves_workloads
    assert not loaded(tmp_path, "disable_workload_api = true  disable_sds_api = true").serves_workloads


def test_without_apis_for_workloads_the_admin_socket_may_be_where_theirs_would_be(tmp_path: Path) -> None:
    admin = f'socket_path = "{tmp_path}/api.sock"  admin_socket_path = "{tmp_path}/admin.sock"'
    with pytest.raises(ConfigurationError, match="cannot be in the same directory"):
        loaded(tmp_path, f"{admin}  disable_workload_api = true")
    config = loaded(tmp_path, f"{admin}  disable_workload_api = true  disable_sds_api = true")
    assert config.admin_socket_path == f"{tmp_path}/admin.sock"


def test_rate_limits(tmp_path: Path) -> None:
    assert loaded(tmp_path).ratelimit == RateLimit()
    config = loaded(tmp_path, "experimental { ratelimit { fetch_jwt_svid = 5  stream_secrets = 0 } }")
    assert config.ratelimit == RateLimit(fetch_jwt_svid=5)


def test_the_patience_with_a_cached_token_in_hand(tmp_path: Path) -> None:
    config = loaded(tmp_path, 'experimental { jwt_svid_cache_hit_timeout = "5s" }')
    assert config.jwt_svid_cache_hit_timeout == timedelta(seconds=5)
    assert config.warnings == ("The use of 'jwt_svid_cache_hit_timeout' is experimental",)


def test_the_example_is_valid() -> None:
    assert [block.name for block in load(str(EXAMPLE)).plugins] == ["join_token", "disk", "unix"]


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_rebootstrapping(tmp_path: Path, mode: str) -> None:
    config = loaded(tmp_path, f'rebootstrap_mode = "{mode}"  rebootstrap_delay = "0s"')
    assert (config.rebootstrap_mode, config.rebootstrap_delay) == (mode, timedelta())
    assert loaded(tmp_path).rebootstrap_delay == timedelta(minutes=10)


@pytest.mark.parametrize("address", ["unix:///run/api.sock", "unix:/run/api.sock", "tcp://[::1]:8080"])
def test_the_bundle_may_come_from_a_workload_api(tmp_path: Path, address: str) -> None:
    config = loaded(tmp_path, bundle=f'trust_bundle_spiffe_workload_api = "{address}"')
    assert config.trust_bundle_spiffe_workload_api == address


def test_feature_flags(tmp_path: Path) -> None:
    config = loaded(tmp_path, 'experimental { feature_flags = ["wit-svid"] }')
    assert config.warnings == ('Developer feature flag "wit-svid" has been enabled',)
    with pytest.raises(ConfigurationError, match=r"error loading feature flags: unknown feature flag\(s\): \[x\]"):
        loaded(tmp_path, 'experimental { feature_flags = ["x"] }')
