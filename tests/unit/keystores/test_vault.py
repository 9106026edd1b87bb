"""A Vault (OpenBao) as operators have it: ways to log in, tokens that end, faults on the way, keys left over."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from authorities import vault as authority
from keystores import errors
from keystores.vault import client, manager
from keystores.vault.client import VaultClient
from keystores.vault.configuration import (
    AppRoleAuth,
    CertAuth,
    K8sAuth,
    TokenAuth,
    VaultConfiguration,
    vault_of,
)
from operations import logs
from operations.errors import ConfigurationError, PermanentlyUnusable
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, KeyManager, KeyType, Scheme
from tests.simulators import openbao
from tests.simulators.openbao import Bao
from tests.simulators.pki import csr, ec_key
from tests.simulators.registry import Answer, Asked, Route, WebServer

CONTEXT = PluginContext("example.org", None, logs.get("vault"))
DIGEST = hashlib.sha256(b"message").digest()
SHA256 = Scheme(Hash.SHA256)


@pytest.fixture(scope="module")
def bao() -> Bao:
    return openbao.shared()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE", 0.01)


@asynccontextmanager
async def opened(bao: Bao, server_id: str = "", **settings: Any) -> AsyncGenerator[KeyManager]:
    configuration = manager.Configuration(
        vault_addr=bao.url,
        ca_cert_path=str(bao.ca),
        key_identifier_value=server_id or str(uuid.uuid4()),
        **settings,
    )
    made = await manager.load(configuration, CONTEXT)
    try:
        yield made
    finally:
        await made.close()


async def test_login_by_approle(bao: Bao) -> None:
    role = await asyncio.to_thread(bao.approle)
    async with opened(bao, approle_auth=AppRoleAuth(**role)) as keys:
        assert await (await keys.generate("key", KeyType.EC_P256)).sign(DIGEST, SHA256)
    with pytest.raises(errors.InvalidArgument, match="invalid role or secret ID"):
        async with opened(bao, approle_auth=AppRoleAuth(approle_id=role["approle_id"], approle_secret_id="wrong")):
            pass


async def test_login_by_certificate(bao: Bao, tmp_path: Path) -> None:
    from tests.contract.upstream_backends import root_of_today

    own = root_of_today()
    (tmp_path / "c.pem").write_bytes(own.certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "c.key").write_bytes(
        own.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    await asyncio.to_thread(bao.write, "sys/auth/tls", {"type": "cert"})
    role = {"certificate": (tmp_path / "c.pem").read_text(), "token_policies": ["all"]}
    await asyncio.to_thread(bao.write, "auth/tls/certs/spire", role)
    cert = CertAuth(
        cert_auth_mount_point="tls",
        cert_auth_role_name="spire",
        client_cert_path=str(tmp_path / "c.pem"),
        client_key_path=str(tmp_path / "c.key"),
    )
    async with opened(bao, cert_auth=cert) as keys:
        assert await keys.list() == ()


async def test_login_by_service_account(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    def kubernetes(request: Asked) -> Answer | None:
        if request.path == "/v1/auth/cluster/login":
            asked.append(json.loads(request.body))
            return Answer(body=b'{"auth": {"client_token": "t", "lease_duration": 0, "renewable": false}}')
        return Answer(body=b'{"data": {"fine": true}}') if request.headers.get("X-Vault-Token") == "t" else None

    (tmp_path / "jwt").write_text("a.b.c\n")
    auth = K8sAuth(k8s_auth_mount_point="cluster", k8s_auth_role_name="spire", token_path=str(tmp_path / "jwt"))
    async with client_of(kubernetes, k8s_auth=auth, namespace="team") as (asking, web):
        assert await asking.read("any") == {"fine": True}
        assert web.asked[-1].headers["X-Vault-Namespace"] == "team"
    assert asked == [{"role": "spire", "jwt": "a.b.c"}]


async def test_a_token_is_renewed_and_a_login_repeated(bao: Bao) -> None:
    role = await asyncio.to_thread(lambda: bao.approle(token_ttl="2s", token_max_ttl="5s"))
    async with opened(bao, approle_auth=AppRoleAuth(**role)) as keys:
        key = await keys.generate("key", KeyType.EC_P256)
        for _ in range(8):  # longer than a token lives at most
            await asyncio.sleep(1)
            assert await key.sign(DIGEST, SHA256)


async def test_a_token_that_was_revoked(bao: Bao) -> None:
    role = await asyncio.to_thread(lambda: bao.approle(token_ttl="1h", token_max_ttl="1h"))
    async with opened(bao, approle_auth=AppRoleAuth(**role)) as keys:
        key = await keys.generate("key", KeyType.EC_P256)
        assert isinstance(keys, manager.VaultKeyManager)
        await keys.client.write("auth/token/revoke-self", {})
        assert await key.sign(DIGEST, SHA256)
    token = await asyncio.to_thread(bao.token)
    async with opened(bao, token_auth=TokenAuth(token=token)) as keys:
        await asyncio.to_thread(bao.write, "auth/token/revoke", {"token": token})
        with pytest.raises(errors.Refused, match="permission denied: check the token") as caught:
            await keys.generate("key", KeyType.EC_P256)
        assert token not in str(caught.value)


async def test_a_sealed_vault_recovers(tmp_path: Path) -> None:
    own = Bao(tmp_path)
    try:
        own.start()
        async with opened(own, token_auth=TokenAuth(token=openbao.ROOT_TOKEN)) as keys:
            key = await keys.generate("key", KeyType.RSA_2048)
            unseal = next(
                line.split(": ")[1] for line in (tmp_path / "log").read_text().splitlines() if "Unseal Key" in line
            )
            await asyncio.to_thread(own.write, "sys/seal", {})
            with pytest.raises(errors.TemporarilyUnavailable, match="sealed"):
                await key.sign(DIGEST, SHA256)
            await asyncio.to_thread(own.write, "sys/unseal", {"key": unseal})
            async with asyncio.timeout(60):
                while True:
                    try:
                        assert await key.sign(DIGEST, SHA256)
                        break
                    except errors.TemporarilyUnavailable:
                        await asyncio.sleep(0.1)
            await asyncio.to_thread(own.end)
            with pytest.raises(errors.TemporarilyUnavailable, match="cannot reach"):
                await key.sign(DIGEST, SHA256)
    finally:
        own.end()


async def test_keys_of_others_and_keys_left_over(bao: Bao, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "DELETE_AGAIN", (0.05, 0.1))
    server_id, root = str(uuid.uuid4()), TokenAuth(token=openbao.ROOT_TOKEN)
    for name in (f"{server_id}-{uuid.uuid4()}-JWT-Signer-A", f"{server_id}-{uuid.uuid4()}-JWT-Signer-A", "foreign"):
        await asyncio.to_thread(bao.write, f"transit/keys/{name}", {"type": "ecdsa-p256"})
    async with opened(bao, server_id, token_auth=root) as keys:
        [kept] = await keys.list()
        assert kept.id == "JWT-Signer-A"
        assert isinstance(kept, manager.VaultKey)
        await _until(lambda: bao.transit_keys(server_id) == [kept.name])
        # Somebody rotates the key there: it signs on by the version that the server knows.
        await asyncio.to_thread(bao.write, f"transit/keys/{kept.name}/rotate", {})
        assert await kept.sign(DIGEST, SHA256)
        await keys.generate("JWT-Signer-A", KeyType.EC_P384)
        await _until(lambda: kept.name not in bao.transit_keys(server_id))
        with pytest.raises(errors.PermanentlyUnusable, match="cannot sign"):
            await kept.sign(DIGEST, SHA256)
    assert len(await asyncio.to_thread(bao.transit_keys, server_id)) == 1


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


async def test_the_identifier_file(bao: Bao, tmp_path: Path) -> None:
    path = tmp_path / "id"
    settings = manager.Configuration(
        vault_addr=bao.url,
        ca_cert_path=str(bao.ca),
        token_auth=TokenAuth(token=openbao.ROOT_TOKEN),
        key_identifier_file=str(path),
    )
    for number in range(2):
        keys = await manager.load(settings, CONTEXT)
        assert len(await keys.list()) == number
        await keys.generate("key", KeyType.EC_P256)
        await keys.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(uuid.UUID(path.read_text())) == path.read_text()
    path.write_text("something else")
    with pytest.raises(ConfigurationError, match="has no UUID: restore it"):
        await manager.load(settings, CONTEXT)


@asynccontextmanager
async def client_of(*routes: Any, **settings: Any) -> AsyncGenerator[tuple[VaultClient, WebServer]]:
    with WebServer(*routes) as web:
        configuration = VaultConfiguration(vault_addr=f"http://127.0.0.1:{web.port}", **settings)
        asking = VaultClient(vault_of(configuration, {}), {}, logs.get("vault"))
        try:
            yield asking, web
        finally:
            await asking.close()


def _always(*answers: Answer) -> Route:
    """One after the other, the last again and again."""
    rest = list(answers)
    return lambda _asked: rest.pop(0) if len(rest) > 1 else rest[0]


def _lookup(asked: Asked) -> Answer | None:
    return Answer(body=b'{"data": {"ttl": 0, "renewable": false}}') if asked.path.endswith("lookup-self") else None


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(503, b'{"errors": ["Vault is sealed"]}'), errors.TemporarilyUnavailable, "Vault is sealed (sealed: un"),
        (Answer(429, b'{"errors": ["too\\nmany"]}'), errors.TemporarilyUnavailable, "too many"),
        (Answer(502, b"<html>bad gateway</html>"), errors.TemporarilyUnavailable, "HTTP status 502"),
        (Answer(200, b"<html>log in</html>"), errors.TemporarilyUnavailable, "something else than JSON"),
        (Answer(404, b"<html>"), errors.Refused, "HTTP status 404"),
        (Answer(403, b'{"errors": ["permission denied"]}'), errors.Refused, "check the token, and its policy"),
        (Answer(200, b"x" * (9 << 20)), errors.Refused, "sent more than"),
        (Answer(307, headers={"Location": "https://127.0.0.1:1/"}), errors.Refused, "set vault_addr to where it is"),
        (Answer(200, b"[" * 100_000), errors.TemporarilyUnavailable, "something else than JSON"),
    ],
    ids=["sealed", "limited", "gateway", "html", "no-vault", "denied", "large", "elsewhere", "deep"],
)
async def test_bad_answers_are_one_line(answer: Answer, error: type[Exception], text: str) -> None:
    async with client_of(_lookup, _always(answer), token_auth=TokenAuth(token="secret-token")) as (asking, _):
        with pytest.raises(error) as caught:
            await asking.read("any")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret-token" not in str(caught.value)


async def test_a_passing_fault_is_not_noticed_and_a_standby_followed() -> None:
    answers = [Answer(500), Answer(307, headers={"Location": "/v1/active"}), Answer(body=b'{"data": {"a": 1}}')]
    token = TokenAuth(token="t")
    async with client_of(_lookup, _always(*answers), token_auth=token) as (asking, web):
        assert await asking.write("any", {"b": 2}) == {"a": 1}
        assert [asked.path for asked in web.asked[1:]] == ["/v1/any", "/v1/any", "/v1/active"]
        assert web.asked[-1].headers["X-Vault-Token"] == "t"


async def test_one_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.5)
    async with client_of(token_auth=TokenAuth(token="t")) as (asking, web):

        def waiting(_asked: Asked) -> None:
            web.closing.wait(20)

        web.routes.append(waiting)
        with pytest.raises(errors.TemporarilyUnavailable, match=r"no answer within 0.5 s"):
            await asking.read("any")
        web.closing.set()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"certificate": "garbage"}, "its answer's certificate is no certificate"),
        ({"issuing_ca": None}, "its answer has no issuing_ca"),
        ({"ca_chain": "garbage"}, "Vault's ca_chain is no list"),
    ],
    ids=["certificate", "issuer", "chain"],
)
async def test_answers_that_are_no_certificates(bao: Bao, change: dict[str, Any], fault: str) -> None:
    request = csr(ec_key(), uris=["spiffe://example.org"])
    pem = await asyncio.to_thread(lambda: bao.ask("GET", "pki/cert/ca")["data"]["certificate"])
    data = {"certificate": pem, "issuing_ca": pem, **change}
    async with client_of(
        _lookup, _always(Answer(body=json.dumps({"data": data}).encode())), token_auth=TokenAuth(token="t")
    ) as (asking, _):
        with pytest.raises(PermanentlyUnusable, match=fault):
            await authority.VaultAuthority(asking, "pki").mint_x509_ca(request, 60)


BASE: dict[str, Any] = {"vault_addr": "https://v.example.org", "token_auth": TokenAuth(token="t")}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"token_auth": None}, "one way to log in must be configured"),
        ({"cert_auth": CertAuth()}, "only one authentication method can be configured: keep one of token_auth, cert_"),
        ({"token_auth": None, "k8s_auth": K8sAuth(token_path="/t")}, "k8s_auth_role_name is required"),
        ({"token_auth": TokenAuth()}, "token is empty"),
        ({"vault_addr": ""}, "vault_addr is required"),
        ({"vault_addr": "ftp://v"}, "is no URL: use https://HOST"),
        ({"token_auth": None, "cert_auth": CertAuth(client_cert_path="/c")}, "both client cert and client key"),
        ({"ca_cert_path": "/nowhere.pem"}, "ca_cert_path /nowhere.pem: no such file"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_wrong_settings(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=fault):
        vault_of(VaultConfiguration(**{**BASE, **settings}), {}).context()


def test_the_environment_goes_first() -> None:
    environment = {
        "VAULT_ADDR": "https://env.example.org:8200/base/", "VAULT_TOKEN": "from env",
        "VAULT_NAMESPACE": "n", "VAULT_CACERT": "/ca.pem",
    }  # fmt: skip
    found = vault_of(VaultConfiguration(**BASE), environment)
    assert (str(found.url), found.namespace, found.ca_cert_path) == (environment["VAULT_ADDR"], "n", "/ca.pem")
    assert found.login.token == "from env"
    assert "from env" not in repr(found)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAULT_ADDR", "VAULT_TOKEN", "VAULT_CACERT", "VAULT_NAMESPACE", "VAULT_TRANSIT_ENGINE_PATH"):
        monkeypatch.delenv(name, raising=False)
