"""The OIDC workload attestor: real processes with tokens in files and variables, a real issuer over TLS."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from attestors import processes
from attestors.oidc import attestor, issuer_keys, tokens
from attestors.oidc.attestor import OidcAttestor
from attestors.oidc.configuration import Configuration, Issuer
from operations import logs
from operations.errors import ConfigurationError, NotFound, Refused, TemporarilyUnavailable
from plugins.catalog import PluginContext
from tests.simulators.cgroups import OWN, cgroup
from tests.simulators.oidc_issuer import CONFIGURATION, KEYS, OidcIssuer, jwk, signing_key
from tests.simulators.spire import eventually
from tests.simulators.web_pki import WebAuthority
from transport.peer import Process

VARIABLE = "JOB_TOKEN"


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[OidcIssuer]:
    with OidcIssuer(tmp_path) as made:
        yield made


def until_it_runs(pid: int, name: str) -> None:
    """Until its environment is its own: it comes a moment after its name."""

    def runs() -> bool:
        return Path(f"/proc/{pid}/comm").read_text().strip() == name and bool(Path(f"/proc/{pid}/environ").read_bytes())

    eventually(runs, f"process {pid}")


@contextmanager
def process(command: Sequence[str] = ("sleep", "600"), **environment: str) -> Generator[Process]:
    with subprocess.Popen(command, env={"PATH": os.environ["PATH"], **environment}) as child:
        try:
            until_it_runs(child.pid, command[0])
            yield Process(child.pid, os.getuid(), os.getgid(), processes.started(child.pid))
        finally:
            child.kill()


@asynccontextmanager
async def attesting(issuer: OidcIssuer, *, path: str = "", **more: Any) -> AsyncGenerator[OidcAttestor]:
    settings: dict[str, Any] = {"audiences": ("spire",), "ca_path": str(issuer.ca.file), **more}
    configuration = Configuration(issuers={issuer.url: Issuer(**settings)}, token_path=path, token_env=VARIABLE)
    made = await attestor.load(configuration, PluginContext("example.org", None, logs.get()))
    try:
        yield made
    finally:
        await made.close()


async def selectors(attesting: OidcAttestor, token: str) -> list[str]:
    with process(**{VARIABLE: token}) as caller:
        return [str(each) for each in await attesting.attest(caller)]


async def test_what_a_token_says(issuer: OidcIssuer) -> None:
    claims = ("ref", "kubernetes.io.namespace", "groups", "absent")
    async with attesting(issuer, claims=claims) as it:
        said: dict[str, Any] = {"kubernetes.io": {"namespace": "shop"}, "groups": ["a", "b"]}
        token = issuer.token(aud=["spire", "vault"], ref="refs/heads/main", **said)
        assert await selectors(it, token) == [
            f"oidc_attestor:iss:{issuer.url}",
            "oidc_attestor:sub:job-1",
            "oidc_attestor:aud:spire",
            "oidc_attestor:aud:vault",
            "oidc_attestor:claim:ref:refs/heads/main",
            "oidc_attestor:claim:kubernetes.io.namespace:shop",
            "oidc_attestor:claim:groups:a",
            "oidc_attestor:claim:groups:b",
        ]
        with process() as caller:
            assert await it.attest(caller) == ()
    assert issuer.asked == [CONFIGURATION, KEYS]


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_keys_at_a_url_of_their_own(issuer: OidcIssuer, algorithm: str) -> None:
    issuer.add("second", algorithm)
    async with attesting(issuer, jwks_url=f"{issuer.url}{KEYS}") as it:
        assert "oidc_attestor:sub:job-1" in await selectors(it, issuer.token("second"))
    assert issuer.asked == [KEYS]


async def test_tokens_that_are_refused(issuer: OidcIssuer) -> None:
    async with attesting(issuer) as it:
        for token, words in (
            ("nonsense", "cannot be read"),
            ("é", "other characters than ASCII's"),
            ("a" * 70_000, "larger than 65536 bytes, and no token"),
            (issuer.token(iss="https://elsewhere.example.org"), "is not among the configured ones"),
            (issuer.token(aud="vault"), "for none of the configured audiences"),
            (issuer.token(exp=1), "has expired"),
        ):
            with pytest.raises(Refused, match=words):
                await selectors(it, token)
        asked = len(issuer.asked)
        with pytest.raises(Refused, match="is not among the configured ones"):
            await selectors(it, issuer.token(iss=issuer.url + "/"))
        assert len(issuer.asked) == asked


async def test_keys_that_change(issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with attesting(issuer, jwks_url=f"{issuer.url}{KEYS}") as it:
        await selectors(it, issuer.token())
        issuer.add("second")
        # Whoever names keys that are not there does not have the issuer asked each time.
        with pytest.raises(Refused, match="0 keys"):
            await selectors(it, issuer.token("second"))
        assert issuer.asked == [KEYS]
        monkeypatch.setattr(issuer_keys, "APART", 0.0)
        await selectors(it, issuer.token("second"))
        await selectors(it, issuer.token())
        assert issuer.asked == [KEYS, KEYS]
        del issuer.keys["second"]
        monkeypatch.setattr(issuer_keys, "FRESH", 0.0)
        gone = issuer.keys["first"]
        issuer.add("second")
        issuer.keys["first"] = ("ES256", signing_key("ES256"))
        token = issuer.token()
        issuer.keys["first"] = gone
        with pytest.raises(Refused, match="does not verify"):
            await selectors(it, token)


async def test_an_issuer_that_is_away(issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer_keys, "APART", 0.0)
    async with attesting(issuer, jwks_url=f"{issuer.url}{KEYS}") as it:
        issuer.documents[KEYS] = b"{}"
        with pytest.raises(TemporarilyUnavailable, match=r"the keys of issuer .* are not known: "):
            await selectors(it, issuer.token())
        del issuer.documents[KEYS]
        await selectors(it, issuer.token())
        monkeypatch.setattr(issuer_keys, "FRESH", 0.0)
        issuer.documents[KEYS] = b"none"
        await selectors(it, issuer.token())  # by the keys that it had
        monkeypatch.setattr(issuer_keys, "KEPT", 0.0)
        with pytest.raises(TemporarilyUnavailable):
            await selectors(it, issuer.token())


@pytest.mark.parametrize(
    ("path", "document", "words"),
    [
        (KEYS, b"x" * 600_000, "sent more than"),
        (KEYS, json.dumps({"keys": [jwk(signing_key("ES256"))] * 101}).encode(), "at most 100"),
        (CONFIGURATION, b'{"issuer":"https://other.example.org"}', "another issuer"),
        (CONFIGURATION, b"[]", "Expected"),
    ],
    ids=["huge", "many", "another", "none"],
)
async def test_documents_that_are_refused(issuer: OidcIssuer, path: str, document: bytes, words: str) -> None:
    issuer.documents[path] = document
    async with attesting(issuer) as it:
        with pytest.raises(TemporarilyUnavailable, match=words):
            await selectors(it, issuer.token())


async def test_keys_in_the_clear_are_not_fetched(issuer: OidcIssuer) -> None:
    issuer.documents[CONFIGURATION] = json.dumps(
        {"issuer": issuer.url, "jwks_uri": issuer.url.replace("https", "http") + KEYS}
    ).encode()
    async with attesting(issuer) as it:
        with pytest.raises(TemporarilyUnavailable, match="must begin with https://"):
            await selectors(it, issuer.token())


async def test_a_slow_issuer_is_asked_once_for_all(issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer.delay = 0.5
    async with attesting(issuer, jwks_url=f"{issuer.url}{KEYS}") as it:
        token = issuer.token()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await selectors(it, token)
        found = await asyncio.gather(*(selectors(it, token) for _ in range(5)))
        assert all(found)
    assert issuer.asked == [KEYS]
    monkeypatch.setattr(issuer_keys, "PATIENCE", 0.1)
    async with attesting(issuer) as it:
        with pytest.raises(TemporarilyUnavailable, match="it gave no answer in"):
            await selectors(it, issuer.token())


async def test_an_issuer_of_another_ca(issuer: OidcIssuer, tmp_path: Path) -> None:
    other = WebAuthority(tmp_path, "other")
    for ca in (str(other.file), ""):
        async with attesting(issuer, ca_path=ca) as it:
            with pytest.raises(TemporarilyUnavailable, match="its certificate is not trusted"):
                await selectors(it, issuer.token())
    assert issuer.asked == []
    with pytest.raises(ConfigurationError, match='ca_path "/nonexistent" cannot be used: No such file'):
        async with attesting(issuer, ca_path="/nonexistent"):
            pass


async def test_tokens_of_a_pod(issuer: OidcIssuer) -> None:
    pod = str(uuid.uuid4())
    said: dict[str, Any] = {"kubernetes.io": {"namespace": "shop", "pod": {"name": "web-0", "uid": pod}}}
    token = issuer.token(**said)
    path = f"{OWN}/kubepods/besteffort/pod{pod}/{'a1' * 32}"
    command = ("env", f"{VARIABLE}={token}", "sleep", "600")
    async with attesting(issuer, claims=("kubernetes.io.pod.name",), require_binding=True) as it:
        with cgroup(path) as inside, inside.running(command) as caller:
            await asyncio.to_thread(until_it_runs, caller.pid, "sleep")
            found = [str(each) for each in await it.attest(caller)]
            assert "oidc_attestor:claim:kubernetes.io.pod.name:web-0" in found
        with pytest.raises(Refused, match=f"the token is for pod {pod}, and the process that has it is of no pod"):
            await selectors(it, token)
        with pytest.raises(Refused, match="does not say which pod or user"):
            await selectors(it, issuer.token())


async def test_tokens_of_a_user(issuer: OidcIssuer) -> None:
    async with attesting(issuer, uid_claim="job.uid", require_binding=True) as it:
        assert await selectors(it, issuer.token(job={"uid": os.getuid()}))
        with pytest.raises(Refused, match=f"for user {os.getuid() + 1}, and the process that has it"):
            await selectors(it, issuer.token(job={"uid": os.getuid() + 1}))


@contextmanager
def rooted(root: Path) -> Generator[Process]:
    """A process whose root is a folder."""
    code = "import os, sys, time; os.chroot(sys.argv[1]); os.chdir('/'); print(flush=True); time.sleep(600)"
    command = ("unshare", "--mount", sys.executable, "-c", code, str(root))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            yield Process(child.pid, os.getuid(), os.getgid(), processes.started(child.pid))
        finally:
            child.kill()


async def test_a_token_at_a_path_as_the_process_sees_it(issuer: OidcIssuer, tmp_path: Path) -> None:
    """As the kubelet projects it: a link to a file behind another link."""
    root = tmp_path / "root"
    volume = root / "run/secrets/tokens"
    (volume / "..2026").mkdir(parents=True)
    (volume / "..data").symlink_to("..2026")
    (volume / "spire").symlink_to("..data/spire")
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    async with attesting(issuer, path="/var/run/secrets/tokens/spire") as it:
        with rooted(root) as caller:
            assert await it.attest(caller) == ()
            await asyncio.to_thread((volume / "..2026/spire").write_text, f"{issuer.token()}\n")
            assert "oidc_attestor:sub:job-1" in [str(each) for each in await it.attest(caller)]


def test_links_lead_nowhere_but_within_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("outside")
    (root / "inside").write_text("inside")
    (root / "up").symlink_to("../../../../inside")
    (root / "absolute").symlink_to("/inside")
    (root / "away").symlink_to(str(tmp_path / "secret"))
    (root / "loop").symlink_to("loop")
    (root / "folder").mkdir()
    (root / "sparse").touch()
    os.truncate(root / "sparse", 1 << 40)
    os.mkfifo(root / "pipe")
    os.mknod(root / "device", 0o20600, os.makedev(1, 5))  # /dev/zero
    with rooted(root) as caller:
        assert tokens.from_file(caller.pid, "/up") == "inside"
        assert tokens.from_file(caller.pid, "/absolute") == "inside"
        assert tokens.from_file(caller.pid, "/../inside") == "inside"
        assert tokens.from_file(caller.pid, "/away") is None
        assert tokens.from_file(caller.pid, "/inside/x") is None
        for path, words in (
            ("/loop", "Too many levels of symbolic links"),
            ("/folder", "no plain file"),
            ("/pipe", "no plain file"),
            ("/device", "no plain file"),
            ("/sparse", "larger than 65536 bytes"),
        ):
            with pytest.raises(Refused, match=words):
                tokens.from_file(caller.pid, path)


def test_magic_links_are_not_followed() -> None:
    with process() as caller, pytest.raises(Refused, match="Too many levels of symbolic links"):
        tokens.from_file(caller.pid, f"/proc/{os.getpid()}/root/etc/passwd")


async def test_processes_that_are_gone(issuer: OidcIssuer) -> None:
    with process(**{VARIABLE: issuer.token()}) as caller:
        pass
    async with attesting(issuer, path="/token") as it:
        with pytest.raises(NotFound):
            await it.attest(caller)
    with pytest.raises(NotFound):
        tokens.from_file(caller.pid, "/t")
    with pytest.raises(NotFound):
        tokens.from_environment(caller.pid, "A")


def test_variables() -> None:
    with process(TOKEN_MORE="no", TOKEN="yes", EMPTY="") as caller:
        assert tokens.from_environment(caller.pid, "TOKEN") == "yes"
        assert tokens.from_environment(caller.pid, "EMPTY") is None
        assert tokens.from_environment(caller.pid, "TOKE") is None
