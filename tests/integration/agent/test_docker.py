"""The agent as a process on a node with containers: of the real Podman, and of a daemon that is played.

Another agent may stand in for ours: SPIRE_AGENT_BIN names it. Root only, as agents are.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attestors import processes
from attestors.docker.attestor import DockerAttestor
from attestors.docker.configuration import Configuration
from operations import logs
from tests.simulators import podman, spire
from tests.simulators.cgroups import Cgroup, cgroup
from tests.simulators.docker_daemon import IMAGE, IMAGE_ID, Daemon, answers, docker, image_answer
from tests.simulators.registry import Registry, WebServer
from tests.simulators.sigstore import ISSUER, SUBJECT, Sigstore
from transport.peer import Process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make cgroups and run containers of its own")

AGENT = os.environ.get("SPIRE_AGENT_BIN") or spire.AGENT
NODE = "spiffe://example.org/node"
WEB = "spiffe://example.org/web"
DATABASE = "spiffe://example.org/database"
ANY = "spiffe://example.org/any-container"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[spire.Server]:
    made = spire.Server(tmp_path / "server")
    made.start()
    yield made
    made.run.end()


MakeAgent = Callable[..., spire.Agent]


@pytest.fixture
def make_agent(tmp_path: Path, server: spire.Server) -> Iterator[MakeAgent]:
    made: list[spire.Agent] = []

    def make(settings: str, entries: int, environment: dict[str, str] | None = None) -> spire.Agent:
        """Once it knows as many entries."""
        attestor = f'WorkloadAttestor "docker" {{ plugin_data {{ {settings} }} }}'
        folder = tmp_path / "agent"
        keys = f'KeyManager "disk" {{ plugin_data {{ directory = "{folder}" }} }}'
        agent = spire.Agent(
            folder,
            server,
            token=server.join_token(NODE),
            key_manager=keys + attestor,
            program=AGENT,
            environment=environment or {},
        )
        made.append(agent)
        agent.start()
        spire.eventually(lambda: agent.run.output().count("Entry created") >= entries or None, "the entries")
        return agent

    yield make
    for each in made:
        each.run.end()


@pytest.fixture
def engine() -> Iterator[podman.Engine]:
    with podman.podman() as running:
        yield running


def fetch_in(engine: podman.Engine, agent: spire.Agent, tier: str, color: str) -> str:
    """What a workload in a container of its own is given."""
    return engine.run(
        *(spire.AGENT, "api", "fetch", "x509", "-socketPath", "/run/spire/api.sock", "-timeout", "60s"),
        labels={"org.example.tier": tier},
        environment={"COLOR": color},
        volumes={"/run/spire": str(Path(agent.socket).parent)},
    )


def test_workloads_in_podmans_containers(server: spire.Server, make_agent: MakeAgent, engine: podman.Engine) -> None:
    digest = engine.ask("image", "inspect", "--format", "{{.Id}}", podman.IMAGE)
    image = f"docker:image_id:{podman.IMAGE}"
    server.create_entry(NODE, WEB, selectors=[image, "docker:label:org.example.tier:web", "docker:env:COLOR=blue"])
    server.create_entry(NODE, DATABASE, selectors=["docker:label:org.example.tier:database"])
    server.create_entry(NODE, ANY, selectors=[f"docker:image_config_digest:sha256:{digest}"])
    agent = make_agent(f'podman_socket_path = "{engine.socket}"', 3)

    given = fetch_in(engine, agent, "web", "blue")
    assert WEB in given, f"{given}{agent.run.output()[-4000:]}"
    assert ANY in given
    assert DATABASE not in given
    given = fetch_in(engine, agent, "database", "blue")
    assert DATABASE in given
    assert ANY in given
    assert WEB not in given


def test_a_cgroup_with_a_containers_name_is_no_container(
    server: spire.Server, make_agent: MakeAgent, engine: podman.Engine
) -> None:
    server.create_entry(NODE, WEB, selectors=["docker:label:org.example.tier:web"])
    agent = make_agent(f'podman_socket_path = "{engine.socket}"', 1)
    container = engine.start("sleep", "600", labels={"org.example.tier": "web"})
    with cgroup(f"spire-test-{uuid.uuid4()}/libpod-{container}.scope") as forged:
        assert "no identity issued" in fetch(agent, forged, 5)
    assert f"is in a cgroup named like container {container}, but outside it" in agent.run.output()


USER = 61250


async def test_a_users_own_podman() -> None:
    """Containers of a user have labels that this user's Podman tells, at a socket that goes by the user's id."""
    with podman.podman(USER) as engine:
        container = engine.start("sleep", "600", labels={"org.example.tier": "web"})
        pid = int(engine.ask("inspect", "--format", "{{.State.Pid}}", container))
        owner = processes.owner(pid)
        process = Process(pid, owner.uid, owner.gid, processes.started(pid))
        assert owner.uid == USER
        template = engine.socket.replace(str(USER), "%d")
        attestor = DockerAttestor(Configuration(podman_socket_path_template=template), logs.get("docker"))
        found = [str(each) for each in await attestor.attest(process)]
    assert "docker:label:org.example.tier:web" in found
    assert f"docker:image_id:{podman.IMAGE}" in found
    assert any(each.startswith("docker:image_config_digest:sha256:") for each in found)


def fetch(agent: spire.Agent, place: Cgroup, seconds: int = 60) -> str:
    """What a workload in a cgroup is given."""
    join = 'echo $$ > "$0" && exec "$@"'
    asked = (AGENT, "api", "fetch", "x509", "-socketPath", agent.socket, "-timeout", f"{seconds}s")
    done = spire.command("sh", "-c", join, str(place.folder / "cgroup.procs"), *asked, timeout=seconds + 60)
    return done.stdout + done.stderr


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with docker() as running:
        yield running


def test_workloads_in_dockers_containers(server: spire.Server, make_agent: MakeAgent, daemon: Daemon) -> None:
    labels = ["docker:label:org.example.tier:web", f"docker:image_id:{IMAGE}", "docker:env:COLOR=blue"]
    server.create_entry(NODE, WEB, selectors=[*labels, f"docker:image_config_digest:{IMAGE_ID}"])
    agent = make_agent(f'docker_socket_path = "{daemon.socket}"', 1)
    container = uuid.uuid4().hex * 2
    with cgroup(f"spire-test-{uuid.uuid4()}.slice/docker-{container}.scope") as place:
        # Docker is away: the container's workload is given nothing, any other what it is always given.
        daemon.fault = answers(500, {"message": "out of order"})
        assert "no identity issued" in fetch(agent, place, 5)
        assert "Error response from daemon: out of order" in agent.run.output()
        daemon.fault = None
        daemon.run(container)
        given = fetch(agent, place)
        assert WEB in given, f"{given}{agent.run.output()[-4000:]}"


def test_signed_images(server: spire.Server, make_agent: MakeAgent, daemon: Daemon, tmp_path: Path) -> None:
    server.create_entry(NODE, WEB, selectors=["docker:image-signature:verified", "docker:label:org.example.tier:web"])
    server.create_entry(NODE, ANY, selectors=["docker:label:org.example.tier:web"])
    sigstore, registry = Sigstore(), Registry()
    container = uuid.uuid4().hex * 2
    with WebServer() as web, cgroup(f"spire-test-{uuid.uuid4()}.slice/docker-{container}.scope") as place:
        web.routes.append(registry.route)
        signed, unsigned = registry.push_image(), registry.push_image("another")
        registry.attach(signed, sigstore.signature(signed))
        block = f"""
            docker_socket_path = "{daemon.socket}"
            sigstore {{
              ignore_attestations = true
              allowed_identities = {{ "{ISSUER}" = ["{SUBJECT}"] }}
            }}"""
        agent = make_agent(block, 2, sigstore.environment(tmp_path / "trust"))
        daemon.run(container)
        daemon.images[IMAGE] = image_answer(digests=[f"{web.host}/app@{signed}"])
        given = fetch(agent, place)
        assert WEB in given, f"{given}{agent.run.output()[-4000:]}"
        # Of an image that nobody has signed not even labels count.
        daemon.images[IMAGE] = image_answer(digests=[f"{web.host}/app@{unsigned}"])
        assert "no identity issued" in fetch(agent, place, 20)
        assert f"sigstore signature verification failed for image {IMAGE}" in agent.run.output()


def test_a_configuration_that_cannot_be_used(server: spire.Server, tmp_path: Path) -> None:
    attestor = 'WorkloadAttestor "docker" { plugin_data { docker_socket_path = "/var/run/docker.sock" } }'
    keys = 'KeyManager "memory" { plugin_data {} }'
    agent = spire.Agent(tmp_path / "agent", server, key_manager=keys + attestor)
    done: subprocess.CompletedProcess[str] = spire.command(
        spire.AGENT, "validate", "-config", str(agent.config), timeout=60
    )
    assert done.returncode == 1
    assert 'unable to parse docker host "/var/run/docker.sock"' in done.stdout + done.stderr
