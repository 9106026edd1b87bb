"""Trust by TUF: from a repository in a folder, over HTTP, from what is kept, and never from what is forged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from attestors.sigstore import trust_files
from attestors.sigstore.trust import TrustRoot
from attestors.sigstore.trust_files import Need
from attestors.sigstore.tuf_repository import PUBLIC_MIRROR
from operations.errors import ConfigurationError, TemporarilyUnavailable
from tests.simulators.registry import Answer, Asked, WebServer
from tests.simulators.signed_images import House
from tests.simulators.sigstore import NOW, Sigstore
from tests.simulators.tuf_repository import TufRepository, targets_of, trusted_root_of

ALL = Need(rekor=True, ct=True)


def names_of(trust: TrustRoot) -> tuple[list[str], list[str]]:
    """Of roots and of Rekor's logs."""
    roots, _ = trust.authorities(NOW)
    return [root.subject.rfc4514_string() for root in roots], list(trust.rekor_keys(NOW))


@pytest.mark.parametrize("kind", [targets_of, trusted_root_of])
async def test_images_verified_by_a_repositorys_trust(
    house: House, kind: Callable[[Sigstore], dict[str, tuple[str, bytes]]], tmp_path: Path
) -> None:
    house.environment = TufRepository(tmp_path / "repository", kind(house.sigstore)).environment(tmp_path / "tuf")
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    verifier = house.verifier()
    await verifier.prepare()
    assert len(await verifier.verify(house.image(digest))) == 8


def test_targets_known_by_their_names_only(sigstore: Sigstore, tmp_path: Path) -> None:
    targets = {name: ("", content) for name, (_, content) in targets_of(sigstore).items()}
    trust = trust_files.load(TufRepository(tmp_path / "r", targets).environment(tmp_path / "t"), ALL)
    assert names_of(trust)[1] == [sigstore.log.id]


def test_a_file_of_the_environment_comes_before_the_repository(sigstore: Sigstore, tmp_path: Path) -> None:
    other = Sigstore()
    environment = TufRepository(tmp_path / "r", targets_of(sigstore)).environment(tmp_path / "t")
    name = "SIGSTORE_REKOR_PUBLIC_KEY"
    environment[name] = other.environment(tmp_path / "o")[name]
    trust = trust_files.load(environment, ALL)
    assert names_of(trust)[1] == [other.log.id]
    assert list(trust.ct_keys(NOW)) != list(other.log.id)


def test_keys_that_nothing_is_asked_of_are_not_needed(sigstore: Sigstore, tmp_path: Path) -> None:
    targets = {name: target for name, target in targets_of(sigstore).items() if target[0] == "Fulcio"}
    environment = TufRepository(tmp_path / "r", targets).environment(tmp_path / "t")
    assert names_of(trust_files.load(environment, Need(rekor=False, ct=False)))[0]
    with pytest.raises(ConfigurationError, match="none of the Rekor public keys have been found"):
        trust_files.load(environment, ALL)
    environment = {"SIGSTORE_ROOT_FILE": sigstore.environment(tmp_path / "e")["SIGSTORE_ROOT_FILE"]}
    assert names_of(trust_files.load(environment, Need(rekor=False, ct=False)))[0]


def serve(repository: TufRepository) -> Callable[[Asked], Answer | None]:
    def route(asked: Asked) -> Answer | None:
        path = repository.folder / urlsplit(asked.path).path.lstrip("/")
        return Answer(body=path.read_bytes()) if path.is_file() else None

    return route


def test_a_mirror_over_http_is_asked_for_what_is_new(sigstore: Sigstore, server: WebServer, tmp_path: Path) -> None:
    repository = TufRepository(tmp_path / "r", targets_of(sigstore))
    server.routes.append(serve(repository))
    environment = {**repository.environment(tmp_path / "t"), "TUF_MIRROR": server.url}
    trust_files.load(environment, ALL)
    assert sum("/targets/" in path for path in server.paths()) == 3
    repository.targets["rekor.pub"] = targets_of(other := Sigstore())["rekor.pub"]
    repository.publish(2)
    assert names_of(trust_files.load(environment, ALL))[1] == [other.log.id]
    assert sum("/targets/" in path for path in server.paths()) == 4


def test_what_is_kept_will_do_while_the_mirror_is_away(
    sigstore: Sigstore, server: WebServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = TufRepository(tmp_path / "r", targets_of(sigstore))
    server.routes.append(serve(repository))
    environment = {**repository.environment(tmp_path / "t"), "TUF_MIRROR": server.url}
    before = trust_files.load(environment, ALL)
    server.routes.insert(0, lambda _: Answer(503))
    with caplog.at_level(logging.WARNING, "spire"):
        assert names_of(trust_files.load(environment, ALL)) == names_of(before)
    assert "The TUF repository cannot be reached; going on with what is kept" in caplog.text


def test_what_is_kept_expires(sigstore: Sigstore, server: WebServer, tmp_path: Path) -> None:
    repository = TufRepository(tmp_path / "r", targets_of(sigstore))
    server.routes.append(serve(repository))
    environment = {**repository.environment(tmp_path / "t"), "TUF_MIRROR": server.url}
    trust_files.load(environment, ALL)
    (folder,) = (each for each in (tmp_path / "t/kept").iterdir() if each.is_dir())
    expired = json.loads((folder / "timestamp.json").read_bytes())
    expired["signed"]["expires"] = "2020-01-01T00:00:00Z"
    (folder / "timestamp.json").write_text(json.dumps(expired))
    server.routes.insert(0, lambda _: Answer(503))
    with pytest.raises(TemporarilyUnavailable, match="what is kept of it will not do"):
        trust_files.load(environment, ALL)


def test_nothing_kept_and_nobody_there(server: WebServer, sigstore: Sigstore, tmp_path: Path) -> None:
    environment = TufRepository(tmp_path / "r", targets_of(sigstore)).environment(tmp_path / "t")
    with pytest.raises(TemporarilyUnavailable, match="error updating to TUF remote mirror"):
        trust_files.load({**environment, "TUF_MIRROR": server.url + "/nothing"}, ALL)
    with pytest.raises(TemporarilyUnavailable, match="error updating to TUF remote mirror"):
        trust_files.load({**environment, "TUF_MIRROR": "http://127.0.0.1:9"}, ALL)


def test_a_mirror_that_cuts_off(server: WebServer, sigstore: Sigstore, tmp_path: Path) -> None:
    repository = TufRepository(tmp_path / "r", targets_of(sigstore))
    server.routes.append(lambda asked: Answer(headers={"Content-Length": "9"}, body=(b"x",)))
    environment = {**repository.environment(tmp_path / "t"), "TUF_MIRROR": server.url}
    with pytest.raises(TemporarilyUnavailable, match="error updating to TUF remote mirror"):
        trust_files.load(environment, ALL)


@pytest.mark.parametrize("garbage", [b"", b"{}", b"[", b"\xff", b"x" * 600_000])
def test_a_mirror_that_sends_garbage(garbage: bytes, server: WebServer, sigstore: Sigstore, tmp_path: Path) -> None:
    repository = TufRepository(tmp_path / "r", targets_of(sigstore))
    environment = {**repository.environment(tmp_path / "t"), "TUF_MIRROR": server.url}
    server.routes.append(lambda asked: Answer(body=garbage) if "root" not in asked.path else None)
    with pytest.raises((ConfigurationError, TemporarilyUnavailable), match=server.url):
        trust_files.load(environment, ALL)
    server.routes.append(lambda _: Answer(body=garbage))
    with pytest.raises((ConfigurationError, TemporarilyUnavailable), match=server.url):
        trust_files.load(environment, ALL)


def test_an_expired_repository_is_not_trusted(sigstore: Sigstore, tmp_path: Path) -> None:
    repository = TufRepository(tmp_path / "r", targets_of(sigstore), lifetime=-timedelta(days=1))
    with pytest.raises(ConfigurationError, match="cannot be trusted"):
        trust_files.load(repository.environment(tmp_path / "t"), ALL)


def test_a_repository_of_others_is_not_trusted(sigstore: Sigstore, tmp_path: Path) -> None:
    environment = TufRepository(tmp_path / "r", targets_of(sigstore)).environment(tmp_path / "t")
    forged = TufRepository(tmp_path / "forged", targets_of(Sigstore()))
    with pytest.raises(ConfigurationError, match="cannot be trusted"):
        trust_files.load({**environment, "TUF_MIRROR": forged.mirror}, ALL)


def test_a_target_that_was_changed_is_not_trusted(sigstore: Sigstore, tmp_path: Path) -> None:
    repository = TufRepository(tmp_path / "r", targets_of(sigstore))
    (target,) = (repository.folder / "targets").glob("*.rekor.pub")
    target.write_bytes(target.read_bytes().replace(b"A", b"B"))
    with pytest.raises(ConfigurationError, match="cannot be trusted"):
        trust_files.load(repository.environment(tmp_path / "t"), ALL)


def test_what_cosign_initialize_left_counts(sigstore: Sigstore, tmp_path: Path) -> None:
    repository = TufRepository(tmp_path / "r", targets_of(sigstore))
    folder = tmp_path / "home/.sigstore/root"
    kept = folder / repository.mirror.replace("/", "-").replace(":", "-").lower()
    kept.mkdir(parents=True)
    (folder / "remote.json").write_text(json.dumps({"mirror": repository.mirror}))
    (kept / "root.json").write_bytes(repository.first_root)
    trust = trust_files.load({"HOME": str(tmp_path / "home")}, ALL)
    assert names_of(trust)[1] == [sigstore.log.id]
    assert (kept / "timestamp.json").is_file()


def test_nothing_is_kept_where_that_is_said(sigstore: Sigstore, tmp_path: Path) -> None:
    environment = TufRepository(tmp_path / "r", targets_of(sigstore)).environment(tmp_path / "t")
    trust_files.load({**environment, "SIGSTORE_NO_CACHE": "true"}, ALL)
    assert not (tmp_path / "t/kept").exists()


def test_what_cannot_be_used_says_what_to_do(sigstore: Sigstore, tmp_path: Path) -> None:
    environment = TufRepository(tmp_path / "r", targets_of(sigstore)).environment(tmp_path / "t")
    with pytest.raises(ConfigurationError, match="set TUF_MIRROR to https://HOST/PATH"):
        trust_files.load({**environment, "TUF_MIRROR": "ftp://mirror"}, ALL)
    del environment["TUF_ROOT_JSON"]
    with pytest.raises(ConfigurationError, match=r"run cosign initialize --mirror=.*, or set TUF_ROOT_JSON"):
        trust_files.load(environment, ALL)
    (tmp_path / "file").write_text("")
    environment = TufRepository(tmp_path / "r2", targets_of(sigstore)).environment(tmp_path / "t")
    with pytest.raises(ConfigurationError, match="set TUF_ROOT to a folder that the agent may write to"):
        trust_files.load({**environment, "TUF_ROOT": str(tmp_path / "file")}, ALL)
    (tmp_path / "t/kept").mkdir()
    (tmp_path / "t/kept/remote.json").write_text("{")
    del environment["TUF_MIRROR"]
    with pytest.raises(ConfigurationError, match="run cosign initialize anew"):
        trust_files.load(environment, ALL)


@pytest.mark.parametrize("named", ["", PUBLIC_MIRROR, f"{PUBLIC_MIRROR}/", "sigstore-tuf-root"])
def test_the_public_repositorys_root_comes_along(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the public repository here: a proxy that is none stands before it."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(TemporarilyUnavailable, match=f"remote mirror {PUBLIC_MIRROR}:"):
        trust_files.load({"TUF_ROOT": str(tmp_path), "TUF_MIRROR": named}, ALL)
    root = json.loads((tmp_path / "tuf-repo-cdn.sigstore.dev/root.json").read_bytes())
    assert root["signed"]["version"] == 14
