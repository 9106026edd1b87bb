"""Asking the kubelet: every way to be let in, whose certificates are believed, and what is no list of pods."""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attestors.k8s.configuration import Configuration
from attestors.k8s.kubelet import Kubelet
from attestors.k8s.pods import Pods as Found
from operations import logs
from operations.errors import InvalidArgument, TemporarilyUnavailable
from tests.simulators.kubelet import Answer, ClusterService, Pods, container, kubelet, pod
from tests.simulators.web_pki import Files, WebAuthority

UID = "6d1c63a5-f6f7-4d6b-9a1b-6f3e0b2c9d10"
ID = "4f0c" * 16


@pytest.fixture
def authority(tmp_path: Path) -> WebAuthority:
    return WebAuthority(tmp_path)


@pytest.fixture
def certificate(authority: WebAuthority) -> Files:
    return authority.issue("kubelet", "127.0.0.1", "node-7.example")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    return path


def rewrite(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


def pods() -> Pods:
    return Pods([pod(UID, container("app", ID))])


async def ask(configuration: Configuration, node: str = "", patience: float = 30.0) -> Found:
    with ThreadPoolExecutor(1) as workers:
        return await Kubelet(configuration, node, workers, logs.get("test"), timeout=patience).pods()


def configured(service: ClusterService, **settings: str | bool) -> Configuration:
    return Configuration(kubelet_secure_port=service.port, **settings)  # type: ignore[arg-type]


async def test_a_token(authority: WebAuthority, certificate: Files, token: Path) -> None:
    with kubelet(pods(), files=certificate, token="s3cret") as service:
        configuration = configured(service, kubelet_ca_path=str(authority.file), token_path=str(token))
        assert list((await ask(configuration)).readable) == [UID]
        assert service.asked[0].path == "/pods"
        rewrite(token, "another")
        with pytest.raises(
            TemporarilyUnavailable, match=r'unexpected status code on pods response: 401 "Unauthorized"'
        ):
            await ask(configuration)


async def test_a_client_certificate(authority: WebAuthority, certificate: Files, token: Path) -> None:
    client = authority.issue("agent", client=True)
    with kubelet(pods(), files=certificate, client_authority=authority.file) as service:
        known = configured(
            service,
            kubelet_ca_path=str(authority.file),
            certificate_path=str(client.certificate),
            private_key_path=str(client.key),
        )
        assert UID in (await ask(known)).readable
        assert service.asked[0].certificate
        assert "Authorization" not in service.asked[0].headers
        with pytest.raises(TemporarilyUnavailable, match="unable to perform request: https://127"):
            await ask(configured(service, kubelet_ca_path=str(authority.file), token_path=str(token)))


async def test_anonymous(authority: WebAuthority, certificate: Files, token: Path) -> None:
    with kubelet(pods(), files=certificate) as service:
        configuration = configured(
            service, kubelet_ca_path=str(authority.file), token_path=str(token), use_anonymous_authentication=True
        )
        assert UID in (await ask(configuration)).readable
        assert "Authorization" not in service.asked[0].headers


async def test_the_read_only_port() -> None:
    with kubelet(pods()) as service:
        assert UID in (await ask(Configuration(kubelet_read_only_port=service.port), node="elsewhere")).readable
        assert "Authorization" not in service.asked[0].headers


async def test_a_kubelet_that_nobody_vouches_for(tmp_path: Path, certificate: Files, token: Path) -> None:
    (tmp_path / "other").mkdir()
    other = WebAuthority(tmp_path / "other")
    with kubelet(pods(), files=certificate, token="s3cret") as service:
        with pytest.raises(TemporarilyUnavailable, match="tls: failed to verify certificate"):
            await ask(configured(service, kubelet_ca_path=str(other.file), token_path=str(token)))
        assert not service.asked, "the token went to a stranger"
        skipping = configured(service, skip_kubelet_verification=True, token_path=str(token))
        assert UID in (await ask(skipping)).readable


async def test_its_own_certificate_may_be_what_is_trusted(certificate: Files, token: Path) -> None:
    with kubelet(pods(), files=certificate) as service:
        configuration = configured(service, kubelet_ca_path=str(certificate.certificate), token_path=str(token))
        assert UID in (await ask(configuration)).readable


async def test_the_name_matters_when_the_node_has_one(authority: WebAuthority, token: Path) -> None:
    named = authority.issue("named", "node-7.example", "127.0.0.1")
    stranger = authority.issue("stranger", "node-8.example")
    settings = {"kubelet_ca_path": str(authority.file), "token_path": str(token)}
    with kubelet(pods(), files=stranger) as service:
        assert UID in (await ask(configured(service, **settings))).readable
        with pytest.raises(TemporarilyUnavailable, match="IP address mismatch"):
            await ask(configured(service, **settings), node="127.0.0.1")
        with pytest.raises(TemporarilyUnavailable, match="Hostname mismatch"):
            await ask(configured(service, **settings), node="localhost")
    with kubelet(pods(), files=named) as service:
        assert UID in (await ask(configured(service, **settings), node="127.0.0.1")).readable


@pytest.mark.parametrize("client", [False, True], ids=["out of date", "for clients"])
async def test_certificates_that_are_no_good(authority: WebAuthority, token: Path, client: bool) -> None:
    bad = authority.issue("bad", "127.0.0.1", client=client, expired=not client)
    with kubelet(pods(), files=bad) as service:
        configuration = configured(service, kubelet_ca_path=str(authority.file), token_path=str(token))
        with pytest.raises(TemporarilyUnavailable, match="failed to verify certificate"):
            await ask(configuration)


async def test_files_are_read_again(authority: WebAuthority, certificate: Files, token: Path) -> None:
    with kubelet(pods(), files=certificate) as service, ThreadPoolExecutor(1) as workers:
        configuration = configured(
            service, kubelet_ca_path=str(authority.file), token_path=str(token), reload_interval="1ms"
        )
        asking = Kubelet(configuration, "", workers, logs.get("test"))
        await asking.prepare()
        rewrite(token, " fresh\n\n")
        await asyncio.sleep(0.01)
        await asking.pods()
        assert service.asked[-1].headers["Authorization"] == "Bearer fresh"
        rewrite(token, None)
        await asyncio.sleep(0.01)
        with pytest.raises(InvalidArgument, match=f"unable to load token: open {token}: no such file or directory"):
            await asking.pods()
        rewrite(token, "back")
        await asking.pods()
        assert service.asked[-1].headers["Authorization"] == "Bearer back"


async def test_files_are_not_read_each_time(authority: WebAuthority, certificate: Files, token: Path) -> None:
    with kubelet(pods(), files=certificate) as service, ThreadPoolExecutor(1) as workers:
        configuration = configured(service, kubelet_ca_path=str(authority.file), token_path=str(token))
        asking = Kubelet(configuration, "", workers, logs.get("test"))
        await asking.prepare()
        rewrite(token, None)
        await asking.pods()
        assert service.asked[-1].headers["Authorization"] == "Bearer s3cret"


def test_files_that_cannot_be_used(tmp_path: Path, authority: WebAuthority, token: Path) -> None:
    from attestors.k8s.kubelet import credentials

    garbage = tmp_path / "garbage"
    garbage.write_text("garbage")
    large = tmp_path / "large"
    large.write_bytes(bytes((1 << 20) + 1))
    lines = tmp_path / "lines"
    lines.write_text("a\r\nX-Evil: b")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    client = authority.issue("agent", client=True)
    other = authority.issue("other", client=True)
    ca, missing = str(authority.file), str(tmp_path / "missing")
    cases = [
        (
            Configuration(kubelet_ca_path=missing),
            f"unable to load kubelet CA: open {missing}: no such file or directory",
        ),
        (Configuration(kubelet_ca_path=str(garbage)), "unable to parse kubelet CA: no PEM blocks"),
        (Configuration(kubelet_ca_path=str(client.key)), "unable to parse kubelet CA: "),
        (Configuration(kubelet_ca_path=ca, token_path=missing), f"unable to load token: open {missing}"),
        (Configuration(kubelet_ca_path=ca, token_path=str(large)), "is larger than 1048576 bytes"),
        (Configuration(kubelet_ca_path=ca, token_path=str(lines)), "holds more than a token"),
        (Configuration(kubelet_ca_path=str(pipe)), "unable to parse kubelet CA: no PEM blocks"),
        (Configuration(kubelet_ca_path=str(tmp_path)), "is a directory"),
        (
            Configuration(kubelet_ca_path=ca, certificate_path=missing, private_key_path=str(client.key)),
            "unable to load certificate: open",
        ),
        (
            Configuration(kubelet_ca_path=ca, certificate_path=str(client.certificate), private_key_path=missing),
            "unable to load private key: open",
        ),
        (
            Configuration(
                kubelet_ca_path=ca, certificate_path=str(client.certificate), private_key_path=str(other.key)
            ),
            "unable to load keypair: tls: key values mismatch",
        ),
    ]
    for configuration, reason in cases:
        with pytest.raises(InvalidArgument) as refusal:
            credentials(configuration, "")
        assert reason in str(refusal.value)
        assert "\n" not in str(refusal.value)


ANSWERS = {
    "no JSON": (Answer(body=b"<html>"), "unable to parse kubelet response: JSON is malformed"),
    "no object": (Answer(body=b"[]"), "invalid kubelet response: expected an object"),
    "no items": (Answer(body=b"{}"), "expected an object with an items array"),
    "items that are no array": (Answer(body=b'{"items": {}}'), "expected an object with an items array"),
    "cut short": (Answer(body=b'{"items": [{'), "unable to parse kubelet response"),
    "a deep one": (Answer(body=b'{"items": ' + b"[" * 100_000), "unable to parse kubelet response"),
    "in another character set": (Answer(body=b'{"items": [], "\xff": "\xff"}}'), "unable to parse kubelet response"),
    "forbidden": (
        Answer(403, b"Forbidden (user=x)"),
        'unexpected status code on pods response: 403 "Forbidden (user=x)"',
    ),
    "broken": (Answer(500, b"x" * 5000), "unexpected status code on pods response: 500"),
    "elsewhere": (Answer(302, b""), "unexpected status code on pods response: 302"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_is_no_list_of_pods(name: str) -> None:
    answer, reason = ANSWERS[name]
    with kubelet(Pods(garbage=answer)) as service:
        with pytest.raises(TemporarilyUnavailable) as refusal:
            await ask(Configuration(kubelet_read_only_port=service.port))
        assert reason in str(refusal.value)
        assert len(str(refusal.value)) < 2000
        assert "\n" not in str(refusal.value)


async def test_no_pods() -> None:
    for body in (b'{"items": null}', b'{"items": []}'):
        with kubelet(Pods(garbage=Answer(body=body))) as service:
            assert not (await ask(Configuration(kubelet_read_only_port=service.port))).readable


async def test_one_that_hangs() -> None:
    with kubelet(pods()) as service:
        service.hanging.set()
        with pytest.raises(TemporarilyUnavailable, match=r"unable to perform request: no answer within 0.3 s"):
            await ask(Configuration(kubelet_read_only_port=service.port), patience=0.3)


async def test_one_that_is_not_there() -> None:
    with kubelet(pods()) as service:
        port = service.port
    with pytest.raises(TemporarilyUnavailable, match=f"unable to perform request: http://127.0.0.1:{port}/pods: conn"):
        await ask(Configuration(kubelet_read_only_port=port))


async def test_a_list_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestors.k8s.kubelet._LARGEST_LIST", 1000)
    with kubelet(Pods(garbage=Answer(body=b" " * 1001))) as service:
        configuration = Configuration(kubelet_read_only_port=service.port)
        with pytest.raises(TemporarilyUnavailable, match="the answer is larger than 1000 bytes"):
            await ask(configuration)


async def test_five_hundred_pods_of_ten_megabytes() -> None:
    made = [pod(str(number), container("app", f"{number:064x}")) for number in range(500)]
    for each in made:
        each["metadata"]["annotations"]["notes"] = "x" * 20_000
    assert len(json.dumps(made)) > 10_000_000
    with kubelet(Pods(made)) as service:
        found = await ask(Configuration(kubelet_read_only_port=service.port))
    assert len(found.readable) == 500
    assert found.readable["499"].container(f"{499:064x}") is not None
