"""The server half of x509pop: a node is who its certificate says, if it holds the certificate's key."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from cryptography import x509

from attestors import anchors as anchors_in
from attestors.agent_path import Fields, Template, Texts, agent_id, chosen
from attestors.x509pop import messages, proof, verifier
from attestors.x509pop.fields import NAMES, certificate_fields
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from operations.errors import (
    ConfigurationError,
    InvalidArgument,
    PermanentlyUnusable,
    Refused,
    SpireError,
    TemporarilyUnavailable,
    Unsupported,
)
from operations.logs import Logger
from operations.quoting import quote
from plugins.nodeattestor import CLIENT_ADDRESS, AttestedNode, Challenge

NAME = "x509pop"

_MODES = ("external_pki", "spiffe")
_BY_FINGERPRINT = "/{{ .PluginName }}/{{ .Fingerprint }}"
_BY_SVID = "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}"
_FIELDS = frozenset(
    ("TrustDomain", "PluginName", "SerialNumberHex", "Fingerprint", "SVIDPathTrimmed", "URISanSelectors")
)


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`mode` spiffe trusts this server's own bundle, in place of the files with CAs. Key sizes are in bits."""

    mode: str = "external_pki"
    spiffe_prefix: str = "/spire-exchange/"
    ca_bundle_path: str = ""
    ca_bundle_paths: tuple[str, ...] = ()
    agent_path_template: str = ""
    max_intermediates: int = 4
    max_rsa_key_size: int = 8192
    verify_client_ip: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if self.mode and self.mode not in _MODES:
            raise InvalidArgument(f"mode {quote(self.mode)} is unknown: use external_pki or spiffe")
        bundles = bool(self.ca_bundle_path) + bool(self.ca_bundle_paths)
        if self.by_svid and bundles:
            raise InvalidArgument("ca_bundle_path and ca_bundle_paths have no place in mode spiffe: remove them")
        if not self.by_svid and bundles != 1:
            raise InvalidArgument(
                "one of ca_bundle_path and ca_bundle_paths must be configured, with the CAs of the nodes"
                if not bundles
                else "ca_bundle_path and ca_bundle_paths exclude each other: keep one"
            )
        for key, number in (("max_intermediates", self.max_intermediates), ("max_rsa_key_size", self.max_rsa_key_size)):
            if number <= 0:
                raise InvalidArgument(f"{key} must be greater than 0")
        self.template()

    @property
    def by_svid(self) -> bool:
        return self.mode == "spiffe"

    def template(self) -> Template:
        """Raises InvalidArgument."""
        return chosen(self.agent_path_template, _BY_SVID if self.by_svid else _BY_FINGERPRINT, _FIELDS | NAMES)

    def prefix(self) -> str:
        return self.spiffe_prefix if self.spiffe_prefix.endswith("/") else f"{self.spiffe_prefix}/"

    def bundle_paths(self) -> Sequence[str]:
        return (self.ca_bundle_path,) if self.ca_bundle_path else self.ca_bundle_paths

    def check_files(self) -> None:
        """Raises ConfigurationError for CA files that cannot be used."""
        for path in self.bundle_paths():
            _read_bundle(path)


class Context(Protocol):
    """What a server gives to this plugin."""

    @property
    def trust_domain(self) -> str: ...

    @property
    def log(self) -> Logger: ...

    async def authorities(self) -> Sequence[bytes]:
        """The X.509 authorities of the server's own trust domain, DER."""
        ...


class X509PopAttestor:
    name = NAME

    def __init__(self, configuration: Configuration, anchors: tuple[bytes, ...], context: Context) -> None:
        """`anchors` are DER, and not used in mode spiffe."""
        self._configuration = configuration
        self._anchors = anchors
        self._context = context
        self._trust_domain = TrustDomain(context.trust_domain)
        self._template = configuration.template()

    async def attest(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        """`payload` is messages.AttestationData. Raises InvalidArgument and Refused."""
        verdict = await asyncio.to_thread(self._verify, payload, await self._trusted(), datetime.now(UTC))
        leaf = verdict.leaf
        if self._configuration.verify_client_ip:
            _require_caller(leaf)
        await self._prove(leaf, challenge)
        return self._named(verdict)

    async def _trusted(self) -> tuple[bytes, ...]:
        if not self._configuration.by_svid:
            return self._anchors
        try:
            return tuple(await self._context.authorities())
        except SpireError as error:
            raise TemporarilyUnavailable(f"failed to get trust bundle: {error}") from error

    def _verify(self, payload: bytes, anchors: tuple[bytes, ...], now: datetime) -> verifier.Verdict:
        try:
            data = messages.decode(messages.AttestationData, payload)
        except InvalidArgument as error:
            raise InvalidArgument(f"failed to unmarshal data: {error}") from error
        settings = self._configuration
        policy = verifier.Policy(anchors, settings.max_intermediates, settings.max_rsa_key_size)
        return verifier.verify(data.certificates, policy, now)

    async def _prove(self, leaf: x509.Certificate, challenge: Challenge) -> None:
        key = leaf.public_key()
        try:
            verifier.require_signing_key(leaf)
            asked = proof.challenge_for(key)
        except Unsupported as error:
            raise PermanentlyUnusable(f"unable to generate challenge: {error}") from error
        answer = await challenge(messages.encode(asked))
        try:
            response = messages.decode(messages.Response, answer)
        except InvalidArgument as error:
            raise InvalidArgument(f"unable to unmarshal challenge response: {error}") from error
        try:
            proof.verify(key, asked, response)  # one signature: quicker than a thread
        except Refused as error:
            raise Refused(f"challenge response verification failed: {error}") from error

    def _named(self, verdict: verifier.Verdict) -> AttestedNode:
        leaf = verdict.leaf
        uris = verifier.uri_names(leaf)
        of_uris, strange = verifier.selectors_of_uris(uris, self._trust_domain.name)
        for uri in strange:
            self._context.log.warning("Cannot extract x509pop san selectors", uri=uri)
        trimmed = verifier.svid_path(uris, self._configuration.prefix()) if self._configuration.by_svid else ""
        fields = certificate_fields(leaf) | {
            "TrustDomain": lambda: self._trust_domain.name,
            "PluginName": lambda: NAME,
            "SerialNumberHex": lambda: verifier.serial_number(leaf),
            "Fingerprint": lambda: verifier.fingerprint(leaf),
            "SVIDPathTrimmed": lambda: trimmed,
            "URISanSelectors": lambda: Texts(of_uris),
        }
        try:
            name = agent_id(self._trust_domain, self._template, Fields(fields))
        except InvalidArgument as error:
            raise PermanentlyUnusable(f"failed to make spiffe id: {error}") from error
        selectors = [Selector(NAME, value) for value in verifier.selector_values(verdict, of_uris)]
        return AttestedNode(str(name), selectors, can_reattest=True)


def _require_caller(leaf: x509.Certificate) -> None:
    address = CLIENT_ADDRESS.get()
    if not address:
        raise PermanentlyUnusable("client IP not available for verification")
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise PermanentlyUnusable(f"invalid client IP {quote(address)}") from error
    verifier.require_address(leaf, address)


async def load(configuration: Configuration, context: Context) -> X509PopAttestor:
    """Raises ConfigurationError for CA files that cannot be used."""
    anchors: list[bytes] = []
    for path in configuration.bundle_paths():
        anchors += await asyncio.to_thread(_read_bundle, path)
    return X509PopAttestor(configuration, tuple(dict.fromkeys(anchors)), context)


def _read_bundle(path: str) -> list[bytes]:
    try:
        return anchors_in.read(path)
    except OSError as error:
        raise ConfigurationError(f"unable to load trust bundle {quote(path)}: {error.strerror}") from error
    except InvalidArgument as error:
        raise ConfigurationError(f"unable to load trust bundle {quote(path)}: {error}") from error
