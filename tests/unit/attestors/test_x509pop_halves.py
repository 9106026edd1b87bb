"""The two halves of x509pop together: configurations, verdicts, refusals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestors.x509pop import agent, messages, proof, server, verifier
from identity.selectors import Selector
from operations import config, hcl, logs
from operations.errors import (
    ConfigurationError,
    InvalidArgument,
    NotFound,
    PermanentlyUnusable,
    Refused,
    SpireError,
    TemporarilyUnavailable,
)
from operations.logs import Logger
from plugins.catalog import PluginContext
from plugins.nodeattestor import CLIENT_ADDRESS, Attestation, AttestedNode
from tests.simulators.nodes import DAY, Authority, Shape, ec_key, private_pem, root, rsa_key

ROOT = root()
SUB = ROOT.sub()


@dataclass
class Context:
    """What a server gives: its own authorities, or none when its datastore is away."""

    own: Sequence[bytes] | None = None
    trust_domain: str = "example.org"
    log: Logger = field(default_factory=logs.get)

    async def authorities(self) -> Sequence[bytes]:
        if self.own is None:
            raise NotFound("no bundle")
        return self.own


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_bytes(ROOT.pem)
    return path


async def server_half(bundle: Path, own: Sequence[bytes] | None = None, **settings: Any) -> server.X509PopAttestor:
    if settings.get("mode") != "spiffe":
        settings.setdefault("ca_bundle_path", str(bundle))
    return await server.load(server.Configuration(**settings), Context(own))


async def agent_half(folder: Path, node: Authority, *above: Authority) -> agent.X509PopAttestor:
    certificate, key = node.write(folder, "node")
    settings = {"private_key_path": str(key), "certificate_path": str(certificate)}
    if above:
        path = folder / "above.pem"
        path.write_bytes(b"".join(each.pem for each in above))
        settings["intermediates_path"] = str(path)
    context = PluginContext("example.org", None, logs.get())
    made = await agent.load(agent.Configuration(**settings), context)
    assert isinstance(made, agent.X509PopAttestor)
    return made


async def attest(verifying: server.X509PopAttestor, proving: agent.X509PopAttestor) -> AttestedNode:
    attestation = await proving.begin()
    return await verifying.attest(attestation.payload, attestation.respond)


@pytest.mark.parametrize("key", [ec_key(), rsa_key()], ids=["ec", "rsa"])
async def test_a_node_is_attested(tmp_path: Path, bundle: Path, key: proof.PrivateKey) -> None:
    node = SUB.node(Shape(uris=("x509pop://example.org/cluster/east",)), key)
    verdict = await attest(await server_half(bundle), await agent_half(tmp_path, node, SUB))
    fingerprint = verifier.fingerprint(node.certificate)
    assert verdict.spiffe_id == f"spiffe://example.org/spire/agent/x509pop/{fingerprint}"
    assert verdict.can_reattest
    assert Selector("x509pop", "subject:cn:node-1.example.org") in verdict.selectors
    assert Selector("x509pop", "san:cluster:east") in verdict.selectors
    assert {each.type for each in verdict.selectors} == {"x509pop"}


async def test_the_operator_names_the_agents(tmp_path: Path, bundle: Path) -> None:
    node = SUB.node(Shape(uris=("x509pop://example.org/cluster/east",)))
    template = '/x509pop/{{ .URISanSelectors.cluster }}/{{ .Subject.CommonName | trimSuffix ".example.org" }}'
    verifying = await server_half(bundle, agent_path_template=template)
    verdict = await attest(verifying, await agent_half(tmp_path, node, SUB))
    assert verdict.spiffe_id == "spiffe://example.org/spire/agent/x509pop/east/node-1"
    with pytest.raises(PermanentlyUnusable, match='failed to make spiffe id: there is no "cluster"'):
        await attest(verifying, await agent_half(tmp_path, SUB.node(), SUB))


async def test_an_svid_of_this_server_attests(tmp_path: Path, bundle: Path) -> None:
    node = ROOT.node(Shape(cn="", uris=("spiffe://example.org/spire-exchange/rack/7",)))
    proving = await agent_half(tmp_path, node)
    verdict = await attest(await server_half(bundle, own=[ROOT.der], mode="spiffe"), proving)
    assert verdict.spiffe_id == "spiffe://example.org/spire/agent/x509pop/rack/7"
    with pytest.raises(Refused, match="x509 cert doesnt match SVID prefix"):
        await attest(await server_half(bundle, own=[ROOT.der], mode="spiffe", spiffe_prefix="/other"), proving)
    with pytest.raises(Refused, match="unknown authority"):
        await attest(await server_half(bundle, own=[root().der], mode="spiffe"), proving)
    with pytest.raises(TemporarilyUnavailable, match="failed to get trust bundle: no bundle"):
        await attest(await server_half(bundle, mode="spiffe"), proving)
    with pytest.raises(Refused, match="valid SVID x509 cert not found"):
        await attest(await server_half(bundle, own=[ROOT.der], mode="spiffe"), await agent_half(tmp_path, ROOT.node()))


async def test_the_address_that_the_agent_calls_from(tmp_path: Path, bundle: Path) -> None:
    verifying = await server_half(bundle, verify_client_ip=True)
    proving = await agent_half(tmp_path, ROOT.node(Shape(ips=("10.0.0.7",))))
    with pytest.raises(PermanentlyUnusable, match="client IP not available for verification"):
        await attest(verifying, proving)
    CLIENT_ADDRESS.set("10.0.0.8")
    with pytest.raises(Refused, match="does not match any certificate IP SAN"):
        await attest(verifying, proving)
    CLIENT_ADDRESS.set("a name")
    with pytest.raises(PermanentlyUnusable, match='invalid client IP "a name"'):
        await attest(verifying, proving)
    CLIENT_ADDRESS.set("10.0.0.7")
    await attest(verifying, proving)


async def test_files_are_read_anew(tmp_path: Path, bundle: Path) -> None:
    verifying = await server_half(bundle)
    proving = await agent_half(tmp_path, ROOT.node(Shape(begins=-2 * DAY, ends=-DAY)))
    with pytest.raises(Refused, match="has expired"):
        await attest(verifying, proving)
    ROOT.node().write(tmp_path, "node")
    assert (await attest(verifying, proving)).can_reattest
    (tmp_path / "node.key.pem").unlink()
    with pytest.raises(InvalidArgument, match=r"unable to load keypair: .*node.key.pem: No such file"):
        await proving.begin()


async def test_certificate_and_key_in_one_file_and_keys_in_every_form(tmp_path: Path, bundle: Path) -> None:
    forms = (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL)
    for key in (ec_key(), rsa_key()):
        for form in forms:
            node = SUB.node(key=key)
            path = tmp_path / "all.pem"
            path.write_bytes(private_pem(key, form) + node.pem + SUB.pem)
            settings = agent.Configuration(private_key_path=str(path), certificate_path=str(path))
            proving = await agent.load(settings, PluginContext("example.org", None, logs.get()))
            attestation: Attestation = await proving.begin()
            verdict = await (await server_half(bundle)).attest(attestation.payload, attestation.respond)
            assert verdict.can_reattest


def _encrypted() -> bytes:
    return ec_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (b"", None, "no certificate in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None, "node.crt.pem"),
        (None, b"", "no private key in PEM"),
        (None, _encrypted(), "the private key is encrypted"),
        (None, private_pem(ec_key()), "private key does not match public key"),
        (None, private_pem(ed25519.Ed25519PrivateKey.generate()), "unsupported private key type"),
        (None, os.urandom(3000), "no private key in PEM"),
    ],
)
async def test_files_that_cannot_be_used(
    tmp_path: Path, certificate: bytes | None, key: bytes | None, message: str
) -> None:
    node = ROOT.node()
    paths = node.write(tmp_path, "node")
    for path, content in zip(paths, (certificate, key), strict=True):
        if content is not None:
            path.write_bytes(content)
    settings = agent.Configuration(certificate_path=str(paths[0]), private_key_path=str(paths[1]))
    with pytest.raises(ConfigurationError, match=rf"unable to load keypair: .*{message}"):
        await agent.load(settings, PluginContext("example.org", None, logs.get()))


async def test_intermediates_that_cannot_be_used(tmp_path: Path) -> None:
    await agent_half(tmp_path, ROOT.node(), SUB)
    (tmp_path / "above.pem").write_bytes(b"nothing")
    with pytest.raises(InvalidArgument, match=r"unable to load intermediate certificates: .*above.pem"):
        await agent_half_again(tmp_path)


async def agent_half_again(folder: Path) -> Attestation:
    return await agent.X509PopAttestor(
        agent.Configuration(
            private_key_path=str(folder / "node.key.pem"),
            certificate_path=str(folder / "node.crt.pem"),
            intermediates_path=str(folder / "above.pem"),
        )
    ).begin()


SERVER_FAULTS = [
    ('mode = "external"', 'mode "external" is unknown'),
    ("", "one of ca_bundle_path and ca_bundle_paths must be configured"),
    ('ca_bundle_path = "a"\n ca_bundle_paths = ["b"]', "exclude each other"),
    ('mode = "spiffe"\n ca_bundle_path = "a"', "have no place in mode spiffe"),
    ('ca_bundle_path = "a"\n max_intermediates = 0', "max_intermediates must be greater than 0"),
    ('ca_bundle_path = "a"\n max_rsa_key_size = -1', "max_rsa_key_size must be greater than 0"),
    ('ca_bundle_path = "a"\n agent_path_template = "/{{ env `HOME` }}"', 'function "env" not defined'),
    (
        'ca_bundle_path = "a"\n agent_path_template = "/{{ .Fingerprnt }}"',
        'there is no "Fingerprnt"; there are AuthorityKeyId',
    ),
    ('ca_bundle_path = "a"\n agent_path_tmplate = "/x"', 'did you mean "agent_path_template"'),
    ('ca_bundle_path = "a"\n verify_client_ip = "maybe"', "verify_client_ip"),
]


@pytest.mark.parametrize(("text", "message"), SERVER_FAULTS)
def test_server_settings_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        config.bind(server.Configuration, hcl.parse(text, "server.conf"), section='NodeAttestor "x509pop"')
    assert message in str(error.value)
    assert str(error.value).startswith("server.conf:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "private_key_path is required"),
        ('private_key_path = "a"', "certificate_path is required"),
        ('spiffe_endpoint_socket = "/tmp/api.sock"', "give it as unix:///path"),
        ('spiffe_endpoint_socket = "tcp://127.0.0.1:1"', "give it as unix:///path"),
    ],
)
def test_agent_settings_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config.bind(agent.Configuration, hcl.parse(text, "agent.conf"))


async def test_ca_files_that_cannot_be_used(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    await asyncio.to_thread(bundle.write_text, "no certificate")
    with pytest.raises(ConfigurationError, match=r'unable to load trust bundle "/nonexistent/ca.pem": No such file'):
        await server_half(Path("/nonexistent/ca.pem"))
    with pytest.raises(ConfigurationError, match=f'unable to load trust bundle "{bundle}"'):
        await server_half(bundle)


async def test_several_ca_files(tmp_path: Path, bundle: Path) -> None:
    second = tmp_path / "second.pem"
    other = root("other")
    second.write_bytes(other.pem)
    verifying = await server.load(server.Configuration(ca_bundle_paths=(str(bundle), str(second))), Context())
    for anchor in (ROOT, other):
        await attest(verifying, await agent_half(tmp_path, anchor.node()))


async def test_keys_that_cannot_be_challenged(tmp_path: Path, bundle: Path) -> None:
    verifying = await server_half(bundle)
    for node, message in (
        (ROOT.node(key=ed25519.Ed25519PrivateKey.generate()), "unsupported public key type"),
        (ROOT.node(Shape(usage=("key_encipherment",))), "certificate not intended for digital signature use"),
    ):
        payload = messages.encode(messages.AttestationData((node.der,)))
        with pytest.raises(PermanentlyUnusable, match=f"unable to generate challenge: {message}"):
            await verifying.attest(payload, _no_challenge)


async def _no_challenge(challenge: bytes) -> bytes:
    raise AssertionError(challenge)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "unable to unmarshal challenge response"),
        (b"[]", "unable to unmarshal challenge response"),
        (b"{}", "challenge response verification failed: expecting ECDSA response"),
        (b'{"rsa_signature":{}}', "challenge response verification failed: expecting ECDSA response"),
        (b'{"ecdsa_signature":{}}', "challenge response verification failed: invalid response nonce"),
        (b'{"ecdsa_signature":{"nonce":"a"}}', "unable to unmarshal challenge response"),
    ],
)
async def test_answers_to_a_challenge(bundle: Path, answer: bytes, message: str) -> None:
    async def respond(challenge: bytes) -> bytes:
        assert messages.decode(messages.Challenge, challenge).ecdsa_signature is not None
        return answer

    payload = messages.encode(messages.AttestationData((ROOT.node().der,)))
    with pytest.raises((InvalidArgument, Refused), match=message):
        await (await server_half(bundle)).attest(payload, respond)


async def test_a_recorded_answer_is_good_once(tmp_path: Path, bundle: Path) -> None:
    verifying, proving = await server_half(bundle), await agent_half(tmp_path, ROOT.node())
    attestation = await proving.begin()
    answers: list[bytes] = []

    async def record(challenge: bytes) -> bytes:
        answers.append(await attestation.respond(challenge))
        return answers[-1]

    async def replay(_challenge: bytes) -> bytes:
        return answers[0]

    await verifying.attest(attestation.payload, record)
    with pytest.raises(Refused, match="ECDSA signature verify failed"):
        await verifying.attest(attestation.payload, replay)


@pytest.mark.parametrize("challenge", [b"", b"{", b"{}", b'{"ecdsa_signature":{"nonce":"AA=="}}', b"\xff" * 100])
async def test_challenges_that_no_server_should_send(tmp_path: Path, challenge: bytes) -> None:
    attestation = await (await agent_half(tmp_path, ROOT.node())).begin()
    with pytest.raises(
        (InvalidArgument, Refused), match=r"unable to unmarshal challenge|failed to calculate challenge"
    ):
        await attestation.respond(challenge)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.binary(max_size=80), answer=st.binary(max_size=80))
async def test_any_bytes_are_refused(bundle: Path, payload: bytes, answer: bytes) -> None:
    verifying = await server_half(bundle)

    async def respond(_challenge: bytes) -> bytes:
        return answer

    for given_payload in (payload, messages.encode(messages.AttestationData((ROOT.node().der,)))):
        with pytest.raises(SpireError):
            await verifying.attest(given_payload, respond)
