"""The agent half of x509pop: the node's certificate, and a signature by its key.

Files are read anew for every attestation, so that a renewed certificate is taken up without a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestors.x509pop import messages, proof
from identity.bundles import from_pem
from operations.errors import ConfigurationError, InvalidArgument, Refused
from plugins.nodeattestor import AgentNodeAttestor, Attestation

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "x509pop"

_LARGEST_FILE = 1 << 20


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths of PEM files; or, with `spiffe_endpoint_socket`, the Workload API that gives certificate and key."""

    private_key_path: str = ""
    certificate_path: str = ""
    intermediates_path: str = ""
    spiffe_endpoint_socket: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if self.spiffe_endpoint_socket:
            from attestors.x509pop.workload_api import socket_path  # few agents attest by another agent's SVID

            socket_path(self.spiffe_endpoint_socket)
            return
        for key in ("private_key_path", "certificate_path"):
            if not getattr(self, key):
                raise InvalidArgument(f"{key} is required")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """`chain` is DER, leaf first."""

    chain: tuple[bytes, ...]
    key: proof.PrivateKey


@dataclass(frozen=True, slots=True)
class _Proof:
    payload: bytes
    key: proof.PrivateKey

    async def respond(self, challenge: bytes) -> bytes:
        """Raises InvalidArgument and Refused for what no server should ask."""
        try:
            asked = messages.decode(messages.Challenge, challenge)
        except InvalidArgument as error:
            raise InvalidArgument(f"unable to unmarshal challenge: {error}") from error
        try:
            response = await asyncio.to_thread(proof.respond, self.key, asked, proof.fresh_nonce())
        except Refused as error:
            raise Refused(f"failed to calculate challenge response: {error}") from error
        return messages.encode(response)


class X509PopAttestor:
    name = NAME

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    async def begin(self) -> Attestation:
        """Raises InvalidArgument for files that cannot be used, RpcError from the Workload API."""
        pair = await self._key_pair()
        return _Proof(messages.encode(messages.AttestationData(pair.chain)), pair.key)

    async def _key_pair(self) -> KeyPair:
        if self._configuration.spiffe_endpoint_socket:
            from attestors.x509pop import workload_api  # as above

            chain, key = await workload_api.fetch(self._configuration.spiffe_endpoint_socket)
            return _pair(chain, _load_key(lambda: serialization.load_der_private_key(key, None)))
        return await asyncio.to_thread(read_files, self._configuration)


def read_files(configuration: Configuration) -> KeyPair:
    """Blocks. Raises InvalidArgument."""
    try:
        pair = _read_pair(configuration.certificate_path, configuration.private_key_path)
    except InvalidArgument as error:
        raise InvalidArgument(f"unable to load keypair: {error}") from error
    path = configuration.intermediates_path.strip()
    if not path:
        return pair
    try:
        return KeyPair((*pair.chain, *from_pem(_read(path))), pair.key)
    except InvalidArgument as error:
        raise InvalidArgument(f"unable to load intermediate certificates: {path}: {error}") from error


def _read_pair(certificate_path: str, key_path: str) -> KeyPair:
    content = _read(certificate_path)
    try:
        # What else is in the file, a key perhaps, is passed over.
        found = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise InvalidArgument(f"{certificate_path}: no certificate in PEM") from error
    chain = [certificate.public_bytes(serialization.Encoding.DER) for certificate in found]
    text = _read(key_path)
    try:
        return _pair(chain, _load_key(lambda: serialization.load_pem_private_key(text, None)))
    except InvalidArgument as error:
        raise InvalidArgument(f"{key_path}: {error}") from error


def _pair(chain: list[bytes], key: proof.PrivateKey) -> KeyPair:
    try:
        certified = x509.load_der_x509_certificate(chain[0]).public_key()
    except (IndexError, ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("the certificate's public key cannot be read") from error
    if certified != key.public_key():
        raise InvalidArgument("private key does not match public key")
    return KeyPair(tuple(chain), key)


def _load_key(load: Callable[[], object]) -> proof.PrivateKey:
    try:
        key = load()
    except TypeError as error:
        raise InvalidArgument("the private key is encrypted: store it without a password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("no private key in PEM: use PKCS #8, PKCS #1 or SEC 1") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise InvalidArgument("unsupported private key type: use RSA or ECDSA")
    return key


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_LARGEST_FILE)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from error


async def load(configuration: Configuration, _context: PluginContext) -> AgentNodeAttestor:
    """Raises ConfigurationError for files that cannot be used: better now than at the first attestation."""
    if not configuration.spiffe_endpoint_socket:
        try:
            await asyncio.to_thread(read_files, configuration)
        except InvalidArgument as error:
            raise ConfigurationError(str(error)) from error
    return X509PopAttestor(configuration)
