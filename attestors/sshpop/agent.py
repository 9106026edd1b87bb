"""The agent half of sshpop: the host's SSH certificate, and a signature by the host's key.

Files are read anew for every attestation, so that a renewed certificate is taken up without a restart.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from attestors.sshpop import authorized_keys, certificate, keys, messages, proof
from operations.errors import ConfigurationError, InvalidArgument
from plugins.nodeattestor import AgentNodeAttestor, Attestation

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "sshpop"

_KEY = "/etc/ssh/ssh_host_rsa_key"
_CERTIFICATE = "/etc/ssh/ssh_host_rsa_key-cert.pub"
_LARGEST_FILE = 1 << 20
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths: the host's key in OpenSSH's format or PEM, and the certificate that ssh-keygen made of it."""

    host_key_path: str = _KEY
    host_cert_path: str = _CERTIFICATE

    def read(self) -> Host:
        """Blocks. Raises InvalidArgument."""
        key = _private_key(self.host_key_path or _KEY)
        path = self.host_cert_path or _CERTIFICATE
        content = _file(path, "host cert").decode("utf-8", "replace")
        try:
            blob = authorized_keys.first(content).blob
            if not certificate.is_certificate(keys.kind_of(blob)):
                raise InvalidArgument("pubkey isn't a certificate: make one with ssh-keygen -s CA -h")
            certified = certificate.parse(blob).key
        except InvalidArgument as error:
            raise InvalidArgument(f"failed to get cert and signer from pem: {path}: {error}") from error
        if certified.blob != keys.public_blob(key):
            raise InvalidArgument(f"failed to get cert and signer from pem: {path} is the certificate of another key")
        return Host(blob, key)

    def check_files(self) -> None:
        """Raises ConfigurationError."""
        try:
            self.read()
        except InvalidArgument as error:
            raise ConfigurationError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Host:
    """A certificate, as SSH writes it, and its key."""

    certificate: bytes
    key: keys.PrivateKey


@dataclass(frozen=True, slots=True)
class _Proof:
    payload: bytes
    key: keys.PrivateKey

    async def respond(self, challenge: bytes) -> bytes:
        """Raises InvalidArgument for what no server should ask."""
        try:
            asked = messages.decode(messages.Challenge, challenge)
        except InvalidArgument as error:
            raise InvalidArgument(f"failed to unmarshal challenge request: {error}") from error
        try:
            response = await asyncio.to_thread(proof.respond, self.key, asked, proof.fresh_nonce())
        except InvalidArgument as error:
            raise InvalidArgument(f"failed to combine nonces: {error}") from error
        return messages.encode(response)


class SshPopAttestor:
    name = NAME

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    async def begin(self) -> Attestation:
        """Raises InvalidArgument for files that cannot be used."""
        host = await asyncio.to_thread(self._configuration.read)
        return _Proof(messages.encode(messages.AttestationData(host.certificate)), host.key)


def _private_key(path: str) -> keys.PrivateKey:
    content = _file(path, "host key")
    fault = f"failed to get cert and signer from pem: {path}"
    try:
        load = load_ssh_private_key if _OPENSSH in content else load_pem_private_key
        key = load(content, None)
    except TypeError as error:
        raise InvalidArgument(f"{fault}: the key is protected by a passphrase: remove it") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument(f"{fault}: no private key, neither OpenSSH's nor PEM") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in keys.CURVES:
        return key
    if isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        return key
    raise InvalidArgument(f"{fault}: unsupported key type: use RSA, ECDSA or Ed25519")


def _file(path: str, what: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_LARGEST_FILE)
    except OSError as error:
        raise InvalidArgument(f"failed to read {what} file: {path}: {error.strerror}") from error


async def load(configuration: Configuration, _context: PluginContext) -> AgentNodeAttestor:
    """Raises ConfigurationError for files that cannot be used: better now than at the first attestation."""
    await asyncio.to_thread(configuration.check_files)
    return SshPopAttestor(configuration)
