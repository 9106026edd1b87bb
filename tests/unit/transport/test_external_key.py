"""TLS whose client key is not in this process: in a SoftHSM token or a TPM, against our server and OpenSSL's."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_der_public_key,
)

from keystores import software
from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11.configuration import Configuration
from keystores.pkcs11.manager import load_agent
from keystores.tpm import configuration as tpm_configuration
from keystores.tpm import manager as tpm_manager
from operations import logs
from operations.errors import InvalidArgument, Unsupported
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, Key, KeyManager, KeyType, Scheme
from plugins.tls_identity import client_identity
from tests.simulators import softhsm, swtpm
from tests.simulators.echo import CHAT, UNARY, Echo, EchoService, echo, payload_of, text_of
from tests.simulators.svids import self_signed
from transport.client import Channel
from transport.limits import Limits
from transport.server import Server
from transport.status import Code, RpcError
from transport.tls import ExternalIdentity, InProcessIdentity, client_context, server_context

SERVER = self_signed("spiffe://example.org/spire/server")
AUTHORITY = ec.generate_private_key(ec.SECP256R1())
KEY_TYPES = [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048]


def certificate(public_key: bytes, uri: str) -> bytes:
    """Issued by AUTHORITY, DER."""
    now = datetime.datetime.now(datetime.UTC)
    key = load_der_public_key(public_key)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")]))
        .public_key(key)  # type: ignore[arg-type]  # the union of every kind of key; these are EC or RSA
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        .sign(AUTHORITY, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def chain_for(key: Key) -> tuple[bytes, ...]:
    """A leaf for the key and one more certificate, so that sending the chain can be told from sending the leaf."""
    return (certificate(key.public_key, "spiffe://example.org/agent"), SERVER.chain[0])


@pytest.fixture
def hsm(tmp_path: Path) -> Iterator[softhsm.SoftHsm]:
    with softhsm.SoftHsm.create(tmp_path / "hsm").installed() as installed:
        yield installed


@pytest.fixture
def in_a_tpm(tmp_path: Path) -> Iterator[tpm_configuration.Configuration]:
    with swtpm.started(tmp_path / "tpm") as tpm:
        yield tpm_configuration.Configuration(tcti=tpm.tcti, keys_path=str(tmp_path / "keys"))


@pytest.fixture(params=["pkcs11", "tpm"])
async def manager(
    request: pytest.FixtureRequest, hsm: softhsm.SoftHsm, in_a_tpm: tpm_configuration.Configuration
) -> AsyncIterator[KeyManager]:
    configuration = Configuration(
        module_path=softhsm.MODULE,
        token_label=hsm.label,
        pin_file=str(hsm.pin_file),
        keys_path=str(hsm.folder / "keys.json"),
    )
    context = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("pkcs11"))
    if request.param == "tpm":
        opened = await tpm_manager.load_agent(in_a_tpm, context)
    else:
        opened = await load_agent(configuration, context)
    yield opened
    await opened.close()


@pytest.fixture
async def port(service: EchoService) -> AsyncIterator[int]:
    server = Server(service.router(), limits=Limits(handshake=10))
    context = server_context(SERVER)
    yield await server.listen_tcp("127.0.0.1", 0, lambda: context)
    await server.drain(5)


def channel(port: int, identity: InProcessIdentity | ExternalIdentity, chains: list[tuple[bytes, ...]]) -> Channel:
    context = client_context(identity)
    return Channel.tcp("127.0.0.1", port, lambda: context, chains.append)


class ScriptedKey:
    """An external identity whose signatures the test decides about."""

    def __init__(self) -> None:
        made = self_signed("spiffe://example.org/agent")
        self._key = software.load("key", made.private_key)
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.error: Exception | None = None
        self.flaw = b""
        self.identity = ExternalIdentity(made.chain, self._key.public_key, self._sign)

    async def _sign(self, digest: bytes, hash_name: str, pss: bool) -> bytes:
        self.asked.set()
        await self.answer.wait()
        if self.error is not None:
            raise self.error
        return await self._key.sign(digest, Scheme(Hash(hash_name), pss)) + self.flaw


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("key_type", KEY_TYPES, ids=lambda key_type: key_type.value)
async def test_a_key_in_a_token_authenticates_its_client(
    manager: KeyManager, port: int, service: EchoService, key_type: KeyType
) -> None:
    key = await manager.generate("agent-svid-A", key_type)
    seen: list[tuple[bytes, ...]] = []
    identity = client_identity(chain_for(key), key)
    assert isinstance(identity, ExternalIdentity)
    async with channel(port, identity, seen) as opened:
        assert text_of(await opened.unary(UNARY, echo("hello"), Echo)) == "hello"
    assert seen == [SERVER.chain]
    assert service.peers[0].certificates == identity.chain


async def test_a_key_of_this_process_stays_with_openssl() -> None:
    made = self_signed("spiffe://example.org/agent")
    assert client_identity(made.chain, software.load("key", made.private_key)) == made


async def test_large_messages_pass_both_ways_at_once(port: int) -> None:
    key = ScriptedKey()
    key.answer.set()
    payload = os.urandom(3_000_000)
    async with channel(port, key.identity, []) as opened:
        answers = await asyncio.gather(*(opened.unary(UNARY, echo(payload=payload), Echo) for _ in range(4)))
        assert all(payload_of(answer) == payload for answer in answers)
        async with opened.bidi(CHAT, Echo) as chat:
            await chat.send(echo("hello"))
            answer = await chat.recv()
            assert answer is not None
            assert text_of(answer) == "hello"


async def test_a_slow_signature_holds_up_nothing_else(port: int) -> None:
    slow, quick = ScriptedKey(), ScriptedKey()
    quick.answer.set()
    async with channel(port, slow.identity, []) as waiting, channel(port, quick.identity, []) as passing:
        call = asyncio.create_task(waiting.unary(UNARY, echo("late"), Echo))
        await slow.asked.wait()
        began = time.process_time()
        assert text_of(await passing.unary(UNARY, echo("early"), Echo)) == "early"
        await asyncio.sleep(0.3)
        assert time.process_time() - began < 0.25, "waiting for a signature must not spin"
        assert not call.done()
        slow.answer.set()
        assert text_of(await call) == "late"


async def test_a_key_that_fails_fails_the_handshake_and_says_why(port: int, service: EchoService) -> None:
    key = ScriptedKey()
    key.answer.set()
    key.error = TemporarilyUnavailable("the token is away")
    async with channel(port, key.identity, []) as opened:
        with pytest.raises(RpcError, match="the key did not sign: the token is away") as raised:
            await opened.unary(UNARY, echo(), Echo)
    assert raised.value.code is Code.UNAVAILABLE
    assert service.peers == []


async def test_an_unexpected_error_fails_the_handshake_too(port: int, service: EchoService) -> None:
    key = ScriptedKey()
    key.answer.set()
    key.error = ZeroDivisionError("secret detail")
    async with channel(port, key.identity, []) as opened:
        with pytest.raises(RpcError, match="the key did not sign: ZeroDivisionError"):
            await opened.unary(UNARY, echo(), Echo)
    assert service.peers == []


async def test_a_wrong_signature_is_refused_by_the_server(port: int, service: EchoService) -> None:
    key = ScriptedKey()
    key.answer.set()
    key.flaw = b"\0"
    async with channel(port, key.identity, []) as opened:
        # In TLS 1.3 the client is done before the server has judged: the call fails, the handshake does not.
        with pytest.raises(RpcError):
            await opened.unary(UNARY, echo(), Echo, timeout=1)
    assert service.peers == []


async def test_giving_up_in_the_middle_of_a_signature_frees_everything(port: int) -> None:
    before = open_descriptors()
    for _ in range(5):
        key = ScriptedKey()
        async with channel(port, key.identity, []) as opened:
            with pytest.raises(RpcError) as raised:
                await opened.unary(UNARY, echo(), Echo, timeout=0.2)
            assert raised.value.code is Code.DEADLINE_EXCEEDED
    async with asyncio.timeout(30):
        while True:
            gc.collect()
            if not any(thread.name == "tls" for thread in threading.enumerate()) and open_descriptors() <= before + 1:
                break
            await asyncio.sleep(0.02)


async def test_the_verifier_sees_the_server_before_a_byte_is_sent(port: int, service: EchoService) -> None:
    key = ScriptedKey()
    key.answer.set()

    def refuse(chain: tuple[bytes, ...]) -> None:
        raise InvalidArgument("not the server that was meant")

    context = client_context(key.identity)
    async with Channel.tcp("127.0.0.1", port, lambda: context, refuse) as opened:
        with pytest.raises(RpcError, match="not the server that was meant"):
            await opened.unary(UNARY, echo(), Echo)
    assert service.peers == []


async def test_a_certificate_for_another_key_is_refused_at_once() -> None:
    key, other = ScriptedKey(), self_signed("spiffe://example.org/other")
    with pytest.raises(InvalidArgument, match="for another key"):
        client_context(ExternalIdentity(other.chain, key.identity.public_key, key.identity.sign))
    with pytest.raises(InvalidArgument, match="there is no certificate"):
        client_context(ExternalIdentity((), key.identity.public_key, key.identity.sign))


async def test_a_post_quantum_key_exchange_cannot_be_demanded() -> None:
    with pytest.raises(Unsupported, match="post-quantum"):
        client_context(ScriptedKey().identity, require_pq_kem=True)


@contextlib.asynccontextmanager
async def openssl_server(folder: Path, *arguments: str) -> AsyncGenerator[tuple[int, asyncio.StreamReader]]:
    """`openssl s_server`, which demands a client certificate; its port, and what it prints."""
    (folder / "server.pem").write_bytes(
        x509.load_der_x509_certificate(SERVER.chain[0]).public_bytes(Encoding.PEM)
        + load_der_private_key(SERVER.private_key, None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    process = await asyncio.create_subprocess_exec(
        *("openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", "server.pem", "-Verify", "3", *arguments),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        while not (match := re.match(rb"ACCEPT .*:(\d+)", await process.stdout.readline())):
            pass
        yield int(match[1]), process.stdout
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("key_type", KEY_TYPES, ids=lambda key_type: key_type.value)
async def test_openssl_accepts_the_signature(
    manager: KeyManager, tmp_path: Path, key_type: KeyType, version: str
) -> None:
    key = await manager.generate("agent-svid-A", key_type)
    async with (
        openssl_server(tmp_path, version, "-alpn", "h2") as (port, printed),
        channel(port, client_identity(chain_for(key), key), []) as opened,
    ):
        call = asyncio.create_task(opened.unary(UNARY, echo(), Echo, timeout=30))
        # s_server knows no HTTP/2: that it prints the client's preface shows a handshake that came to its end.
        output = b""
        async with asyncio.timeout(30):
            while b"PRI * HTTP/2.0" not in output:
                output += await printed.read(4096)
        call.cancel()
        await asyncio.wait({call})
    assert b"Client certificate" in output
    assert b"ALPN protocols selected: h2" in output


async def test_a_server_without_http2_is_refused(tmp_path: Path) -> None:
    key = ScriptedKey()
    key.answer.set()
    async with openssl_server(tmp_path) as (port, _), channel(port, key.identity, []) as opened:
        with pytest.raises(RpcError, match=r"ALPN|application protocol"):
            await opened.unary(UNARY, echo(), Echo, timeout=30)


async def test_tls_1_1_is_refused(tmp_path: Path) -> None:
    key = ScriptedKey()
    key.answer.set()
    settings = ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-alpn", "h2")
    async with openssl_server(tmp_path, *settings) as (port, _), channel(port, key.identity, []) as opened:
        with pytest.raises(RpcError):
            await opened.unary(UNARY, echo(), Echo, timeout=30)
