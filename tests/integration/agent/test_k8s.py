"""The agent as a process on a node of Kubernetes: real cgroups, a kubelet that is played.

Another agent may stand in for ours: SPIRE_AGENT_BIN names it. Root only, as agents are.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from generated.spiffe.broker import api_pb2
from tests.simulators import spire
from tests.simulators.cgroups import Cgroup, cgroup
from tests.simulators.kubelet import Answer, ClusterService, Pods, container, kubelet, pod
from tests.simulators.web_pki import WebAuthority
from transport.client import Channel
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity, client_context

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make cgroups")

AGENT = os.environ.get("SPIRE_AGENT_BIN") or spire.AGENT
NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
OUTSIDER = "spiffe://example.org/outsider"

ID = "4f0c" * 16
OTHER_ID = "5a1d" * 16
SELECTORS = (
    "k8s:ns:shop",
    "k8s:sa:clerk",
    "k8s:node-name:node-7",
    "k8s:pod-name:web-0",
    "k8s:pod-label:app:web",
    "k8s:pod-owner:ReplicaSet:web-5d",
    "k8s:pod-owner-uid:ReplicaSet:77aa",
    "k8s:pod-image:registry.example/app:v1",
    "k8s:pod-image-count:2",
    "k8s:pod-init-image-count:0",
    "k8s:container-name:app",
    "k8s:container-image:registry.example/app@sha256:aa",
)


@pytest.fixture
def uid() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def pods(uid: str) -> Pods:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": "77aa", "controller": True}
    app = container("app", ID, "registry.example/app:v1", "registry.example/app@sha256:aa")
    return Pods([pod(uid, app, container("proxy", OTHER_ID), labels={"app": "web"}, owners=[owner])])


@pytest.fixture
def node_kubelet(tmp_path: Path, pods: Pods) -> Iterator[ClusterService]:
    authority = WebAuthority(tmp_path)
    (tmp_path / "token").write_text("s3cret")
    with kubelet(pods, files=authority.issue("kubelet", "node-7"), token="s3cret") as service:
        yield service


@pytest.fixture
def server(tmp_path: Path) -> Iterator[spire.Server]:
    made = spire.Server(tmp_path / "server")
    made.start()
    made.create_entry(NODE, WORKLOAD, selectors=SELECTORS)
    made.create_entry(NODE, OUTSIDER, selectors=["k8s:container-name:proxy"])
    yield made
    made.run.end()


MakeAgent = Callable[..., spire.Agent]


@pytest.fixture
def make_agent(tmp_path: Path, server: spire.Server, node_kubelet: ClusterService) -> Iterator[MakeAgent]:
    made: list[spire.Agent] = []

    def make(settings: str = "", agent_settings: str = "") -> spire.Agent:
        attestor = f"""
            WorkloadAttestor "k8s" {{ plugin_data {{
              kubelet_secure_port = {node_kubelet.port}
              kubelet_ca_path = "{tmp_path}/cluster-ca.pem"
              token_path = "{tmp_path}/token"
              {settings}
            }} }}"""
        folder = tmp_path / "agent"
        keys = f'KeyManager "disk" {{ plugin_data {{ directory = "{folder}" }} }}'
        agent = spire.Agent(
            folder,
            server,
            token=server.join_token(NODE),
            key_manager=keys + attestor,
            settings=agent_settings,
            program=AGENT,
        )
        made.append(agent)
        agent.start()
        spire.eventually(lambda: agent.run.output().count("Entry created") >= 2 or None, "the entries")
        return agent

    yield make
    for each in made:
        each.run.end()


def fetch(agent: spire.Agent, place: Cgroup, seconds: int = 60) -> subprocess.CompletedProcess[str]:
    """What a workload in a cgroup is given."""
    join = 'echo $$ > "$0" && exec "$@"'
    asked = (AGENT, "api", "fetch", "x509", "-socketPath", agent.socket, "-timeout", f"{seconds}s")
    return spire.command("sh", "-c", join, str(place.folder / "cgroup.procs"), *asked, timeout=seconds + 60)


def in_pod(uid: str, container_id: str = ID, below: str = "") -> str:
    pod_slice = f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"
    return f"/kubepods-test-{uid}.slice/{pod_slice}/cri-{container_id}.scope{below}"


def test_a_workload_in_a_pod(make_agent: MakeAgent, uid: str) -> None:
    agent = make_agent()
    with cgroup(in_pod(uid)) as place:
        done = fetch(agent, place)
    assert WORKLOAD in done.stdout, f"{done.stdout}{done.stderr}{agent.run.output()[-4000:]}"
    assert OUTSIDER not in done.stdout
    with cgroup(f"/kubepods-test-{uid}/besteffort/pod{uid}/{OTHER_ID}") as place:
        done = fetch(agent, place)
    assert OUTSIDER in done.stdout
    assert WORKLOAD not in done.stdout


def test_a_workload_without_a_pod(make_agent: MakeAgent, uid: str, node_kubelet: ClusterService) -> None:
    agent = make_agent()
    with cgroup(f"/system-test-{uid}.slice") as place:
        done = fetch(agent, place, 5)
    assert "no identity issued" in done.stdout + done.stderr
    assert not node_kubelet.asked


def test_a_workload_whose_container_comes_late(make_agent: MakeAgent, uid: str, pods: Pods) -> None:
    agent = make_agent()
    status = pods.items[0]["status"]
    ready, status["containerStatuses"] = status["containerStatuses"], [container("app", ""), container("proxy", "")]
    join = 'echo $$ > "$0" && exec "$@"'
    with cgroup(in_pod(uid)) as place:
        asked = (AGENT, "api", "fetch", "x509", "-socketPath", agent.socket, "-timeout", "60s")
        with subprocess.Popen(
            ["sh", "-c", join, str(place.folder / "cgroup.procs"), *asked], stdout=subprocess.PIPE, text=True
        ) as workload:
            spire.eventually(
                lambda: agent.run.output().count("Container id not found; will retry after backoff") >= 3, "the tries"
            )
            status["containerStatuses"] = ready
            output, _ = workload.communicate(timeout=60)
    assert WORKLOAD in output


def test_a_kubelet_that_is_away_costs_nobody_else_anything(make_agent: MakeAgent, uid: str, pods: Pods) -> None:
    agent = make_agent('poll_retry_interval = "100ms"\nmax_poll_attempts = 5')
    pods.garbage = Answer(500, b"out of order")
    with cgroup(in_pod(uid)) as place:
        # The unix attestor has succeeded, and nothing is for its selectors alone.
        done = fetch(agent, place)
        assert "no identity issued" in done.stdout + done.stderr
        assert "Unable to get pod list; giving up" in agent.run.output()
        pods.garbage = None
        assert WORKLOAD in fetch(agent, place).stdout


def test_cgroups_below_a_container_do_not_make_it_another(make_agent: MakeAgent, uid: str) -> None:
    agent = make_agent()
    stranger = str(uuid.uuid4())
    for below in (f"/kubepods/pod{uid}/{ID}", f"/{ID}"):
        owner = stranger if below.startswith("/kube") else uid
        with cgroup(in_pod(owner, OTHER_ID, below)) as place:
            done = fetch(agent, place, 5)
        assert WORKLOAD not in done.stdout
        assert "named in one cgroup path" in agent.run.output()


def minted(server: spire.Server, folder: Path, spiffe_id: str) -> InProcessIdentity:
    """An X509-SVID and its key."""
    folder.mkdir()
    server.ask("x509", "mint", "-spiffeID", spiffe_id, "-write", str(folder))
    chain = x509.load_pem_x509_certificates((folder / "svid.pem").read_bytes())
    key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
    private = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return InProcessIdentity(tuple(each.public_bytes(serialization.Encoding.DER) for each in chain), private)


async def referred(port: int, identity: InProcessIdentity, namespace: str, name: str) -> list[str]:
    """The SPIFFE IDs that a broker is given for a pod."""
    reference = api_pb2.KubernetesObjectReference(
        type=api_pb2.KubernetesObjectType(plural="pods", group="core"),
        key=api_pb2.KubernetesObjectKey(namespace=namespace, name=name),
    )
    request = api_pb2.SubscribeToX509SVIDRequest()
    request.reference.reference.Pack(reference)
    channel = Channel.tcp("127.0.0.1", port, lambda: client_context(identity), lambda _: None)
    try:
        async for response in channel.server_stream(
            "/spiffe.broker.API/SubscribeToX509SVID",
            request,
            api_pb2.SubscribeToX509SVIDResponse,
            timeout=spire.PATIENCE,
            metadata={"broker.spiffe.io": "true"},
        ):
            return [each.spiffe_id for each in response.svids]
    finally:
        await channel.close()
    raise AssertionError("the stream has ended")


def test_a_broker_that_names_a_pod(make_agent: MakeAgent, server: spire.Server, tmp_path: Path) -> None:
    broker, port = "spiffe://example.org/broker", spire.free_port()
    server.create_entry(NODE, "spiffe://example.org/pod", selectors=["k8s:pod-name:web-0", "k8s:ns:shop"])
    kind = "type.googleapis.com/spiffe.broker.KubernetesObjectReference"
    make_agent(
        f'experimental {{ broker {{ access_policy = "permissive" brokers = [{{ id = "{broker}" }}] }} }}',
        f"""experimental {{ broker {{ bind_address = "127.0.0.1:{port}" brokers = [{{
            id = "{broker}" allowed_reference_types = [{{ type_url = "{kind}" allow_over_tcp = true }}]
        }}] }} }}""",
    )
    identity = minted(server, tmp_path / "broker", broker)
    assert "spiffe://example.org/pod" in asyncio.run(referred(port, identity, "shop", "web-0"))
    with pytest.raises(RpcError, match="pod shop/web-1 not found on agent node") as refusal:
        asyncio.run(referred(port, identity, "shop", "web-1"))
    assert refusal.value.code is Code.NOT_FOUND
