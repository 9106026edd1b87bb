"""The federation block in every spelling that SPIRE takes, and what it refuses, with its line."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import ConfigurationError, ConfigurationErrors
from server.config import ServerConfig, load
from server.config.federation import (
    Acme,
    BundleEndpoint,
    Federated,
    Federation,
    HttpsSpiffe,
    HttpsWeb,
    ServingFiles,
)

ANYWHERE = "0.0.0.0"  # noqa: S104 SPIRE's default
FILES = 'cert_file_path = "a.pem" key_file_path = "a.key" file_sync_interval = '


def configured(folder: Path, federation: str) -> str:
    """A file whose federation block's inside starts on line 5."""
    path = folder / "server.conf"
    path.write_text(
        f'server {{\n  trust_domain = "example.org"\n  data_dir = "/data"\n  federation {{\n{federation}\n  }}\n}}\n'
        "plugins { }\n"
    )
    return str(path)


def loaded(folder: Path, federation: str) -> ServerConfig:
    return load(configured(folder, federation))


def endpoint(folder: Path, inside: str) -> BundleEndpoint:
    found = loaded(folder, f"bundle_endpoint {{ {inside} }}").federation.bundle_endpoint
    assert found is not None
    return found


def test_nothing_of_it(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").federation == Federation()


def test_an_endpoint_and_its_defaults(tmp_path: Path) -> None:
    minutes = timedelta(minutes=5)
    assert endpoint(tmp_path, "port = 8443") == BundleEndpoint(ANYWHERE, 8443, minutes, HttpsSpiffe())
    found = endpoint(tmp_path, 'address = "[::1]" port = "8443" refresh_hint = "90s" profile "https_spiffe" { }')
    assert found == BundleEndpoint("::1", 8443, timedelta(seconds=90), HttpsSpiffe())


@pytest.mark.parametrize(
    ("profile", "found"),
    [
        ("profile { https_spiffe { } }", HttpsSpiffe()),
        ("profile = { https_spiffe = { } }", HttpsSpiffe()),
        ('"profile" "https_spiffe" { }', HttpsSpiffe()),
        ('PROFILE "HTTPS_SPIFFE" { }', HttpsSpiffe()),
        (
            f'profile "https_web" {{ serving_cert_file {{ {FILES} "30m" }} }}',
            ServingFiles("a.pem", "a.key", timedelta(minutes=30)),
        ),
        (
            f'profile "https_web" "serving_cert_file" {{ {FILES} "0s" }}',
            ServingFiles("a.pem", "a.key", timedelta(hours=1)),
        ),
        (
            'profile { https_web { acme { domain_name = "x.example.org" } } }',
            Acme("", "x.example.org", "", tos_accepted=False),
        ),
        (
            (
                'profile "https_web" { acme { directory_url = "https://ca/dir" domain_name = "x.example.org" '
                'email = "ops@example.org" tos_accepted = true } }'
            ),
            Acme("https://ca/dir", "x.example.org", "ops@example.org", tos_accepted=True),
        ),
        (
            'acme { domain_name = "x.example.org" email = "ops@example.org" }',
            Acme("", "x.example.org", "ops@example.org", tos_accepted=False),
        ),
    ],
)
def test_profiles(tmp_path: Path, profile: str, found: HttpsSpiffe | HttpsWeb) -> None:
    assert endpoint(tmp_path, f"port = 8443 {profile}").profile == found


def test_others(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        """
        federates_with "web.org" {
          bundle_endpoint_url = "https://web.org:8443/b"
          bundle_endpoint_profile "https_web" { }
        }
        federates_with "spiffe://spiffe.org" {
          bundle_endpoint_url = "HTTPS://spiffe.org"
          bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "spiffe://spiffe.org/spire/server" }
        }
        """,
    ).federation
    identity = SpiffeId.parse("spiffe://spiffe.org/spire/server")
    assert found.bundle_endpoint is None
    assert found.federates_with == (
        Federated(TrustDomain("web.org"), "https://web.org:8443/b"),
        Federated(TrustDomain("spiffe.org"), "HTTPS://spiffe.org", identity),
    )


def test_as_json(tmp_path: Path) -> None:
    other: dict[str, object] = {
        "bundle_endpoint_url": "https://other.org",
        "bundle_endpoint_profile": {"https_spiffe": {"endpoint_spiffe_id": "spiffe://other.org/server"}},
    }
    federation: dict[str, object] = {
        "bundle_endpoint": {"address": "127.0.0.1", "port": 8443, "profile": [{"https_spiffe": {}}]},
        "federates_with": {"other.org": other},
    }
    path = tmp_path / "server.json"
    server: dict[str, object] = {"trust_domain": "example.org", "data_dir": "/data", "federation": federation}
    path.write_text(json.dumps({"server": server, "plugins": {}}))
    found = load(str(path)).federation
    assert found.bundle_endpoint == BundleEndpoint("127.0.0.1", 8443, timedelta(minutes=5), HttpsSpiffe())
    identity = SpiffeId.parse("spiffe://other.org/server")
    assert found.federates_with == (Federated(TrustDomain("other.org"), "https://other.org", identity),)


ENDPOINT = "federation.bundle_endpoint"
OTHER = 'federation.federates_with "other.org"'
ONE = 'takes one profile, "https_spiffe" or "https_web": it has'


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ("bundle_endpoint { port = 70000 }", f"{ENDPOINT}.port 70000 is no TCP port: use 1 to 65535"),
        (
            'bundle_endpoint { port = 1 refresh_hint = "5" }',
            f'{ENDPOINT}.refresh_hint "5" is no duration such as 5m: time: missing unit in duration "5"',
        ),
        (
            'bundle_endpoint { port = 1 refresh_hint = "-5m" }',
            f'{ENDPOINT}.refresh_hint must not be less than 0: it is "-5m"',
        ),
        ("bundle_endpoint { port = 1 profile { } }", f"{ENDPOINT}.profile {ONE} nothing"),
        ('bundle_endpoint { port = 1 profile "https" { } }', f'{ENDPOINT}.profile {ONE} "https"'),
        (
            'bundle_endpoint { port = 1 profile "https_web" { } profile "https_spiffe" { } }',
            f'{ENDPOINT}.profile {ONE} "https_web", "https_spiffe"',
        ),
        (
            'bundle_endpoint { port = 1 profile "https_web" { } }',
            f'{ENDPOINT}.profile "https_web" needs an acme or a serving_cert_file block',
        ),
        (
            'bundle_endpoint { port = 1 profile "https_web" { acme { } serving_cert_file { } } }',
            f'{ENDPOINT}.profile "https_web": acme and serving_cert_file exclude each other: keep one',
        ),
        (
            'bundle_endpoint { port = 1 profile "https_web" { acme { } } }',
            f'{ENDPOINT}.profile "https_web".acme.domain_name must be configured',
        ),
        (
            'bundle_endpoint { port = 1 acme { domain_name = "x.example.org" } }',
            f"{ENDPOINT}.acme.email must be configured",
        ),
        (
            'bundle_endpoint { port = 1 acme { domain_name = "x.org" email = "a@x.org" } profile "https_spiffe" { } }',
            f"{ENDPOINT}: acme and profile exclude each other: keep the profile",
        ),
        (
            'bundle_endpoint { port = 1 profile "https_web" { acme { domain_name = "a b" } } }',
            (
                f'{ENDPOINT}.profile "https_web".acme: domain_name "a b": give a full name of the DNS, as '
                "bundle.example.org is"
            ),
        ),
        (
            (
                'bundle_endpoint { port = 1 profile "https_web" { serving_cert_file { cert_file_path = "a" '
                'key_file_path = "b" } } }'
            ),
            (
                f'{ENDPOINT}.profile "https_web".serving_cert_file.file_sync_interval must be configured, '
                'for example "1h"'
            ),
        ),
        (
            f'bundle_endpoint {{ port = 1 profile "https_web" {{ serving_cert_file {{ {FILES} "-1s" }} }} }}',
            (f'{ENDPOINT}.profile "https_web".serving_cert_file.file_sync_interval must be longer than 0: it is "-1s"'),
        ),
        (
            f'bundle_endpoint {{ port = 1 profile "https_web" {{ serving_cert_file {{ {FILES} "soon" }} }} }}',
            (
                f'{ENDPOINT}.profile "https_web".serving_cert_file.file_sync_interval "soon" is no duration such '
                'as 1h: time: invalid duration "soon"'
            ),
        ),
        (
            'bundle_endpoint { port = 1 profile "https_spiffe" { x = 1 } }',
            f'unknown key "x" in {ENDPOINT}.profile.https_spiffe',
        ),
        ("bundle_endpoint { ports = 1 }", f'unknown key "ports" in server.{ENDPOINT}: did you mean "port"?'),
        (
            'federates_with "other.org" { bundle_endpoint_profile "https_web" { } }',
            f"{OTHER}.bundle_endpoint_url must be configured",
        ),
        (
            'federates_with "other.org" { bundle_endpoint_url = "http://o" bundle_endpoint_profile "https_web" { } }',
            f'{OTHER}.bundle_endpoint_url must use HTTPS: it is "http://o"',
        ),
        (
            (
                'federates_with "other.org" { bundle_endpoint_url = "https://a:b@o" '
                'bundle_endpoint_profile "https_web" { } }'
            ),
            f"{OTHER}.bundle_endpoint_url: a URL with a user's name is not taken",
        ),
        (
            'federates_with "other.org" { bundle_endpoint_url = "https://o" }',
            (
                f'{OTHER}.bundle_endpoint_profile must be configured: "https_web" {{ }} or "https_spiffe" '
                '{ endpoint_spiffe_id = "spiffe://…" }'
            ),
        ),
        (
            (
                'federates_with "other.org" { bundle_endpoint_url = "https://o" '
                'bundle_endpoint_profile "https_spiffe" { } }'
            ),
            f"{OTHER}.endpoint_spiffe_id is missing",
        ),
        (
            (
                'federates_with "other.org" { bundle_endpoint_url = "https://o" '
                'bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "x" } }'
            ),
            f'{OTHER}.endpoint_spiffe_id "x" is no SPIFFE ID: scheme is missing or invalid',
        ),
        (
            'federates_with "example.org" { bundle_endpoint_url = "https://o" bundle_endpoint_profile "https_web" {} }',
            'federation.federates_with "example.org" is this server\'s own trust domain: remove the block',
        ),
        (
            'federates_with "Other" { bundle_endpoint_url = "https://o" bundle_endpoint_profile "https_web" {} }',
            (
                'federation.federates_with "Other" names no trust domain: trust domain characters are limited to '
                "lowercase letters, numbers, dots, dashes, and underscores"
            ),
        ),
        (
            'federates_with "other.org" { url = "https://o" }',
            f'unknown key "url" in {OTHER}',
        ),
    ],
)
def test_faults(tmp_path: Path, inside: str, reason: str) -> None:
    path = configured(tmp_path, inside)
    with pytest.raises(ConfigurationError) as error:
        load(path)
    assert str(error.value) == f"{path}:5: {reason}"


def test_several_faults_are_told_together_each_with_its_line(tmp_path: Path) -> None:
    path = configured(
        tmp_path,
        'bundle_endpoint { port = -1 }\nfederates_with "a.org" { }\n'
        'federates_with "b.org" { bundle_endpoint_url = "http://b"\n bundle_endpoint_profile "https_web" { } }',
    )
    with pytest.raises(ConfigurationErrors) as error:
        load(path)
    assert [problem.line for problem in error.value.problems] == [5, 6, 6, 7]


@pytest.mark.parametrize(
    ("inside", "warning"),
    [
        ("port = 1", "has no profile, so it is https_spiffe"),
        ('profile "https_spiffe" { }', "port is not set, so each start takes another one"),
        ('port = 1 acme { domain_name = "x.org" email = "a@x.org" }', "acme is deprecated"),
        ('port = 1 profile "https_spiffe" { } refresh_hint = "24h"', "refresh_hint is long"),
        ('port = 1 profile "https_spiffe" { } refresh_hint = "59s"', "refresh_hint is too short"),
    ],
)
def test_warnings(tmp_path: Path, inside: str, warning: str) -> None:
    [line] = loaded(tmp_path, f"bundle_endpoint {{ {inside} }}").warnings
    assert warning in line
