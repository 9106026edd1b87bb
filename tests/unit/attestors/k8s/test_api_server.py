"""Where the API server is, what it refuses and how, and a cache of it that is kept up to date."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from attestors.k8s import api_server as asking
from attestors.k8s import kubeconfig as finding
from attestors.k8s import metadata_cache
from attestors.k8s.access import Access
from attestors.k8s.api_server import ApiServer
from attestors.k8s.metadata_cache import MetadataCache
from attestors.k8s.objects import NAMESPACE, Kind, LiveMetadatas
from operations import logs
from operations.errors import InvalidArgument, NotFound, TemporarilyUnavailable
from tests.simulators.api_server import Cluster, api_server, kubeconfig, status, thing
from tests.simulators.kubelet import Answer, ClusterService
from tests.simulators.web_pki import WebAuthority
from transport.http_client import Service

SPACES = "/api/v1/namespaces"
DEPLOYMENTS = Kind("apps", "v1", "Deployment", "deployments", namespaced=True)


@pytest.fixture
def authority(tmp_path: Path) -> WebAuthority:
    return WebAuthority(tmp_path)


@pytest.fixture
def cluster() -> Cluster:
    names = ("shop", "lab", "kube-system", "default", "extra")
    return Cluster({SPACES: [thing(name, f"uid-{name}", labels={"n": name}) for name in names]})


@pytest.fixture
def service(authority: WebAuthority, cluster: Cluster) -> Iterator[ClusterService]:
    with api_server(cluster, authority.issue("api", "127.0.0.1", "api.example"), token="t") as running:
        yield running


@pytest.fixture
def config(tmp_path: Path, service: ClusterService, authority: WebAuthority) -> Path:
    return kubeconfig(tmp_path / "kubeconfig", service, authority, "t")


@asynccontextmanager
async def server_of(find: Callable[[], Access]) -> AsyncGenerator[ApiServer]:
    with ThreadPoolExecutor(1) as workers:
        yield ApiServer(find, workers)


def rewritten(path: Path, *texts: str | None) -> str:
    """What was there before; with None, nothing is there after."""
    before = path.read_text() if path.exists() else ""
    for text in texts:
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    return before


async def labels(access: Access) -> str:
    async with server_of(lambda: access) as server:
        found = await LiveMetadatas(server).get(NAMESPACE, "", "shop")
        return (found.labels or {})["n"]


async def test_from_a_kubeconfig(config: Path) -> None:
    assert await labels(finding.find({"KUBECONFIG": f"/nowhere:{config}", "KUBERNETES_SERVICE_HOST": "x"})) == "shop"


async def test_from_the_pod(tmp_path: Path, authority: WebAuthority, service: ClusterService) -> None:
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.file.read_bytes())
    (folder / "token").write_text("t\n")
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(service.port)}
    assert await labels(finding.find(environment, str(folder))) == "shop"


def test_from_the_home_folder(tmp_path: Path, config: Path, service: ClusterService) -> None:
    (tmp_path / ".kube").mkdir()
    config.rename(tmp_path / ".kube" / "config")
    assert finding.find({"HOME": str(tmp_path)}).service.port == service.port


def test_nowhere(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument, match=r"the agent does not run in a pod, KUBECONFIG is not set and there is no"
    ):
        finding.find({"HOME": str(tmp_path)})


async def test_client_certificates_and_files_beside_the_kubeconfig(
    tmp_path: Path, authority: WebAuthority, cluster: Cluster
) -> None:
    client = authority.issue("client", client=True)
    data = base64.b64encode(client.certificate.read_bytes()).decode()
    key = base64.b64encode(client.key.read_bytes()).decode()
    users = (
        f"client-certificate-data: {data}\n    client-key-data: {key}",
        "client-certificate: client.pem\n    client-key: client.key",
    )
    made = ClusterService(cluster, files=authority.issue("api", "api.example"), client_authority=authority.file)
    try:
        for user in users:
            path = tmp_path / "certificates"
            path.write_text(f"""
current-context: here
contexts: [{{name: here, context: {{cluster: local, user: agent}}}}]
clusters:
- name: local
  cluster:
    certificate-authority: cluster-ca.pem
    tls-server-name: api.example
    server: https://127.0.0.1:{made.port}/
users:
- name: agent
  user:
    {user}
""")
            assert await labels(finding.find({"KUBECONFIG": str(path)})) == "shop"
            assert made.asked[-1].certificate
    finally:
        made.close()


KUBECONFIGS: dict[str, tuple[tuple[str, str], str]] = {
    "no YAML": (("apiVersion: v1", "{"), "unable to load Kubernetes client config: {path}: "),
    "no mapping": (("apiVersion: v1", "- 1\n#"), "unable to load Kubernetes client config: {path}: "),
    "no such context": (("current-context: here", "current-context: there"), "{path}: there is no context 'there'"),
    "no such cluster": (("cluster: local", "cluster: remote"), "{path}: there is no cluster 'remote'"),
    "no such user": (("user: agent\n", "user: root\n"), "{path}: there is no user 'root'"),
    "a program": (("token: t", "exec: {command: aws}"), "{path}: credentials from a program or a provider are not for"),
    "a password": (("token: t", "username: me"), "{path}: API servers take no passwords"),
    "a proxy": (("server:", "proxy-url: http://x\n    server:"), "{path}: proxy-url is not supported"),
    "no URL": (("server: https:", "server: ftp:"), "{path}: server 'ftp://127.0.0.1"),
    "no port": (("server: https://127.0.0.1:", "server: https://127.0.0.1:x"), "{path}: server 'https://127.0.0.1:x"),
    "no CA": (("certificate-authority-data: ", "certificate-authority-data: x"), "certificate-authority-data: "),
}


@pytest.mark.parametrize("name", KUBECONFIGS)
def test_kubeconfigs_that_cannot_be_used(config: Path, name: str) -> None:
    (old, new), reason = KUBECONFIGS[name]
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    with pytest.raises(InvalidArgument) as refusal:
        finding.find({"KUBECONFIG": str(config)})
    assert reason.format(path=config) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_prefix_is_kept(config: Path) -> None:
    text = re.sub(r"(server: https://[\d.:]+)", r"\1/k8s/clusters/c-1/", config.read_text())
    config.write_text(text)
    assert finding.find({"KUBECONFIG": str(config)}).prefix == "/k8s/clusters/c-1"


REFUSALS = {
    "in its words": (status(403, 'namespaces "shop" is\nforbidden'), '^403: namespaces "shop" is forbidden$'),
    "in nobody's": (Answer(500, b"<html>no"), '^500: "<html>no"$'),
    "without any": (Answer(503, b"{}"), "^503: without a reason$"),
    "in another character set": (Answer(403, b'{"message": "\xff"}'), '^403: "'),
    "too deep": (Answer(403, b'{"x": ' + b"[" * 4000), r'^403: "{\\"x'),
    "a deep answer": (Answer(200, b'{"x": ' + b"[" * 100_000), "the API server's answer cannot be understood: "),
    "an answer in another character set": (
        Answer(200, b'{"metadata": {"name": "\xff"}}'),
        "the API server's answer cannot be understood: ",
    ),
    "what it is not": (Answer(200, b'{"metadata": 7}'), "the API server's answer cannot be understood: "),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_refusals(authority: WebAuthority, name: str) -> None:
    answer, reason = REFUSALS[name]
    made = ClusterService(lambda _: answer)
    try:
        with pytest.raises(TemporarilyUnavailable, match=reason):
            await labels(Access(Service("127.0.0.1", made.port)))
    finally:
        made.close()


async def test_one_that_hangs(service: ClusterService, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TIMEOUT", 0.3)
    service.hanging.set()
    with pytest.raises(TemporarilyUnavailable, match=r"the API server has not answered within 0.3 s"):
        await labels(finding.find({"KUBECONFIG": str(config)}))


async def test_access_that_is_lost_and_comes_back(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_RELOAD_AFTER", 0.0)
    text = rewritten(config)
    async with server_of(lambda: finding.find({"KUBECONFIG": str(config)})) as server:
        await server.get(SPACES)
        rewritten(config, text.replace("token: t", "token: other"))
        with pytest.raises(TemporarilyUnavailable, match="401"):
            await server.get(SPACES)
        rewritten(config, None)
        with pytest.raises(InvalidArgument, match="unable to load Kubernetes client config"):
            await server.get(SPACES)
        rewritten(config, text)
        await server.get(SPACES)


async def test_pages_are_read_until_it_is_found(config: Path, service: ClusterService) -> None:
    async with server_of(lambda: finding.find({"KUBECONFIG": str(config)})) as server:
        live = LiveMetadatas(server)
        assert (await live.find(NAMESPACE, "uid-extra")).name == "extra"
        assert len(service.asked) == 3
        assert (await live.find(NAMESPACE, "uid-shop")).name == "shop"
        assert len(service.asked) == 4
        with pytest.raises(NotFound):
            await live.find(NAMESPACE, "none")


@asynccontextmanager
async def caching(config: Path) -> AsyncGenerator[MetadataCache]:
    async with server_of(lambda: finding.find({"KUBECONFIG": str(config)})) as server:
        cache = MetadataCache(server, logs.get("k8s"))
        try:
            yield cache
        finally:
            await cache.close()


async def becomes(cache: MetadataCache, name: str, value: str | None) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                found = await cache.get(NAMESPACE, "", name)
                if (found.labels or {}).get("n") == value:
                    assert await cache.find(NAMESPACE, found.uid) == found
                    return
            except NotFound:
                if value is None:
                    return
            await asyncio.sleep(0.02)


async def watched(cluster: Cluster) -> None:
    async with asyncio.timeout(60):
        while not cluster.watchers:  # noqa: ASYNC110 - another thread watches
            await asyncio.sleep(0.02)


async def test_a_cache_lists_once_and_takes_up_what_changes(
    config: Path, service: ClusterService, cluster: Cluster
) -> None:
    async with caching(config) as cache:
        await asyncio.gather(*(cache.get(NAMESPACE, "", "shop") for _ in range(100)))
        await watched(cluster)
        assert len(service.asked) == 4, "three pages and a watch"
        cluster.change(SPACES, "MODIFIED", thing("shop", "uid-shop", labels={"n": "sold"}))
        await becomes(cache, "shop", "sold")
        cluster.change(SPACES, "ADDED", thing("new", "uid-new", labels={"n": "new"}))
        await becomes(cache, "new", "new")
        cluster.change(SPACES, "DELETED", thing("lab", "uid-lab"))
        await becomes(cache, "lab", None)
        with pytest.raises(NotFound):
            await cache.find(NAMESPACE, "uid-lab")
        cluster.change(SPACES, "BOOKMARK", {"metadata": {"resourceVersion": "77"}})
        cluster.end_watches()
        await watched(cluster)
        assert "resourceVersion=77" in service.asked[-1].path
        assert len(service.asked) == 5, "it goes on from where it was"


async def test_a_cache_lists_anew_when_its_place_is_gone(
    config: Path, service: ClusterService, cluster: Cluster
) -> None:
    async with caching(config) as cache:
        await becomes(cache, "shop", "shop")
        await watched(cluster)
        cluster.objects[SPACES].append(thing("missed", "uid-missed", labels={"n": "missed"}))
        cluster.change(SPACES, "ERROR", {"code": 410, "message": "too old resource version"})
        await becomes(cache, "missed", "missed")


async def test_a_cache_has_what_it_had_while_the_server_is_away(config: Path, cluster: Cluster) -> None:
    async with caching(config) as cache:
        await becomes(cache, "shop", "shop")
        await watched(cluster)
        cluster.forbidden.add(SPACES)
        cluster.change(SPACES, "ERROR", {"code": 500, "message": "etcd"})
        await asyncio.sleep(0.1)
        await becomes(cache, "shop", "shop")
        cluster.forbidden.clear()
        cluster.objects[SPACES].append(thing("late", "uid-late", labels={"n": "late"}))
        await becomes(cache, "late", "late")


async def test_a_cache_that_gets_no_list_says_why(
    config: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata_cache, "_FIRST_LIST", 0.5)
    cluster.forbidden.add(SPACES)
    async with caching(config) as cache:
        with pytest.raises(TemporarilyUnavailable, match=f"403: {SPACES} is forbidden"):
            await cache.get(NAMESPACE, "", "shop")
        cluster.forbidden.clear()
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while True:
                try:
                    await cache.get(NAMESPACE, "", "shop")
                    break
                except TemporarilyUnavailable:
                    await asyncio.sleep(0.1)


async def test_more_than_is_kept_is_asked_for(
    config: Path, service: ClusterService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata_cache, "_MOST_OBJECTS", 3)
    async with caching(config) as cache:
        assert (await cache.get(NAMESPACE, "", "extra")).name == "extra"
        assert (await cache.find(NAMESPACE, "uid-shop")).name == "shop"
        assert service.asked[-1].path.startswith(f"{SPACES}?limit=")


async def test_more_kinds_than_are_kept_are_asked_for(
    config: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata_cache, "_MOST_KINDS", 1)
    cluster.objects["/apis/apps/v1/deployments"] = [thing("web", "d1", "shop")]
    async with caching(config) as cache:
        await cache.get(NAMESPACE, "", "shop")
        assert (await cache.get(DEPLOYMENTS, "shop", "web")).uid == "d1"
        assert (await cache.find(DEPLOYMENTS, "d1")).name == "web"
