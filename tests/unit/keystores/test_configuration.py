"""The settings as operators write them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from keystores import disk, memory, state
from keystores.pkcs11 import configuration as settings
from keystores.pkcs11.profiles import ProfileName
from operations import config, hcl
from operations.errors import ConfigurationError

EXAMPLE = """
module_path = "/usr/lib/softhsm/libsofthsm2.so"
token_label = "spire"
pin_file    = "/etc/spire/pin"
namespace   = "server-a"
shared_keys = true
profile     = "softhsm2"
keys_path   = "/var/lib/spire/server/keys.json"
grace       = "90m"
sessions    = 4
environment { SOFTHSM2_CONF = "/etc/spire/softhsm2.conf" }
clone "cellar" {
  token_serial = "0a1b"
  environment { SOFTHSM2_CONF = "/etc/spire/cellar.conf" }
}
clone "abroad" {
  module_path = "/usr/lib/other.so"
  pin_credential = "abroad"
}
"""
LEAST = 'module_path = "/m"\ntoken_label = "t"\npin_file = "/p"\n'


def bound(text: str) -> settings.Configuration:
    return config.bind(settings.Configuration, hcl.parse(text, "server.conf"))


def test_every_setting_of_pkcs11_is_read() -> None:
    read = bound(EXAMPLE)
    assert read.profile is ProfileName.SOFTHSM2
    assert read.shared_keys is True
    assert state.grace(read.grace) == timedelta(minutes=90)
    assert settings.namespace(read, "server") == "server-a"
    assert settings.keys_path(read, "/data") == Path("/var/lib/spire/server/keys.json")
    assert settings.token_name(read).label == "spire"


def test_a_clone_has_what_the_first_token_has_but_for_what_it_says() -> None:
    read = bound(EXAMPLE)
    assert list(read.clone) == ["cellar", "abroad"]
    cellar = settings.clone(read, "cellar")
    assert (cellar.token_label, cellar.token_serial) == (None, "0a1b")
    assert (cellar.module_path, cellar.pin_file, cellar.sessions) == (read.module_path, read.pin_file, 4)
    assert cellar.environment == {"SOFTHSM2_CONF": "/etc/spire/cellar.conf"}
    abroad = settings.clone(read, "abroad")
    assert (abroad.module_path, abroad.token_label) == ("/usr/lib/other.so", "spire")
    assert (abroad.pin_file, abroad.pin_credential) == (None, "abroad")
    assert settings.token_spec(abroad).environment == {"SOFTHSM2_CONF": "/etc/spire/softhsm2.conf"}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("sessions = 0", "sessions: 0 must be from 1 to 32"),
        ("sessions = 33", "sessions: 33"),
        ('environment { "A=B" = "c" }', "environment: 'A=B'"),
    ],
)
def test_a_token_that_cannot_be_so_is_refused(line: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        settings.token_spec(bound(f"{LEAST}{line}\n"))


def test_what_is_left_out_has_a_default() -> None:
    read = bound(LEAST)
    assert state.grace(read.grace) == timedelta(hours=24)
    assert settings.namespace(read, "agent") == "agent"
    assert settings.keys_path(read, "/data") == Path("/data/pkcs11-keys.json")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('pin = "1234"', "pin"),
        ('token_lable = "t"', "token_label"),
        ('profile = "yubihsm"', "profile"),
        ('shared_keys = "yes"', "shared_keys"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_place(line: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"server\.conf:4: .*{text}"):
        bound(f"{LEAST}{line}\n")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("pkcs11:token=spire", {"label": "spire"}),
        ("pkcs11:token=My%20token;serial=0a1b", {"label": "My token", "serial": "0a1b"}),
        (
            "pkcs11:manufacturer=SoftHSM%20project;model=SoftHSM%20v2",
            {"manufacturer": "SoftHSM project", "model": "SoftHSM v2"},
        ),
    ],
)
def test_a_token_uri_names_the_tokens_attributes(uri: str, expected: dict[str, str]) -> None:
    assert settings.token_uri_attributes(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "token=spire",
        "pkcs11:",
        "pkcs11:token",
        "pkcs11:token=a;token=b",
        "pkcs11:id=%01",
        "pkcs11:token=a?pin-value=1",
    ],
)
def test_a_uri_that_says_something_else_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="token_uri"):
        settings.token_uri_attributes(uri)


def test_the_simple_ones() -> None:
    assert config.bind(memory.Configuration, hcl.parse("", "a")) == memory.Configuration()
    assert config.bind(disk.ServerConfiguration, hcl.parse('keys_path = "k"', "a")).keys_path == "k"
    assert config.bind(disk.AgentConfiguration, hcl.parse('directory = "d"', "a")).directory == "d"
    with pytest.raises(ConfigurationError, match="keys_path"):
        config.bind(disk.ServerConfiguration, hcl.parse("", "a"))
