"""Where the credentials for a registry come from."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from attestors.sigstore.configuration import RegistryCredential
from attestors.sigstore.credentials import Credential, Keychain
from attestors.sigstore.references import Reference
from operations.errors import Refused
from operations.logs import get

HELPER = """#!/bin/sh
read -r server
[ "$1 $server" = "get quay.io" ] || exit 1
echo '{"ServerURL": "quay.io", "Username": "helped", "Secret": "secret"}'
"""


def auth(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


async def find(
    image: str, environment: Mapping[str, str], configured: Mapping[str, RegistryCredential] | None = None
) -> Credential | None:
    return await Keychain(configured or {}, environment, get()).find(Reference.parse(image).repository)


def kept(folder: Path, content: object, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


async def test_what_is_configured_comes_first(tmp_path: Path) -> None:
    kept(tmp_path / ".docker", {"auths": {"ghcr.io": auth("kept", "p")}})
    home = {"HOME": str(tmp_path)}
    configured = {"ghcr.io": RegistryCredential(username="configured", password="p")}
    assert await find("ghcr.io/app", home, configured) == Credential("configured", "p")
    assert await find("ghcr.io/app", home) == Credential("kept", "p")
    assert await find("quay.io/app", home, configured) is None


@pytest.mark.parametrize("key", ["docker.io", "index.docker.io", "https://index.docker.io/v1/"])
async def test_docker_hub_has_several_names(key: str, tmp_path: Path) -> None:
    configured = {key: RegistryCredential(username="u", password="p")}
    assert await find("nginx", {}, configured) == Credential("u", "p")
    kept(tmp_path / ".docker", {"auths": {key: auth("u", "p")}})
    if key.startswith("https"):
        assert await find("nginx", {"HOME": str(tmp_path)}) == Credential("u", "p")


async def test_half_a_credential_counts_for_nothing_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "spire"):
        configured = {"ghcr.io": RegistryCredential(username="u")}
        assert await find("ghcr.io/app", {}, configured) is None
    assert "both username and password must be provided" in caplog.text


async def test_a_repository_before_its_registry(tmp_path: Path) -> None:
    auths = {"ghcr.io": auth("all", "p"), "ghcr.io/team/app": auth("one", "p"), "https://quay.io": auth("url", "p")}
    kept(tmp_path / ".docker", {"auths": auths})
    home = {"HOME": str(tmp_path)}
    assert await find("ghcr.io/team/app", home) == Credential("one", "p")
    assert await find("ghcr.io/team/other", home) == Credential("all", "p")
    assert await find("quay.io/app", home) == Credential("url", "p")


async def test_the_places_of_docker_and_podman(tmp_path: Path) -> None:
    places = {
        "DOCKER_CONFIG": kept(tmp_path / "docker", {"auths": {"r.io": auth("docker", "p")}}).parent,
        "REGISTRY_AUTH_FILE": kept(tmp_path / "named", {"auths": {"r.io": auth("named", "p")}}, "a.json"),
        "XDG_RUNTIME_DIR": kept(
            tmp_path / "run/containers", {"auths": {"r.io": auth("runtime", "p")}}, "auth.json"
        ).parents[1],
        "HOME": kept(tmp_path / "home/.config/containers", {"auths": {"r.io": auth("home", "p")}}, "auth.json").parents[
            2
        ],
    }
    environment = {name: str(path) for name, path in places.items()}
    for name, user in zip(places, ("docker", "named", "runtime", "home"), strict=True):
        assert await find("r.io/app", environment) == Credential(user, "p")
        del environment[name]
    assert await find("r.io/app", environment) is None


async def test_tokens(tmp_path: Path) -> None:
    auths = {"a.io": {"identitytoken": "i"}, "b.io": {"registrytoken": "r"}, "c.io": {}}
    kept(tmp_path / ".docker", {"auths": auths})
    home = {"HOME": str(tmp_path)}
    assert await find("a.io/app", home) == Credential(identity_token="i")
    assert await find("b.io/app", home) == Credential(registry_token="r")
    assert await find("c.io/app", home) is None


@pytest.mark.parametrize("settings", [{"credHelpers": {"quay.io": "test"}}, {"credsStore": "test"}])
async def test_a_helper(settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path / ".docker", settings)
    helper = tmp_path / "bin/docker-credential-test"
    helper.parent.mkdir()
    helper.write_text(HELPER)
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:/usr/bin:/bin")
    home = {"HOME": str(tmp_path), "PATH": f"{helper.parent}:/usr/bin:/bin"}
    assert await find("quay.io/app", home) == Credential("helped", "secret")
    assert await find("ghcr.io/app", home) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is malformed"),
        ('{"auths": {"r.io": {"auth": "!"}}}', "are malformed"),
        ('{"credsStore": "../evil"}', "its name is malformed"),
        ('{"credsStore": "missing"}', "docker-credential-missing cannot be run: No such file"),
        (" " * (1 << 20) + "{}", "is larger than"),
    ],
)
async def test_what_cannot_be_read_is_told_without_its_content(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(content)
    with pytest.raises(Refused, match=reason):
        await find("r.io/app", {"HOME": str(tmp_path), "PATH": str(tmp_path)})


def test_passwords_are_not_shown() -> None:
    shown = repr(Credential("user", "hunter2", "hunter2", "hunter2"))
    assert "user" in shown
    assert "hunter2" not in shown
