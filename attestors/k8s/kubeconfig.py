"""Where the cluster's API server is: from the pod that the agent runs in, or from a kubeconfig. All blocks."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from attestors.k8s import access
from attestors.k8s.access import Access
from operations.errors import InvalidArgument
from transport.http_client import Service

_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
_SECURE = 443
_INSECURE = 80

T = TypeVar("T")


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The base of all parts of a kubeconfig."""


class _Cluster(_Part, frozen=True, kw_only=True):
    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class _User(_Part, frozen=True, kw_only=True):
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    username: str = ""
    exec: object = None
    auth_provider: object = None


class _Context(_Part, frozen=True, kw_only=True):
    cluster: str = ""
    user: str = ""


class _NamedCluster(_Part, frozen=True, kw_only=True):
    name: str
    cluster: _Cluster = _Cluster()


class _NamedUser(_Part, frozen=True, kw_only=True):
    name: str
    user: _User = _User()


class _NamedContext(_Part, frozen=True, kw_only=True):
    name: str
    context: _Context = _Context()


class _Kubeconfig(_Part, frozen=True, kw_only=True):
    current_context: str = ""
    clusters: tuple[_NamedCluster, ...] | None = None
    users: tuple[_NamedUser, ...] | None = None
    contexts: tuple[_NamedContext, ...] | None = None


def find(environment: Mapping[str, str] = os.environ, folder: str = _FOLDER) -> Access:
    """KUBECONFIG's, if that is set; otherwise the pod's own service account's, or that of the user's .kube/config.

    `folder` holds the service account's files. Raises InvalidArgument.
    """
    paths = [path for path in environment.get("KUBECONFIG", "").split(":") if path]
    if not paths:
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
        if host and port:
            return _in_cluster(host, port, folder)
        home = f"{environment.get('HOME') or Path.home()}/.kube/config"
        if not Path(home).exists():
            raise InvalidArgument(
                "unable to load Kubernetes client config: the agent does not run in a pod, KUBECONFIG is not set and "
                f"there is no {home}"
            )
        paths = [home]
    try:
        return _from_file(next((path for path in paths if Path(path).exists()), paths[0]))
    except InvalidArgument as error:
        raise InvalidArgument(f"unable to load Kubernetes client config: {error}") from error


def _in_cluster(host: str, port: str, folder: str) -> Access:
    authorities = access.read_file(f"{folder}/ca.crt", "cluster CA")
    context = access.trusting(authorities, "cluster CA", host_names=True)
    try:
        number = int(port)
    except ValueError as error:
        raise InvalidArgument(f"KUBERNETES_SERVICE_PORT is no port: {port}") from error
    return Access(Service(host, number, context), access.read_token(f"{folder}/token"))


def _from_file(path: str) -> Access:
    # Needed by agents outside of pods only.
    import msgspec.yaml

    try:
        read = msgspec.yaml.decode(access.read_file(path, "kubeconfig"), type=_Kubeconfig)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"{path}: {' '.join(str(error).split())}") from error
    context = _named(path, "context", read.current_context, {each.name: each.context for each in read.contexts or ()})
    cluster = _named(path, "cluster", context.cluster, {each.name: each.cluster for each in read.clusters or ()})
    user = _named(path, "user", context.user, {each.name: each.user for each in read.users or ()})
    _require_known(path, cluster, user)
    return _access(path, Path(path).parent, cluster, user)


def _named(path: str, what: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise InvalidArgument(f"{path}: there is no {what} {name!r}")
    return known[name]


def _require_known(path: str, cluster: _Cluster, user: _User) -> None:
    """Raise InvalidArgument for what would have to be done and is not."""
    if user.exec is not None or user.auth_provider is not None:
        raise InvalidArgument(f"{path}: credentials from a program or a provider are not for agents: use a token file")
    if user.username:
        raise InvalidArgument(f"{path}: API servers take no passwords: use a token file")
    if cluster.proxy_url:
        raise InvalidArgument(f"{path}: proxy-url is not supported: the agent asks the API server itself")


def _access(path: str, base: Path, cluster: _Cluster, user: _User) -> Access:
    parts = urlsplit(cluster.server)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise InvalidArgument(f"{path}: server {cluster.server!r} is no URL: give it as https://host:port")
    try:
        port = parts.port or (_SECURE if parts.scheme == "https" else _INSECURE)
    except ValueError as error:
        raise InvalidArgument(f"{path}: server {cluster.server!r} is no URL: {error}") from error
    context = _context(base, cluster) if parts.scheme == "https" else None
    if context is not None:
        _show(context, base, user)
    token = access.read_token(str(base / user.token_file)) if user.token_file else user.token
    service = Service(parts.hostname, port, context, cluster.tls_server_name)
    return Access(service, token, parts.path.rstrip("/"))


def _context(base: Path, cluster: _Cluster) -> ssl.SSLContext:
    if cluster.insecure_skip_tls_verify:
        return access.trusting_anyone()
    if cluster.certificate_authority_data:
        authorities = _decoded("certificate-authority-data", cluster.certificate_authority_data)
    elif cluster.certificate_authority:
        authorities = access.read_file(str(base / cluster.certificate_authority), "cluster CA")
    else:
        return ssl.create_default_context()
    return access.trusting(authorities, "cluster CA", host_names=True)


def _show(context: ssl.SSLContext, base: Path, user: _User) -> None:
    certificate, key = user.client_certificate_data, user.client_key_data
    if not (certificate or user.client_certificate):
        return
    with (
        _file("client-certificate-data", certificate, base / user.client_certificate) as certificate_path,
        _file("client-key-data", key, base / user.client_key) as key_path,
    ):
        access.show(context, certificate_path, key_path)


@contextmanager
def _file(what: str, data: str, path: Path) -> Generator[str, None, None]:
    """OpenSSL reads files only: what stands in the kubeconfig itself is in memory for the moment."""
    if not data:
        yield str(path)
        return
    descriptor = os.memfd_create(what)
    try:
        os.write(descriptor, _decoded(what, data))
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _decoded(what: str, data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise InvalidArgument(f"{what}: {error}") from error
