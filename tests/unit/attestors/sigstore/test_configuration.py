"""The `sigstore` block: what it takes, what it refuses with file and line, and that nobody else pays for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from attestors.sigstore.configuration import Configuration, RegistryCredential
from operations import config, hcl
from operations.errors import ConfigurationError

ROOT = Path(__file__).parents[4]


class Attestor(msgspec.Struct, frozen=True, kw_only=True):
    sigstore: Configuration | None = None


def read(block: str) -> Configuration | None:
    return config.bind(Attestor, hcl.parse(block, "agent.conf"), section='WorkloadAttestor "docker"').sigstore


def test_every_setting() -> None:
    assert read("""
sigstore {
  allowed_identities {
    "https://accounts.google.com" = ["subject1@example.com", "subject2@example.com"]
    "https://*.ci" = ["refs/(heads|tags)/release-.*"]
  }
  skipped_images = ["registry/image@sha256:abc"]
  rekor_url = "https://rekor.example.org/"
  ignore_sct = true
  ignore_tlog = true
  ignore_attestations = true
  registry_credentials = { "docker.io" = { username = "user", password = "pass" } }
}""") == Configuration(
        allowed_identities={
            "https://accounts.google.com": ("subject1@example.com", "subject2@example.com"),
            "https://*.ci": ("refs/(heads|tags)/release-.*",),
        },
        skipped_images=("registry/image@sha256:abc",),
        rekor_url="https://rekor.example.org/",
        ignore_sct=True,
        ignore_tlog=True,
        ignore_attestations=True,
        registry_credentials={"docker.io": RegistryCredential(username="user", password="pass")},
    )


def test_an_empty_block_turns_it_on_and_none_leaves_it_off() -> None:
    assert read("sigstore {}") == Configuration()
    assert read("") is None


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ('allowed_identities { "issuer" = ["*@example.com"] }', 'regular expression "\\*@example.com" cannot be used'),
        ('allowed_identities { "(" = ["x"] }', "regular expression"),
        ('allowed_identities { "issuer" = [] }', '"issuer" has no subjects: name those that may sign, or remove it'),
        ('rekor_url = "rekor.example.org"', 'rekor_url: "rekor.example.org" is no URL'),
        ('rekor_url = "https://user:secret@rekor"', "rekor_url: a URL with a user's name is not taken"),
        ('rekor_uri = "https://rekor"', 'did you mean "rekor_url"'),
        ('registry_credentials { "r" { user = "x" } }', 'unknown key "user"'),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(setting: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refusal:
        read(f"sigstore {{\n  {setting}\n}}")
    assert refusal.value.file == "agent.conf"
    assert refusal.value.line in (1, 2)
    assert "secret" not in str(refusal.value)


def test_a_password_is_not_shown() -> None:
    assert "hunter2" not in repr(Configuration(registry_credentials={"r": RegistryCredential(password="hunter2")}))


def test_the_configuration_alone_loads_nothing_of_the_verifier() -> None:
    code = "import sys, attestors.sigstore.configuration; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    unwanted = {"tuf", "urllib3", "re2", "ssl", "h11", "cryptography", "asyncio", "attestors.sigstore.verifier"}
    assert not unwanted & set(done.stdout.split())


def test_the_verifier_loads_the_tuf_client_for_those_only_who_need_it() -> None:
    code = "import sys, attestors.sigstore.verifier; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"tuf", "urllib3", "securesystemslib", "re2"} & set(done.stdout.split())
