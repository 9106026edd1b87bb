"""The settings of the docker workload attestor, with SPIRE's defaults and rules."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from attestors.docker import cgroup_matchers, endpoints, podman
from attestors.sigstore.configuration import Configuration as Sigstore
from operations.errors import InvalidArgument
from operations.quoting import quote


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sockets are `unix:///path` or `tcp://host:port`. `docker_version` is negotiated with Docker where it is empty.

    `container_id_cgroup_matchers` are for the legacy locator only.
    """

    docker_socket_path: str = ""
    docker_host: str = ""
    docker_version: str = ""
    podman_socket_path: str = ""
    podman_socket_path_template: str = ""
    container_id_cgroup_matchers: tuple[str, ...] = ()
    use_new_container_locator: bool | None = None
    verbose_container_locator_logs: bool = False
    sigstore: Sigstore | None = None

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if self.docker_host:
            raise InvalidArgument("docker_host is for Windows: use docker_socket_path")
        _check_socket(self.docker_socket)
        _check_version(self.docker_version)
        podman.check_template(self.rootless_podman_socket)
        if self.container_id_cgroup_matchers and self.use_new_container_locator is not False:
            raise InvalidArgument(
                "the new container locator and custom cgroup matchers cannot both be used: remove "
                "container_id_cgroup_matchers, or keep it with use_new_container_locator = false"
            )
        cgroup_matchers.parse(self.container_id_cgroup_matchers)

    @property
    def docker_socket(self) -> str:
        return self.docker_socket_path or "unix:///var/run/docker.sock"

    @property
    def podman_socket(self) -> str:
        return self.podman_socket_path or "unix:///run/podman/podman.sock"

    @property
    def rootless_podman_socket(self) -> str:
        """With `%d` for the user's id."""
        return self.podman_socket_path_template or "unix:///run/user/%d/podman/podman.sock"

    @property
    def matchers(self) -> Sequence[cgroup_matchers.Pattern]:
        return cgroup_matchers.parse(self.container_id_cgroup_matchers)

    @property
    def api_version(self) -> str:
        """Without the `v` that may go before it; empty: to be negotiated."""
        return self.docker_version.strip().removeprefix("v")


def _check_socket(text: str) -> None:
    try:
        endpoints.parse(text)
    except InvalidArgument as error:
        raise InvalidArgument(f"docker_socket_path: {error}") from error


def _check_version(text: str) -> None:
    version = text.strip().removeprefix("v")
    major, dot, minor = version.partition(".")
    if version and not (dot and _number(major) and _number(minor)):
        raise InvalidArgument(f"docker_version {quote(text)} is no version such as 1.41: write major.minor")


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
