"""The agent half of tpm_devid: the DevID's certificate, its key in the TPM, and proof that it is there.

Files are read anew for every attestation, so that a renewed certificate is taken up without a restart.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestors.tpm_devid import blobs, calls, devices, messages
from attestors.tpm_devid.jobs import Access, Begin, Begun, Respond, Responded
from attestors.tpm_devid.messages import AttestationRequest, ChallengeRequest, ChallengeResponse
from attestors.tpm_devid.refusals import Refusals
from identity import der
from operations.errors import ConfigurationError, InvalidArgument, PermanentlyUnusable
from operations.files import read_secret
from plugins.nodeattestor import AgentNodeAttestor, Attestation

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "tpm_devid"

_LARGEST_FILE = 1 << 20
_PASSWORDS = ("devid_password", "owner_hierarchy_password", "endorsement_hierarchy_password")


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The DevID's certificate (PEM, intermediates behind it), and the blobs of its key, without their sizes.

    Passwords are here, as SPIRE has them, or each in a file of its own (mode 0600), which SPIRE does not know.
    `tpm_device_path` is a device or a Unix socket; unset, the one TPM of the machine.
    """

    devid_cert_path: str = ""
    devid_priv_path: str = ""
    devid_pub_path: str = ""
    devid_password: str = ""
    owner_hierarchy_password: str = ""
    endorsement_hierarchy_password: str = ""
    devid_password_file: str = ""
    owner_hierarchy_password_file: str = ""
    endorsement_hierarchy_password_file: str = ""
    tpm_device_path: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        for key in ("devid_cert_path", "devid_priv_path", "devid_pub_path"):
            if not getattr(self, key):
                raise InvalidArgument(f"invalid configuration: {key} is required")
        for key in _PASSWORDS:
            if getattr(self, key) and getattr(self, f"{key}_file"):
                raise InvalidArgument(f"invalid configuration: set one of {key} and {key}_file")

    def access(self, path: str) -> Access:
        """Blocks on the disk. Raises ConfigurationError for files of passwords that cannot be used."""
        devid, owner, endorsement = (self._password(key) for key in _PASSWORDS)
        return Access(tcti=devices.connection(path), devid_auth=devid, owner_auth=owner, endorsement_auth=endorsement)

    def _password(self, key: str) -> bytes:
        path: str = getattr(self, f"{key}_file")
        value: str = read_secret(path, key) if path else getattr(self, key)
        return value.encode()


@dataclass(frozen=True, slots=True)
class DevId:
    """`chain` is DER, leaf first; `hash` is what the key signs with."""

    chain: tuple[bytes, ...]
    public: bytes
    private: bytes
    hash: str


@dataclass(frozen=True, slots=True)
class _Proof:
    payload: bytes
    access: Access = field(repr=False)
    begun: Begun = field(repr=False)
    hash: str

    async def respond(self, challenge: bytes) -> bytes:
        """Raises InvalidArgument for what no server should ask, and the errors of keystores.errors."""
        try:
            asked = messages.decode(ChallengeRequest, challenge, messages.ANSWER_LIMIT)
        except InvalidArgument as error:
            raise InvalidArgument(f"unable to unmarshall challenges: {error}") from error
        activation = asked.cred_activation
        if activation is None:
            raise PermanentlyUnusable("received empty credential activation challenge from server")
        step = Respond(
            access=self.access,
            begun=self.begun,
            hash=self.hash,
            nonce=asked.devid or b"",
            credential=activation.credential or b"",
            secret=activation.secret or b"",
        )
        answer = await calls.call(step, Responded)
        return messages.encode(ChallengeResponse(devid=answer.signature, cred_activation=answer.secret))


class TpmDevIdAttestor:
    name = NAME

    def __init__(self, configuration: Configuration, path: str, refusals: Refusals) -> None:
        """`path` is that of the TPM."""
        self._configuration = configuration
        self._path = path
        self._refusals = refusals

    async def begin(self) -> Attestation:
        """Raises InvalidArgument for files that cannot be used, and the errors of keystores.errors."""
        devid = await asyncio.to_thread(read_files, self._configuration)
        access = await asyncio.to_thread(self._configuration.access, self._path)
        begun = await self._begun(devid, access)
        request = AttestationRequest(
            devid_cert=devid.chain,
            devid_pub=devid.public,
            ek_cert=begun.ek_certificate,
            ek_pub=begun.ek_public,
            ak_pub=begun.ak_public,
            certified_devid=begun.statement,
            certification_signature=begun.signature,
        )
        return _Proof(messages.encode(request), access, begun, devid.hash)

    async def _begun(self, devid: DevId, access: Access) -> Begun:
        guess = devid.private, access.devid_auth
        await asyncio.to_thread(self._refusals.check, *guess)
        try:
            return await calls.call(Begin(access=access, public=devid.public, private=devid.private), Begun)
        except calls.WrongPassword:
            await asyncio.to_thread(self._refusals.remember, *guess)
            raise


def read_files(configuration: Configuration) -> DevId:
    """Blocks. Raises InvalidArgument."""
    path = configuration.devid_cert_path
    content = _read(path, "cannot load certificate(s)")
    try:
        # What else is in the file, a key perhaps, is passed over.
        found = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise _unusable(f"cannot load certificate(s): {path}: no certificates found in file, in PEM") from error
    private = _read(configuration.devid_priv_path, "cannot load private key")
    public = blobs.unsized(_read(configuration.devid_pub_path, "cannot load public key"))
    try:
        area, hash_name = blobs.signing_key(public)
    except InvalidArgument as error:
        raise _unusable(f"cannot load public key: {configuration.devid_pub_path}: {error}") from error
    chain = tuple(certificate.public_bytes(Encoding.DER) for certificate in found)
    if hash_name != "sha256":
        raise _unusable(
            f"the key of {configuration.devid_pub_path} signs with {hash_name}: servers take SHA-256 of a DevID, so "
            "make another key"
        )
    if der.certificate_key(chain[0]) != area.der:
        raise _unusable(f"{path} is a certificate of another key than {configuration.devid_pub_path}")
    return DevId(chain, public, blobs.unsized(private), hash_name)


def _read(path: str, complaint: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_LARGEST_FILE)
    except OSError as error:
        raise _unusable(f"{complaint}: open {path}: {error.strerror}") from error


def _unusable(reason: str) -> InvalidArgument:
    return InvalidArgument(f"unable to load DevID files: {reason}")


async def load(configuration: Configuration, context: PluginContext) -> AgentNodeAttestor:
    """Raises ConfigurationError for files that cannot be used: better now than at the first attestation."""
    path = configuration.tpm_device_path or await asyncio.to_thread(devices.detect)
    try:
        await asyncio.to_thread(configuration.access, path)
        await asyncio.to_thread(read_files, configuration)
    except ConfigurationError:
        raise
    except InvalidArgument as error:
        raise ConfigurationError(str(error)) from error
    return TpmDevIdAttestor(configuration, path, Refusals(context.data_dir))
