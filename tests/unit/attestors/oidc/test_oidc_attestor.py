"""Processes with tokens: their own, other users', other pods', and things that are no token at all."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.catalog import BUILTINS
from attestors import processes
from attestors.oidc.attestor import OidcAttestor, load
from attestors.oidc.configuration import Configuration
from attestors.oidc.configuration import Issuer as Settings
from operations import config, hcl, logs
from operations.errors import ConfigurationError, InvalidArgument, NotFound, Refused
from plugins.context import PluginContext
from tests.simulators.contained import process_in
from tests.simulators.issuer import JWKS, Issuer, issuing
from tests.simulators.oidc_workloads import PLUGIN
from tests.simulators.registry import Answer
from tests.simulators.spire import ROOT
from transport.peer import PidFd, Process

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may take other identities")

USER, OTHER = 61234, 61244
WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"
IN_ITS_OWN_PLACE = """
import os, sys
os.chroot(sys.argv[1])
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
"""
POD = "2f0b6a52-3c11-4c22-8d9e-6a2a6e0f1d11"
CONTAINER = "c0ffee00" * 8
PLACE = f"kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{CONTAINER}.scope"


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with issuing(tmp_path) as made:
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    """That every user may pass through."""
    with tempfile.TemporaryDirectory(prefix="spire-test-oidc-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextmanager
def running(
    *arguments: str, code: str = "", uid: int = USER, groups: Sequence[int] = (), **environment: str
) -> Generator[Process]:
    """A process of a user. With code of its own it takes the user itself."""
    options: dict[str, Any] = {} if code else {"user": uid, "group": uid, "extra_groups": list(groups)}
    with subprocess.Popen(
        [sys.executable, "-c", code + WAIT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        **options,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        try:
            yield Process(child.pid, uid, uid, processes.started(child.pid), PidFd.of(child.pid))
        finally:
            child.kill()


@dataclass
class Asked:
    issuer: Issuer
    path: str = ""
    variable: str = ""

    async def attestor(self, **settings: Any) -> OidcAttestor:
        configured = Configuration(
            issuers={self.issuer.url: Settings(**self.issuer.settings(**settings))},
            token_path=self.path,
            token_env=self.variable,
        )
        made = await load(configured, PluginContext("example.org", None, logs.get("oidc")))
        assert isinstance(made, OidcAttestor)
        return made

    async def selectors(self, process: Process, **settings: Any) -> list[str]:
        attestor = await self.attestor(**settings)
        try:
            return [str(each) for each in await attestor.attest(process)]
        finally:
            await attestor.close()


def expected(issuer: Issuer) -> list[str]:
    return [f"oidc_attestor:iss:{issuer.url}", "oidc_attestor:sub:job-1", "oidc_attestor:aud:spire"]


def put(path: Path, text: str, uid: int = USER, mode: int = 0o400) -> Path:
    path.write_text(text)
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


@root_only
async def test_a_token_in_a_file(issuer: Issuer, folder: Path) -> None:
    file = put(folder / "token", issuer.token() + "\n")
    with running() as process:
        assert await Asked(issuer, str(file)).selectors(process) == expected(issuer)


@root_only
async def test_a_token_in_the_environment_and_the_file_before_it(issuer: Issuer, folder: Path) -> None:
    asked = Asked(issuer, str(folder / "token"), "CI_TOKEN")
    with running(CI_TOKEN=issuer.token()) as process:
        assert await asked.selectors(process) == expected(issuer)
        put(folder / "token", issuer.token(sub="job-2"))
        assert "oidc_attestor:sub:job-2" in await asked.selectors(process)


@root_only
async def test_a_process_without_a_token_has_no_selectors_and_no_issuer_is_asked(issuer: Issuer, folder: Path) -> None:
    with running() as process:
        assert await Asked(issuer, str(folder / "token"), "CI_TOKEN").selectors(process) == []
        put(folder / "empty", "\n")
        assert await Asked(issuer, str(folder / "empty")).selectors(process) == []
    assert issuer.web.paths() == []


@root_only
async def test_the_path_is_the_one_that_the_process_sees(issuer: Issuer, folder: Path) -> None:
    """With links as the kubelet makes them, and absolute ones, none of which lead out of the process's root."""
    root = folder / "root"
    (root / "var/tokens/..2026").mkdir(parents=True)
    put(root / "var/tokens/..2026/token", issuer.token())
    (root / "var/tokens/..data").symlink_to("..2026")
    (root / "var/tokens/token").symlink_to("..data/token")
    (root / "absolute").symlink_to("/var/tokens/token")
    (root / "upwards").symlink_to("../../../../../../var/tokens/token")
    put(folder / "outside", issuer.token(sub="outside"))
    (root / "outside").symlink_to(folder / "outside")
    with running(str(root), str(USER), code=IN_ITS_OWN_PLACE) as process:
        for path in ("/var/tokens/token", "/absolute", "/upwards"):
            assert await Asked(issuer, path).selectors(process) == expected(issuer), path
        assert await Asked(issuer, "/outside").selectors(process) == []
        assert await Asked(issuer, f"{folder}/outside").selectors(process) == []


@root_only
async def test_a_token_that_its_user_may_not_read_is_not_the_processs(issuer: Issuer, folder: Path) -> None:
    """The agent may read everything; a process that leads it to another's token must not have that one's identity."""
    victims = folder / "victim"
    victims.mkdir(mode=0o700)
    os.chown(victims, OTHER, OTHER)
    put(victims / "readable", issuer.token(), uid=OTHER, mode=0o444)
    put(folder / "private", issuer.token(), uid=OTHER)
    put(folder / "of the group", issuer.token(), uid=OTHER, mode=0o440)
    (folder / "link").symlink_to(victims / "readable")
    with running() as process:
        for name in ("private", "victim/readable", "link", "of the group"):
            with pytest.raises(Refused, match="as the process's user: Permission denied"):
                await Asked(issuer, str(folder / name)).selectors(process)
    with running(groups=[OTHER]) as process:
        assert await Asked(issuer, str(folder / "of the group")).selectors(process) == expected(issuer)
    with running(uid=OTHER) as process:
        assert await Asked(issuer, str(folder / "link")).selectors(process) == expected(issuer)
    assert (folder / "private").read_text(), "this process's own rights are what they were"


@root_only
async def test_what_is_no_file(issuer: Issuer, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    os.chown(folder / "pipe", USER, USER)
    (folder / "folder").mkdir()
    (folder / "round").symlink_to("round")
    with running() as process:
        for name in ("pipe", "folder"):
            with pytest.raises(Refused, match="is no file"):
                await Asked(issuer, str(folder / name)).selectors(process)
        with pytest.raises(Refused, match="Too many levels"):
            await Asked(issuer, str(folder / "round")).selectors(process)
        with pytest.raises(Refused, match="Too many levels"):
            await Asked(issuer, "/proc/self/root/etc/hostname").selectors(process)


@root_only
async def test_what_is_no_token(issuer: Issuer, folder: Path) -> None:
    with running() as process:
        for content in ("root:x:0:0", "é", "x" * 100_000, "x" * (32 << 20)):
            with pytest.raises(InvalidArgument) as caught:
                await Asked(issuer, str(put(folder / "token", content, mode=0o600))).selectors(process)
            assert content[:40] not in str(caught.value)


@root_only
async def test_a_process_that_is_gone_or_another_users(issuer: Issuer, folder: Path) -> None:
    file = str(put(folder / "token", issuer.token()))
    with running() as process:
        another = Process(process.pid, OTHER, OTHER, process.started, process.pidfd)
        with pytest.raises(Refused, match="connected as user"):
            await Asked(issuer, file).selectors(another)
    with pytest.raises(NotFound):
        await Asked(issuer, file).selectors(process)


@root_only
async def test_only_the_issuers_that_are_set(issuer: Issuer, folder: Path) -> None:
    file = str(put(folder / "token", issuer.token(iss="https://other.example")))
    with running() as process, pytest.raises(Refused, match="none of the issuers that are set"):
        await Asked(issuer, file).selectors(process)
    assert issuer.web.paths() == [], "no process chooses whom the agent asks"


@root_only
async def test_a_rotated_key(issuer: Issuer, folder: Path) -> None:
    with running() as process:
        attestor = await Asked(issuer, str(folder / "token")).attestor()
        issuer.keys = {}
        issuer.add("second", "EdDSA")
        put(folder / "token", issuer.token("second"))
        assert len(await attestor.attest(process)) == 3
        assert len(await attestor.attest(process)) == 3
        assert issuer.asked(JWKS) == 1
        await attestor.close()


@root_only
async def test_a_token_of_kubernetes_is_bound_to_its_pod(issuer: Issuer, folder: Path) -> None:
    def token(uid: Any) -> str:
        said: dict[str, Any] = {"kubernetes.io": {"namespace": "shop", "pod": {"name": "web-1", "uid": uid}}}
        return issuer.token(**said)

    file = folder / "token"
    asked = Asked(issuer, str(file))
    put(file, token(POD), uid=0, mode=0o444)
    with process_in(PLACE) as inside:
        found = await asked.selectors(inside, claims=("kubernetes.io.namespace",))
        assert found == [*expected(issuer), "oidc_attestor:claim:kubernetes.io.namespace:shop"]
        for uid in ("7e0b6a52-3c11-4c22-8d9e-6a2a6e0f1d11", "", ["x", POD], 7):
            put(file, token(uid), uid=0, mode=0o444)
            with pytest.raises(Refused, match="bound to pod_uid"):
                await asked.selectors(inside)
    put(file, token(POD), uid=0, mode=0o444)
    with running() as outside, pytest.raises(Refused, match=rf"bound to pod_uid .*{POD}.* and process \d+ has"):
        await asked.selectors(outside)


@root_only
async def test_a_token_bound_by_claims_that_are_set(issuer: Issuer, folder: Path) -> None:
    file = folder / "token"
    asked = Asked(issuer, str(file))
    binding = {"uid": "job.user", "pid": "job.pid"}
    with running() as process:
        put(file, issuer.token(job={"user": USER, "pid": process.pid}))
        assert await asked.selectors(process, binding=binding) == expected(issuer)
        for job in (
            {"user": OTHER, "pid": process.pid},
            {"user": USER},
            {},
            {"user": [USER, OTHER], "pid": process.pid},
        ):
            put(file, issuer.token(job=job))
            with pytest.raises(Refused, match="is bound to"):
                await asked.selectors(process, binding=binding)


@root_only
async def test_a_slow_issuer_keeps_nobody_waiting_but_those_with_its_tokens(issuer: Issuer, folder: Path) -> None:
    asked, answer = threading.Event(), threading.Event()

    def late() -> Iterator[bytes]:
        asked.set()
        answer.wait(60)
        yield b'{"keys": []}'

    issuer.answers[JWKS] = Answer(body=late())
    file = str(put(folder / "token", issuer.token()))
    with running() as process, running(uid=OTHER) as other, running("", code="import os; os.chdir('/')\n") as nobody:
        attestor = await Asked(issuer, file).attestor()
        waiting = asyncio.create_task(attestor.attest(process))
        assert await asyncio.to_thread(asked.wait, 60)
        with pytest.raises(Refused):
            await attestor.attest(other)
        (folder / "token").unlink()
        assert await attestor.attest(replace(nobody, uid=os.getuid(), gid=os.getgid())) == ()
        assert not waiting.done()
        answer.set()
        with pytest.raises(Refused, match="has no key"):
            await waiting
        await attestor.close()


def bound(text: str) -> Configuration:
    return config.bind(Configuration, hcl.parse(text, "agent.conf"), section="oidc_attestor")


GOOD = """
issuers "https://issuer.example" {
  audiences = ["spire"]
  claims = ["groups", "kubernetes.io.namespace"]
  binding = { uid = "job.user" }
}
issuers "https://other.example/realm" {
  jwks_url = "https://keys.example/other"
  audiences = ["spire"]
  algorithms = ["EdDSA"]
}
token_path = "/var/run/secrets/tokens/spire"
token_env = "SPIRE_TOKEN"
"""


def test_the_runbooks_settings_can_be_used() -> None:
    """And the man page knows each of them."""
    text = (ROOT / "docs/runbooks/oidc-workloads.md").read_text()
    blocks = re.findall(r"```hcl\n.*?plugin_data \{\n(.*?)\n  \}\n\}\n```", text, re.DOTALL)
    assert [len(bound(block).issuers) for block in blocks] == [2, 1]
    page = (ROOT / "docs/man/spire-attestor-oidc.1").read_text()
    named = (*Configuration.__struct_fields__, *Settings.__struct_fields__)
    assert [name for name in named if f".It Va {name}" not in page] == []


def test_the_program_tells_a_person_what_it_is_for() -> None:
    done = subprocess.run([PLUGIN], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f'plugin_cmd = "{PLUGIN}"' in done.stderr
    example = re.search(r"plugin_data \{\n(.*)    \}\n\}", done.stderr, re.DOTALL)
    assert example is not None
    assert bound(example[1]).issuers


def test_the_settings_of_a_file() -> None:
    made = bound(GOOD)
    assert list(made.issuers) == ["https://issuer.example", "https://other.example/realm"]
    assert made.issuers["https://issuer.example"].binding == {"uid": "job.user"}
    assert "oidc_attestor" in BUILTINS["WorkloadAttestor"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('token_env = "X"', "issuers"),
        (GOOD.replace("https://issuer.example", "http://issuer.example"), "must be a URL https://"),
        (GOOD.replace("https://keys.example/other", "keys"), "jwks_url: must be a URL"),
        (GOOD.replace('audiences = ["spire"]', "audiences = []"), "audiences is required"),
        (GOOD.replace("EdDSA", "none"), 'algorithms: "none" is none of RS256, ES256, EdDSA'),
        (GOOD.replace("uid =", "user ="), 'binding: "user" is none of pid, uid, gid, pod_uid, container_id'),
        (GOOD.replace('"/var', '"var'), "must be an absolute path"),
        (GOOD.replace("SPIRE_TOKEN", "A=B"), "is no name of a variable"),
        (GOOD.replace("token_env", "# ").replace("token_path", "# "), "one of token_path and token_env is required"),
        (GOOD.replace("claims", "claim"), "claim"),
    ],
)
def test_bad_settings(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        bound(text)
    assert "agent.conf" in str(caught.value)
