"""The server half of sshpop: a node is the host that an SSH CA certified, if it holds the host's key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from attestors.agent_path import Fields, Template, Texts, Value, agent_id, chosen
from attestors.sshpop import authorized_keys, certificate, keys, messages, proof, verifier
from attestors.sshpop.certificate import Certificate
from identity.spiffeid import TrustDomain
from operations.errors import ConfigurationError, InvalidArgument, PermanentlyUnusable, SpireError
from operations.logs import Logger
from operations.quoting import quote
from plugins.nodeattestor import AttestedNode, Challenge

NAME = "sshpop"

_LARGEST_FILE = 4 << 20
_BY_FINGERPRINT = "/{{ .PluginName }}/{{ .Fingerprint }}"
_FIELDS = frozenset(
    (
        *("PluginName", "Fingerprint", "Hostname"),
        *("Nonce", "Key", "Serial", "CertType", "KeyId", "ValidPrincipals", "ValidAfter", "ValidBefore", "Type"),
        *("Permissions", "CriticalOptions", "Extensions", "Reserved", "SignatureKey"),
    )
)
_WITHOUT_EFFECT = frozenset(("", "cert-authority"))


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """CAs as lines of authorized_keys, here and in a file; `canonical_domain` is where the hosts' names must be."""

    cert_authorities: tuple[str, ...] = ()
    cert_authorities_path: str = ""
    canonical_domain: str = ""
    agent_path_template: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if not (self.cert_authorities or self.cert_authorities_path):
            raise InvalidArgument('missing required config value for "cert_authorities" or "cert_authorities_path"')
        for line in self.cert_authorities:
            _authority(line)
        self.template()

    def template(self) -> Template:
        """Raises InvalidArgument."""
        return chosen(self.agent_path_template, _BY_FINGERPRINT, _FIELDS)

    def lines(self) -> tuple[str, ...]:
        """The CAs. Blocks. Raises ConfigurationError."""
        path = self.cert_authorities_path
        if not path:
            return self.cert_authorities
        try:
            with Path(path).open("rb") as file:
                found = authorized_keys.every(file.read(_LARGEST_FILE).decode("utf-8", "replace"))
        except OSError as error:
            raise ConfigurationError(f"failed to get cert authorities from file: {path}: {error.strerror}") from error
        if not found:
            raise ConfigurationError(f"failed to get cert authorities from file: no data found in file: {quote(path)}")
        try:
            for line in found:
                _authority(line)
        except InvalidArgument as error:
            raise ConfigurationError(f"{path}: {error}") from error
        return (*self.cert_authorities, *found)

    def check_files(self) -> None:
        """Raises ConfigurationError."""
        self.lines()


class Context(Protocol):
    """What a server gives to this plugin."""

    @property
    def trust_domain(self) -> str: ...

    @property
    def log(self) -> Logger: ...


class SshPopAttestor:
    name = NAME

    def __init__(self, configuration: Configuration, authorities: frozenset[bytes], trust_domain: TrustDomain) -> None:
        """`authorities` are keys as SSH writes them."""
        self._authorities = authorities
        self._domain = configuration.canonical_domain
        self._template = configuration.template()
        self._trust_domain = trust_domain

    async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        """`payload` is messages.AttestationData. Raises PermanentlyUnusable."""
        host, name = await asyncio.to_thread(self._verify, payload, int(time.time()))
        await _prove(host, challenge)
        with _failing("failed to create AgentID"):
            spiffe_id = agent_id(self._trust_domain, self._template, Fields(_fields(host, name)))
        return AttestedNode(str(spiffe_id), (), can_reattest=True)

    def _verify(self, payload: bytes, now: int) -> tuple[Certificate, str]:
        """The certificate, if it holds, and the host's name."""
        with _failing("failed to unmarshal data"):
            data = messages.decode(messages.AttestationData, payload)
        if not data.certificate:
            raise PermanentlyUnusable("no certificate in response")
        with _failing("failed to parse public key"):
            is_key = keys.kind_of(data.certificate) in keys.KINDS
            host = None if is_key else certificate.parse(data.certificate)
        if host is None:
            raise PermanentlyUnusable("pubkey in response is not a certificate")
        if not host.principals:
            raise PermanentlyUnusable("cert has no valid principals")
        with _failing("failed to check host key"):
            verifier.verify(host, self._authorities, now)
        with _failing("failed to decanonicalize hostname"):
            return host, verifier.hostname(host, self._domain)


async def _prove(host: Certificate, challenge: Challenge) -> None:
    """Raise PermanentlyUnusable unless whoever is asked holds the host's key."""
    nonce = proof.fresh_nonce()
    answer = await challenge(messages.encode(messages.Challenge(nonce)))
    with _failing("failed to unmarshal challenge response"):
        response = messages.decode(messages.Response, answer)
    with _failing("failed to combine nonces"):
        data = proof.combined(nonce, response.nonce)
    with _failing("failed to verify signature"):
        proof.verify(host.key, data, response)  # one signature: quicker than a thread


@contextmanager
def _failing(what: str) -> Generator[None]:
    """SPIRE's half answers Internal to all that is wrong, and whoever watches it knows that code and these texts."""
    try:
        yield
    except SpireError as error:
        raise PermanentlyUnusable(f"{what}: {error}") from error


def _fields(host: Certificate, name: str) -> dict[str, Callable[[], Value]]:
    """A certificate as templates see it, by the names of Go's ssh.Certificate, which operators' templates use."""
    options = {"CriticalOptions": _texts(host.critical_options), "Extensions": _texts(host.extensions)}
    return {
        "PluginName": lambda: NAME,
        "Fingerprint": lambda: verifier.fingerprint(host),
        "Hostname": lambda: name,
        "Nonce": lambda: host.nonce,
        "Key": lambda: {"Type": host.key.kind},
        "Serial": lambda: host.serial,
        "CertType": lambda: host.type,
        "KeyId": lambda: verifier.text(host.key_id),
        "ValidPrincipals": lambda: [verifier.text(each) for each in host.principals],
        "ValidAfter": lambda: host.valid_after,
        "ValidBefore": lambda: host.valid_before,
        "Type": lambda: host.kind,
        "Permissions": lambda: options,
        "CriticalOptions": lambda: options["CriticalOptions"],
        "Extensions": lambda: options["Extensions"],
        "Reserved": lambda: host.reserved,
        "SignatureKey": lambda: {"Type": host.signature_key.kind},
    }


def _texts(options: Mapping[bytes, bytes]) -> Texts:
    return Texts({verifier.text(name): verifier.text(value) for name, value in options.items()})


def _authority(line: str) -> authorized_keys.Line:
    """Raises InvalidArgument for a line that has no key of a CA."""
    try:
        found = authorized_keys.first(line)
        if certificate.is_certificate(keys.kind_of(found.blob)):
            raise InvalidArgument("it is a certificate: give the CA's own key")
        keys.parse(found.blob)
    except InvalidArgument as error:
        raise InvalidArgument(f"failed to parse public key {quote(line)}: {error}") from error
    return found


async def load(configuration: Configuration, context: Context) -> SshPopAttestor:
    """Raises ConfigurationError for CAs that cannot be used."""
    found = [_authority(line) for line in await asyncio.to_thread(configuration.lines)]
    for line in found:
        if line.options not in _WITHOUT_EFFECT:
            context.log.warning("Options of an SSH certificate authority have no effect here", options=line.options)
    return SshPopAttestor(configuration, frozenset(line.blob for line in found), TrustDomain(context.trust_domain))
