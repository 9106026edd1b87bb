"""The two halves of sshpop together: configurations, verdicts, refusals."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestors.sshpop import agent, authorized_keys, certificate, messages, server, verifier
from operations import config, hcl, logs
from operations.errors import ConfigurationError, InvalidArgument, PermanentlyUnusable
from plugins.catalog import PluginContext
from plugins.nodeattestor import AttestedNode
from tests.simulators import ssh_hosts
from tests.simulators.ssh_hosts import SshKey

CONTEXT = PluginContext("example.org", None, logs.get())


@pytest.fixture
def ca(tmp_path: Path) -> SshKey:
    return ssh_hosts.make_key(tmp_path / "ca")


@pytest.fixture
def host(tmp_path: Path, ca: SshKey) -> SshKey:
    made = ssh_hosts.make_key(tmp_path / "host")
    ssh_hosts.certify(ca, made)
    return made


def fingerprint(host: SshKey) -> str:
    return verifier.fingerprint(certificate.parse(authorized_keys.first(host.certificate.read_text()).blob))


async def server_half(ca: SshKey, **more: str) -> server.SshPopAttestor:
    return await server.load(server.Configuration(cert_authorities=(ca.public,), **more), CONTEXT)


def files(host: SshKey) -> agent.Configuration:
    return agent.Configuration(host_key_path=str(host.path), host_cert_path=str(host.certificate))


async def attest(verifying: server.SshPopAttestor, host: SshKey) -> AttestedNode:
    attestation = await (await agent.load(files(host), CONTEXT)).begin()
    return await verifying.attest(attestation.payload, attestation.respond)


async def test_the_messages_are_those_of_spire(ca: SshKey, host: SshKey) -> None:
    attestation = await (await agent.load(files(host), CONTEXT)).begin()
    blob = host.certificate.read_text().split()[1]
    assert attestation.payload == f'{{"Certificate":"{blob}"}}'.encode()
    nonce = base64.b64encode(bytes(32)).decode()
    answer = json.loads(await attestation.respond(f'{{"Nonce":"{nonce}"}}'.encode()))
    assert list(answer) == ["Nonce", "Signature"]
    assert list(answer["Signature"]) == ["Format", "Blob", "Rest"]
    assert (answer["Signature"]["Format"], answer["Signature"]["Rest"]) == ("ssh-ed25519", None)
    asked: list[bytes] = []

    async def respond(challenge: bytes) -> bytes:
        asked.append(challenge)
        return await attestation.respond(challenge)

    await (await server_half(ca)).attest(attestation.payload, respond)
    assert len(base64.b64decode(json.loads(asked[0])["Nonce"])) == 32


async def test_a_host_is_attested_by_its_fingerprint(ca: SshKey, host: SshKey) -> None:
    verdict = await attest(await server_half(ca), host)
    assert verdict == AttestedNode(
        f"spiffe://example.org/spire/agent/sshpop/{fingerprint(host)}", (), can_reattest=True
    )


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/static/{{ index .ValidPrincipals 0 }}", "static/node-1.example.org"),
        ("/{{ .PluginName }}/{{ .Hostname }}", "sshpop/node-1"),
        ("/{{ .KeyId }}/{{ .Serial }}/{{ .CertType }}", "rack-7/42/2"),
        ("/{{ .Key.Type }}/{{ .SignatureKey.Type }}", "ssh-ed25519/ssh-ed25519"),
        ("/{{ .ValidAfter }}/{{ len .Nonce }}x{{ len .Reserved }}", "0/32x0"),
        ('/{{ len .CriticalOptions }}/{{ index .Permissions.Extensions "role" }}', "0/web"),
        ('/{{ index (splitList "@" .Type) 1 }}', "openssh.com"),
    ],
)
async def test_templates_know_the_certificate(ca: SshKey, host: SshKey, template: str, path: str) -> None:
    ssh_hosts.certify(ca, host, "-V", "always:forever", "-O", "extension:role=web")
    verifying = await server_half(ca, canonical_domain="example.org", agent_path_template=template)
    assert (await attest(verifying, host)).spiffe_id == f"spiffe://example.org/spire/agent/{path}"


async def test_a_name_that_no_spiffe_id_has(ca: SshKey, host: SshKey) -> None:
    ssh_hosts.certify(ca, host, principals="node@example.org")
    with pytest.raises(PermanentlyUnusable, match="failed to create AgentID: invalid agent path suffix"):
        await attest(await server_half(ca, agent_path_template="/sshpop/{{ .Hostname }}"), host)


async def test_files_are_read_anew(ca: SshKey, host: SshKey) -> None:
    verifying = await server_half(ca)
    proving = await agent.load(files(host), CONTEXT)
    ssh_hosts.certify(ca, host)
    attestation = await proving.begin()
    verdict = await verifying.attest(attestation.payload, attestation.respond)
    assert verdict.spiffe_id.endswith(fingerprint(host))
    host.certificate.unlink()
    with pytest.raises(InvalidArgument, match=r"failed to read host cert file: .*host-cert.pub: No such file"):
        await proving.begin()


@pytest.mark.parametrize("form", ["PEM", "PKCS8", "RFC4716"])
@pytest.mark.parametrize("kind", ["rsa-2048", "ecdsa-256"])
async def test_keys_in_every_form(tmp_path: Path, ca: SshKey, kind: str, form: str) -> None:
    key = ssh_hosts.make_key(tmp_path / "key", kind)
    ssh_hosts.certify(ca, key)
    await asyncio.to_thread(ssh_hosts.rewrite, key, form)
    assert (await attest(await server_half(ca), key)).can_reattest


async def test_files_that_cannot_be_used(tmp_path: Path, ca: SshKey, host: SshKey) -> None:
    other = ssh_hosts.make_key(tmp_path / "other")
    locked = ssh_hosts.make_key(tmp_path / "locked")
    await asyncio.to_thread(ssh_hosts.rewrite, locked, "RFC4716", "secret")
    public = Path(f"{host.path}.pub")
    for key, held, words in (
        (Path("/nonexistent"), host.certificate, "failed to read host key file: /nonexistent: No such file"),
        (other.path, host.certificate, "host-cert.pub is the certificate of another key"),
        (locked.path, host.certificate, "locked: the key is protected by a passphrase: remove it"),
        (public, host.certificate, "host.pub: no private key, neither OpenSSH's nor PEM"),
        (host.path, public, "host.pub: pubkey isn't a certificate: make one with ssh-keygen -s CA -h"),
        (host.path, host.path, "host: ssh: no key found"),
    ):
        settings = agent.Configuration(host_key_path=str(key), host_cert_path=str(held))
        with pytest.raises(ConfigurationError, match=words):
            await agent.load(settings, CONTEXT)


def test_where_a_host_has_its_files() -> None:
    for text in ("", 'host_key_path = ""\n host_cert_path = ""'):
        with pytest.raises(ConfigurationError, match="/etc/ssh/ssh_host_rsa_key"):
            config.bind(agent.Configuration, hcl.parse(text, "agent.conf")).check_files()


MISSING = 'missing required config value for "cert_authorities" or "cert_authorities_path"'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", MISSING),
        ("cert_authorities = []", MISSING),
        ('cert_authorities = ["ssh-rsa AAAA"]', 'failed to parse public key "ssh-rsa AAAA": ssh: no key found'),
        ('cert_authorities_path = "a"\n agent_path_template = "/{{ .Hostnam }}"', 'there is no "Hostnam"'),
        ('cert_authorities_path = "a"\n agent_path_template = "/{{ "', "agent_path_template"),
        ('cert_authority = "a"', "cert_authorities"),
    ],
)
def test_server_settings_that_cannot_be_used(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        config.bind(server.Configuration, hcl.parse(text, "server.conf"), section='NodeAttestor "sshpop"')
    assert words in str(error.value)
    assert str(error.value).startswith("server.conf:")


async def test_files_with_cas(tmp_path: Path, ca: SshKey, host: SshKey) -> None:
    path = tmp_path / "cas"
    settings = server.Configuration(cert_authorities_path=str(path))
    for content, words in (
        (None, f"failed to get cert authorities from file: {path}: No such file"),
        ("\n# nothing\n", f'failed to get cert authorities from file: no data found in file: "{path}"'),
        (f"{ca.public}\nssh-rsa x\n", f'{path}: failed to parse public key "ssh-rsa x"'),
        (host.certificate.read_text(), "it is a certificate: give the CA's own key"),
    ):
        if content is not None:
            await asyncio.to_thread(path.write_text, content)
        with pytest.raises(ConfigurationError) as error:
            await server.load(settings, CONTEXT)
        assert words in str(error.value)
    other = ssh_hosts.make_key(tmp_path / "other")
    await asyncio.to_thread(
        path.write_text, f'# CAs\ncert-authority {other.public}restrict,from="10.0.0.1" {ca.public}'
    )
    await attest(await server.load(settings, CONTEXT), host)


async def _no_challenge(challenge: bytes) -> bytes:
    raise AssertionError(challenge)


async def test_payloads_that_are_refused(ca: SshKey) -> None:
    verifying = await server_half(ca)
    key = base64.b64encode(authorized_keys.first(ca.public).blob).decode()
    for payload, words in (
        ("{{", "failed to unmarshal data"),
        ("{}", "no certificate in response"),
        ('{"Certificate":null}', "no certificate in response"),
        ('{"Certificate":"aGVsbG8K"}', "failed to parse public key"),
        (f'{{"Certificate":"{key}"}}', "pubkey in response is not a certificate"),
    ):
        with pytest.raises(PermanentlyUnusable, match=words):
            await verifying.attest(payload.encode(), _no_challenge)


async def test_answers_that_are_refused(tmp_path: Path, ca: SshKey, host: SshKey) -> None:
    verifying = await server_half(ca)
    other = ssh_hosts.make_key(tmp_path / "other")
    ssh_hosts.certify(ca, other)
    payload = (await (await agent.load(files(host), CONTEXT)).begin()).payload
    stranger = await (await agent.load(files(other), CONTEXT)).begin()
    with pytest.raises(PermanentlyUnusable, match="failed to verify signature: ssh: signature did not verify"):
        await verifying.attest(payload, stranger.respond)
    nonce = base64.b64encode(bytes(32)).decode()
    for answer, words in (
        ("", "failed to unmarshal challenge response"),
        ("{}", "failed to combine nonces: invalid response nonce size"),
        (f'{{"Nonce":"{nonce}"}}', "failed to verify signature: no signature in response"),
        (f'{{"Nonce":"{nonce}","Signature":{{}}}}', "failed to verify signature: ssh: signature type  for key type"),
        (f'{{"Nonce":"{nonce}","Signature":{{"Format":"ssh-ed25519"}}}}', "failed to verify signature"),
    ):

        async def respond(_challenge: bytes, answer: str = answer) -> bytes:
            return answer.encode()

        with pytest.raises(PermanentlyUnusable, match=words):
            await verifying.attest(payload, respond)


async def test_a_recorded_answer_is_good_once(ca: SshKey, host: SshKey) -> None:
    verifying = await server_half(ca)
    attestation = await (await agent.load(files(host), CONTEXT)).begin()
    answers: list[bytes] = []

    async def record(challenge: bytes) -> bytes:
        answers.append(await attestation.respond(challenge))
        return answers[-1]

    async def replay(_challenge: bytes) -> bytes:
        return answers[0]

    await verifying.attest(attestation.payload, record)
    with pytest.raises(PermanentlyUnusable, match="did not verify"):
        await verifying.attest(attestation.payload, replay)


@pytest.mark.parametrize("challenge", [b"", b"{", b"{}", b'{"Nonce":"AA=="}', b"\xff" * 100])
async def test_challenges_that_no_server_should_send(host: SshKey, challenge: bytes) -> None:
    attestation = await (await agent.load(files(host), CONTEXT)).begin()
    with pytest.raises(InvalidArgument, match=r"failed to unmarshal challenge request|failed to combine nonces"):
        await attestation.respond(challenge)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.binary(max_size=80), answer=st.binary(max_size=80))
async def test_any_bytes_are_refused(ca: SshKey, host: SshKey, payload: bytes, answer: bytes) -> None:
    verifying = await server_half(ca)
    good = messages.encode(messages.AttestationData(authorized_keys.first(host.certificate.read_text()).blob))

    async def respond(_challenge: bytes) -> bytes:
        return answer

    for given_payload in (payload, good):
        with pytest.raises(PermanentlyUnusable):
            await verifying.attest(given_payload, respond)
