"""What the docker attestor's settings say, and what follows from the paths of cgroups."""

from __future__ import annotations

import re

import pytest

from attestors.docker import cgroup_matchers, endpoints, podman
from attestors.docker.configuration import Configuration
from operations import config, hcl
from operations.errors import ConfigurationError, InvalidArgument, Refused
from transport.http_client import Service, UnixService

ID = "c0ffee00" * 8


def bind(text: str) -> Configuration:
    return config.bind(Configuration, hcl.parse(text, "agent.conf"), section='WorkloadAttestor "docker"')


def test_defaults() -> None:
    settings = bind("")
    assert settings.docker_socket == "unix:///var/run/docker.sock"
    assert settings.podman_socket == "unix:///run/podman/podman.sock"
    assert settings.rootless_podman_socket == "unix:///run/user/%d/podman/podman.sock"
    assert settings.api_version == ""
    assert settings.matchers == []
    assert settings.sigstore is None


def test_every_setting() -> None:
    settings = bind("""
        docker_socket_path = "tcp://127.0.0.1:2375"
        docker_version = " v1.41"
        podman_socket_path = "unix:///custom/podman.sock"
        podman_socket_path_template = "unix:///custom/%d.sock"
        container_id_cgroup_matchers = ["/docker/<id>", "/my.slice/*/<id>/*"]
        use_new_container_locator = false
        verbose_container_locator_logs = true
        sigstore { rekor_url = "https://rekor.example.org" }
    """)
    assert settings.docker_socket == "tcp://127.0.0.1:2375"
    assert settings.api_version == "1.41"
    assert settings.podman_socket == "unix:///custom/podman.sock"
    assert settings.rootless_podman_socket == "unix:///custom/%d.sock"
    assert settings.matchers == [("", "docker", "<id>"), ("", "my.slice", "*", "<id>", "*")]
    assert settings.verbose_container_locator_logs
    assert settings.sigstore is not None
    assert settings.sigstore.rekor_url == "https://rekor.example.org"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('docker_sockt_path = "x"', 'unknown key "docker_sockt_path"'),
        ("experimental { sigstore { } }", 'unknown key "experimental"'),
        ('docker_host = "npipe:////./pipe/docker_engine"', "docker_host is for Windows: use docker_socket_path"),
        (
            'docker_socket_path = "/var/run/docker.sock"',
            'docker_socket_path: unable to parse docker host "/var/run/docker.sock"',
        ),
        ('docker_version = "1"', 'docker_version "1" is no version such as 1.41'),
        ('docker_version = "1.x"', 'docker_version "1.x" is no version such as 1.41'),
        ('container_id_cgroup_matchers = ["/docker/<id>"]', "cannot both be used"),
        (
            'use_new_container_locator = true\ncontainer_id_cgroup_matchers = ["/docker/<id>"]',
            "keep it with use_new_container_locator = false",
        ),
        (
            'use_new_container_locator = false\ncontainer_id_cgroup_matchers = ["/docker/"]',
            'pattern "/docker/" must contain the container id token "<id>" exactly once',
        ),
        ('podman_socket_path_template = "unix:///run/podman.sock"', "invalid podman_socket_path_template"),
    ],
)
def test_settings_that_cannot_be_used(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(reason)) as caught:
        bind(text)
    assert str(caught.value).startswith("agent.conf:1: ")


def test_podmans_socket_is_looked_at_when_it_is_needed() -> None:
    """As in SPIRE: an agent whose nodes have Docker alone starts whatever is said of Podman."""
    assert bind('podman_socket_path = "/run/podman/podman.sock"').podman_socket == "/run/podman/podman.sock"


@pytest.mark.parametrize(
    ("text", "service", "base"),
    [
        ("unix:///run/a b.sock", UnixService("/run/a b.sock"), ""),
        ("unix://relative.sock", UnixService("relative.sock"), ""),
        ("tcp://10.0.0.1:2375", Service("10.0.0.1", 2375), ""),
        ("tcp://engine.example.org", Service("engine.example.org", 80), ""),
        ("tcp://[::1]:2375/docker/", Service("::1", 2375), "/docker"),
        ("http://10.0.0.1:2375", Service("10.0.0.1", 2375), ""),
    ],
)
def test_endpoints(text: str, service: Service | UnixService, base: str) -> None:
    assert endpoints.parse(text) == endpoints.Endpoint(text, service, base)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "unable to parse docker host"),
        ("unix://", "unable to parse docker host"),
        ("https://10.0.0.1:2376", '"https" is not available: use unix:// or tcp://'),
        ("npipe:////./pipe/docker_engine", '"npipe" is not available'),
        ("tcp://:2375", "names no host"),
        ("tcp://h:99999", "out of range"),
        ("tcp://[::1", "unable to parse docker host"),
        ("unix:///" + "x" * 107, "is too long"),
        ("unix:///a\0b", "cannot be used"),
    ],
)
def test_endpoints_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(reason)):
        endpoints.parse(text)


@pytest.mark.parametrize("template", ["unix:///%d", "unix:///100%%/%d", "unix:///%%%d", "unix:///%d%%d"])
def test_templates(template: str) -> None:
    podman.check_template(template)


@pytest.mark.parametrize("template", ["", "unix:///%s/%d", "unix:///%d%", "unix:///%", "unix:///%d/%d", "unix:///%%d"])
def test_templates_that_are_none(template: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid podman_socket_path_template"):
        podman.check_template(template)


USERS = "/user.slice/user-1000.slice/user@1000.service/user.slice"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/docker/{ID}", ""),
        (f"{USERS}/docker-{ID}.scope", ""),
        (f"/machine.slice/libpod-{ID}.scope", "unix:///root"),
        (f"/libpod_parent/libpod-{ID}", "unix:///root"),
        (f"{USERS}/libpod-{ID}.scope/container", "unix:///%/1000"),
        (f"{USERS}/libpod/{ID}", "unix:///%/1000"),
        (f"/user.slice/user-0001000.slice/libpod-{ID}.scope", "unix:///%/1000"),
        (f"/user.slice/user-4294967295.slice/libpod-{ID}.scope", "unix:///%/4294967295"),
        (f"/user.slice/user-4294967296.slice/libpod-{ID}.scope", "unix:///root"),
        (f"/user.slice/user-{'1' * 5000}.slice/libpod-{ID}.scope", "unix:///root"),
        (f"/user-1000.slice/user-2000.slice/libpod-{ID}.scope", "unix:///%/1000"),
    ],
)
def test_whose_podman(path: str, expected: str) -> None:
    assert podman.socket([b"/", path.encode()], "unix:///root", "unix:///%%/%d") == expected


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        (["/docker/<id>"], "/docker/foo", "foo"),
        (["/docker/<id>"], "/docker/foo/", ""),
        (["/docker/<id>"], "/docker/foo/bar", ""),
        (["/docker/<id>"], "/docker", ""),
        (["/docker/<id>"], "/dockerfoo", ""),
        (["/docker/<id>"], "", ""),
        (["/long.slice/*/*/<id>/*"], "/long.slice/a/b/c/d", "c"),
        (["/long.slice/*/*/<id>/*"], "/long.slice/a//c/", "c"),
        (["/long.slice/*/*/<id>/*"], "/long.slice/a/b/c/d/e", ""),
        (["/docker/*/<id>", "/docker/<id>"], "/docker/foo", "foo"),
        (["/a+b/<id>"], "/aab/foo", ""),
        (["/docker/<id>"], "/docker/\udcff", "\udcff"),
    ],
)
def test_matchers(patterns: list[str], path: str, expected: str) -> None:
    found = cgroup_matchers.parse(patterns)
    assert cgroup_matchers.container_id(found, [b"/", path.encode(errors="surrogateescape")]) == expected


def test_matchers_that_disagree() -> None:
    patterns = cgroup_matchers.parse(["/docker/<id>"])
    with pytest.raises(Refused, match=re.escape('multiple container IDs found in cgroups ("a", "b")')):
        cgroup_matchers.container_id(patterns, [b"/docker/a", b"/docker/b"])
    with pytest.raises(Refused, match="a pattern matched, but no container id was found"):
        cgroup_matchers.container_id(patterns, [b"/docker/"])
    assert cgroup_matchers.container_id(patterns, [b"/docker/a", b"/docker/a"]) == "a"


@pytest.mark.parametrize("patterns", [["/<id>/<id>"], ["/noid"], [""]])
def test_patterns_without_one_id(patterns: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="exactly once"):
        cgroup_matchers.parse(patterns)


@pytest.mark.parametrize(
    "patterns",
    [
        ["/docker/<id>", "/*/<id>"],
        ["/docker/<id>", "/docker/<id>"],
        ["/docker/<id>", "/a/b/<id>", "/<id>/b"],
        ["/a/b/*/d/<id>", "/<id>/*/*/*/*"],
    ],
)
def test_patterns_that_overlap(patterns: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="dockerfinder: patterns must not be ambiguous:"):
        cgroup_matchers.parse(patterns)
