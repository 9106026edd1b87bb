from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from identity.spiffeid import SpiffeId, TrustDomain
from operations import hcl
from operations.config import bind
from operations.errors import ConfigurationError, ConfigurationErrors
from operations.flags import FlagSet
from plugins.keymanager import KeyType
from server.config import CaSubject, DataStoreConfiguration, Overrides, ServerConfig, declare_flags, load
from server.config.settings import NodePruning
from server.config.ttl import ttl_warning

EXAMPLE = Path(__file__).parents[3] / "conf" / "server" / "server.conf"


def configured(folder: Path, settings: str = "", outside: str = "plugins { }") -> str:
    """A file whose settings start on line 4."""
    path = folder / "server.conf"
    path.write_text(f'server {{\n  trust_domain = "example.org"\n  data_dir = "/data"\n{settings}\n}}\n{outside}\n')
    return str(path)


def loaded(folder: Path, settings: str = "", outside: str = "plugins { }") -> ServerConfig:
    return load(configured(folder, settings, outside))


def test_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert config.trust_domain == TrustDomain("example.org")
    assert (config.bind_address, config.bind_port) == (str(IPv4Address(0)), 8081)
    assert config.socket_path == "/tmp/spire-server/private/api.sock"
    assert (config.log_level, config.log_format, config.log_file) == ("INFO", "text", None)
    assert (config.ca_ttl, config.default_x509_svid_ttl) == (timedelta(hours=24), timedelta(hours=1))
    assert (config.default_jwt_svid_ttl, config.agent_ttl) == (timedelta(minutes=5), None)
    assert (config.ca_key_type, config.jwt_key_type) == (KeyType.EC_P256, KeyType.EC_P256)
    assert config.ca_subject == CaSubject(country=("US",), organization=("SPIFFE",))
    assert (config.ratelimit_attestation, config.ratelimit_signing) == (True, True)
    assert not any((config.audit_log_enabled, config.disable_jwt_svids, config.require_pq_kem))
    assert (config.plugins, config.warnings) == ((), ())


def test_every_supported_setting(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        bind_address = "[::1]"  bind_port = "9000"  socket_path = "run/api.sock"
        log_level = "debug"  log_format = "JSON"  log_file = "/var/log/x"  log_source_location = true
        audit_log_enabled = true  ca_ttl = "48h"  ca_key_type = "RSA-2048"  jwt_key_type = "ec-p384"
        jwt_issuer = "https://x"  default_x509_svid_ttl = "30m"  default_jwt_svid_ttl = "1m"  agent_ttl = "2h"
        ca_subject { country = ["DE"] common_name = "n" }
        admin_ids = ["spiffe://example.org/admin"]  ratelimit { attestation = false }
        proxy_protocol_trusted_cidrs = ["10.0.0.0/8", "::/0"]  max_attested_node_info_staleness = "10s"
        disable_jwt_svids = true  profiling_enabled = true  profiling_names = ["cpu"]
        experimental { require_pq_kem = true  cache_reload_interval = "5s"  events_based_cache = true }
        """,
        'plugins { KeyManager "memory" { plugin_data { } } }\ntelemetry { InMem { } }\nhealth_checks { }',
    )
    assert (config.bind_address, config.bind_port) == ("::1", 9000)
    assert config.socket_path == str(Path.cwd() / "run/api.sock")
    assert (config.log_level, config.log_format, config.log_file) == ("debug", "json", "/var/log/x")
    assert (config.ca_key_type, config.jwt_key_type) == (KeyType.RSA_2048, KeyType.EC_P384)
    assert (config.ca_ttl, config.agent_ttl) == (timedelta(hours=48), timedelta(hours=2))
    assert config.ca_subject == CaSubject(country=("DE",), common_name="n")
    assert config.admin_ids == (SpiffeId.parse("spiffe://example.org/admin"),)
    assert (config.ratelimit_attestation, config.ratelimit_signing) == (False, True)
    assert [str(network) for network in config.proxies] == ["10.0.0.0/8", "::/0"]
    assert config.node_staleness == 10.0
    assert config.warnings == (
        "profiling_enabled has no effect without profiling_port, or profiling_freq and profiling_names",
    )
    assert config.log_source_location
    assert config.audit_log_enabled
    assert config.disable_jwt_svids
    assert config.require_pq_kem
    assert [block.name for block in config.plugins] == ["memory"]


def test_jwt_keys_follow_the_ca(tmp_path: Path) -> None:
    assert loaded(tmp_path, 'ca_key_type = "rsa-4096"').jwt_key_type is KeyType.RSA_4096


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            'default_x509_svid_tll = "1h"',
            'unknown key "default_x509_svid_tll" in server: did you mean "default_x509_svid_ttl"?',
        ),
        ('bind_port = "x"', 'server.bind_port: expected a whole number, found "x"'),
        ("bind_port = 70000", "bind_port 70000 is no TCP port: use 1 to 65535"),
        ('ca_ttl = "1x"', 'ca_ttl "1x" is no duration such as 1h30m: time: unknown unit "x" in duration "1x"'),
        ('agent_ttl = "-1h"', 'agent_ttl must be longer than 0: it is "-1h"'),
        (
            'ca_key_type = "dsa"',
            'ca_key_type "dsa" is unknown: use ec-p256, ec-p384, rsa-2048 or rsa-4096',
        ),
        ('admin_ids = ["x"]', 'admin_ids: "x" is no SPIFFE ID: scheme is missing or invalid'),
        (
            'log_level = "loud"',
            (
                'cannot log as configured: not a valid logrus Level: "loud": use panic, fatal, error, warn, info, '
                "debug or trace"
            ),
        ),
        ('log_format = "xml"', 'cannot log as configured: unknown logger format: "xml": use text or json'),
        (
            'trust_domain = "A b"',
            (
                'trust_domain "A b" cannot be used: trust domain characters are limited to lowercase letters, '
                "numbers, dots, dashes, and underscores"
            ),
        ),
        (
            'prune_attested_nodes_expired_for = "30d"',
            (
                'prune_attested_nodes_expired_for "30d" is no duration such as 720h: '
                'time: unknown unit "d" in duration "30d"'
            ),
        ),
        (
            'prune_attested_nodes_expired_for = "-1h"',
            'prune_attested_nodes_expired_for must not be less than 0: it is "-1h"',
        ),
        (
            'proxy_protocol_trusted_cidrs = ["::/0", "10.0.0.1"]',
            (
                'proxy_protocol_trusted_cidrs: "10.0.0.1" is no range of addresses such as 10.0.0.0/8: the number of '
                "bits is missing"
            ),
        ),
        (
            'experimental { named_pipe_name = "x" }',
            "server.experimental.named_pipe_name is not available in this version: use socket_path",
        ),
        (
            'experimental { cache_reload_interval = "5" }',
            'experimental.cache_reload_interval "5" is no duration such as 5s: time: missing unit in duration "5"',
        ),
    ],
)
def test_faults(tmp_path: Path, settings: str, reason: str) -> None:
    path = configured(tmp_path, settings)
    with pytest.raises(ConfigurationError) as error:
        load(path)
    assert str(error.value) == f"{path}:4: {reason}"


def test_pruning_of_agents(tmp_path: Path) -> None:
    assert loaded(tmp_path, "prune_tofu_nodes = true").node_pruning is None
    assert loaded(tmp_path, 'prune_attested_nodes_expired_for = "0"').node_pruning is None
    found = loaded(tmp_path, 'prune_attested_nodes_expired_for = "720h"').node_pruning
    assert found == NodePruning(timedelta(days=30), 1000, tofu=False)
    found = loaded(
        tmp_path,
        'prune_attested_nodes_expired_for = "1h"\n prune_attested_nodes_batch_size = 7\n prune_tofu_nodes = true',
    ).node_pruning
    assert found == NodePruning(timedelta(hours=1), 7, tofu=True)


def test_agents_with_their_id_as_a_selector(tmp_path: Path) -> None:
    assert not loaded(tmp_path).agent_spiffe_id_as_selector
    assert loaded(tmp_path, "experimental { agent_spiffe_id_as_selector = true }").agent_spiffe_id_as_selector


@pytest.mark.parametrize(
    ("outside", "message"),
    [
        ("", "1: plugins section must be configured"),
        ("plugin { }", '6: unknown key "plugin": did you mean "plugins"?'),
        ("plugins { A = 1 }", '6: expected a plugin such as KeyManager "disk" { … }, found "A" = …'),
        (
            'plugins { }\nhealth_checks { listener_enabled = true bind_port = "x" }',
            '7: health_checks: bind_port "x" is no TCP port: use 1 to 65535',
        ),
        ("plugins { }\ntelemetry { Prometheus { } }", "7: telemetry: Prometheus.port 0 is no TCP port"),
        (
            "plugins { }\ntelemetry { Prometheus { port = 1 tls { } } }",
            "7: telemetry: cert_file and key_file must both be configured unless use_spire_svid is enabled",
        ),
        (
            'plugins { }\ntelemetry { Prometheus { port = 1 tls { use_spire_svid = true cert_file = "x" } } }',
            "7: telemetry: cert_file and key_file cannot be configured when use_spire_svid is enabled",
        ),
        ('plugins { }\ntelemetry { Statsd = [{ address = "x" }] }', '7: telemetry: Statsd.address: "x" has no host'),
        ('plugins { }\ntelemetry { M3 = [{ address = "x:1" }] }', "7: telemetry.M3 is not available"),
    ],
)
def test_faults_outside_of_the_section(tmp_path: Path, outside: str, message: str) -> None:
    path = configured(tmp_path, outside=outside)
    with pytest.raises(ConfigurationError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}:{message}")


def test_all_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "server.conf"
    path.write_text('server {\n  bind_port = 70000\n  ca_ttl = "x"\n}\n')
    with pytest.raises(ConfigurationErrors) as errors:
        load(str(path))
    assert [(one.line, one.reason.split(" must")[0][:9]) for one in errors.value.problems] == [
        (1, "trust_dom"),
        (1, "data_dir"),
        (1, "plugins s"),
        (2, "bind_port"),
        (3, 'ca_ttl "x'),
    ]
    path.write_text("plugins { }")
    with pytest.raises(ConfigurationError, match=r"server section must be configured$"):
        load(str(path))


def test_a_missing_file_is_told_as_in_spire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as error:
        load()
    place = tmp_path / "conf" / "server" / "server.conf"
    assert str(error.value) == f"there is no configuration file {place}: name it with -config"


def test_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = configured(tmp_path, 'bind_port = 1  log_level = "$LEVEL"')
    monkeypatch.setenv("LEVEL", "warn")
    flags = FlagSet("run")
    read = declare_flags(flags)
    flags.parse(["-config", path, "-expandEnv", "-serverPort", "2", "-trustDomain", "b.org", "-logSourceLocation"])
    config = read()
    assert (config.bind_port, config.trust_domain.name, config.log_level) == (2, "b.org", "warn")
    assert config.log_source_location
    assert load(path, Overrides(log_level="error", bind_address="h")).bind_address == "h"


def test_warnings(tmp_path: Path) -> None:
    warnings = loaded(tmp_path, 'default_x509_svid_ttl = "12h"  ca_subject { }').warnings
    assert warnings == (
        (
            "default_x509_svid_ttl is 12h, but an SVID ends with its CA and may get less of it: "
            "lower default_x509_svid_ttl to 4h, or raise ca_ttl to 72h"
        ),
        "ca_subject is empty, so the CA is named C=US, O=SPIFFE: fill the block or remove it",
    )
    day = timedelta(days=1)
    assert (ttl_warning("x", 8 * day, day) or "").endswith(": lower x to 168h, and raise ca_ttl to 1008h")
    assert (ttl_warning("x", 8 * day, 100 * day) or "").endswith(": lower x to 168h")
    assert ttl_warning("x", 7 * day, 42 * day) is None


def test_the_example_is_valid() -> None:
    config = load(str(EXAMPLE))
    assert [(block.type, block.name) for block in config.plugins] == [
        ("DataStore", "sql"),
        ("KeyManager", "disk"),
        ("NodeAttestor", "join_token"),
    ]


def datastore(text: str) -> DataStoreConfiguration:
    return bind(DataStoreConfiguration, hcl.parse(text, "d.conf"))


@pytest.mark.parametrize("connection", ["/x/d.sqlite3", "file:/x/d.sqlite3", "file:/x/d.sqlite3?cache=shared"])
def test_datastore(connection: str) -> None:
    config = datastore(f'database_type = "sqlite3"  connection_string = "{connection}"  max_open_conns = 5')
    assert config.sqlite_path() == "/x/d.sqlite3"


def test_datastore_on_postgres() -> None:
    config = datastore("""
        database_type = "postgres"
        connection_string = "dbname=spire user=spire host=db password='a b'"
        root_ca_path = "/ca"
        conn_max_lifetime = "1h30m"
        disable_migration = true
        log_sql = true
    """)
    assert config.kind == "postgres"
    assert config.tls() == (("sslrootcert", "/ca"),)
    assert config.lifetime() == timedelta(hours=1, minutes=30)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "database_type must be set: use sqlite3 or postgres"),
        ('database_type = "sqlite3"', "connection_string must be set: it is the path of the database file"),
        (
            'database_type = "postgres"',
            'connection_string must be set: for example "dbname=spire user=spire host=db"',
        ),
        (
            'database_type = "mysql" connection_string = "x"',
            'database_type "mysql" is not available in this version: use sqlite3 or postgres',
        ),
        (
            'database_type "aws_postgres" { region = "x" }',
            (
                'database_type "aws_postgres" is not available in this version: use "postgres" with a password or a '
                "client certificate"
            ),
        ),
        (
            'database_type = "oracle" connection_string = "x"',
            'unsupported database_type: "oracle": use sqlite3 or postgres',
        ),
        (
            'database_type = "sqlite3" connection_string = ":memory:"',
            "connection_string must name a file: databases in memory lose every entry",
        ),
        (
            'database_type = "postgres" connection_string = "dbname=x" conn_max_lifetime = "5"',
            'failed to parse conn_max_lifetime "5": time: missing unit in duration "5"',
        ),
        (
            'database_type = "postgres" connection_string = "dbname=x" client_key_path = "k"',
            "client_cert_path and client_key_path go together: set both, or neither",
        ),
        (
            'database_type = "postgres" connection_string = "dbname=x" ro_connection_string = "password=a b"',
            (
                "connection_string cannot be read: write it as name=value pairs with spaces between them, values that "
                "hold spaces in single quotes, or as a URL postgres://user:password@host:port/dbname"
            ),
        ),
    ],
)
def test_datastore_faults(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        datastore(text)
    assert str(error.value) == f"d.conf:1: {reason}"


def test_two_blocks_of_prometheus_are_one(tmp_path: Path) -> None:
    """As SPIRE merges them."""
    outside = 'plugins { }\ntelemetry {\n  Prometheus { port = 1 }\n  Prometheus { host = "h" }\n}'
    found = load(configured(tmp_path, outside=outside)).telemetry.prometheus
    assert found is not None
    assert (found.host, found.port) == ("h", 1)


def test_feature_flags(tmp_path: Path) -> None:
    config = loaded(tmp_path, 'ca_key_type = "ec-p384"\nexperimental { feature_flags = ["i_am_a_test_flag"] }')
    assert config.features == {"i_am_a_test_flag"}
    assert (config.wit_key_type, config.wit_issuer) == (KeyType.EC_P384, "")
    settings = 'feature_flags = ["wit-svid"]  wit_key_type = "rsa-2048"  wit_issuer = "https://x"'
    config = loaded(tmp_path, f"experimental {{ {settings} }}")
    assert config.features == {"wit-svid"}
    assert (config.wit_key_type, config.wit_issuer) == (KeyType.RSA_2048, "https://x")
    assert config.warnings == ('Developer feature flag "wit-svid" has been enabled',)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            'feature_flags = ["x", "wit-svid", "a"]',
            "error loading feature flags: unknown feature flag(s): [a x]",
        ),
        (
            'wit_key_type = "ed25519"',
            'wit_key_type "ed25519" is unknown: use ec-p256, ec-p384, rsa-2048 or rsa-4096',
        ),
    ],
)
def test_what_is_experimental_is_checked_too(tmp_path: Path, settings: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, f"experimental {{\n{settings}\n}}")
    assert str(caught.value).endswith(reason)
    assert ":5" in str(caught.value)
