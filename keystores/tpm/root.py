"""A root's or intermediate's key in a TPM, for UpstreamAuthority "tpm": found by handle or file, and used."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from keystores import public_keys
from keystores.errors import Refused, Unsupported
from keystores.tpm import configuration as settings
from keystores.tpm import keyfiles, messages, public_area, signing
from keystores.tpm.authorizations import Authorization
from keystores.tpm.public_area import PublicArea
from keystores.tpm.worker import PATIENCE, Patience, Worker, WrongAuthorization
from operations.errors import ConfigurationError
from plugins.keymanager import Hash, Scheme
from plugins.rootkey import RootKey

if TYPE_CHECKING:
    from plugins.catalog import PluginContext


class RootConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The TPM, and the key in it, by one of `key_handle` and `key_file`.

    `key_file` is a TSS2 PEM file, or `<name>.priv` of tpm2_create with `<name>.pub` beside it; `parent`, "srk" or a
    persistent handle, loads such a pair. `key_auth_*` give the key's authorization, if it has one.
    """

    tcti: str = settings.DEFAULT_TCTI
    key_handle: str | None = None
    key_file: str | None = None
    parent: str = "srk"
    key_auth_file: str | None = None
    key_auth_credential: str | None = None
    parent_auth_file: str | None = None
    parent_auth_credential: str | None = None
    owner_auth_file: str | None = None
    owner_auth_credential: str | None = None


class TpmRootKey:
    """A `RootKey`."""

    def __init__(
        self, worker: Worker, name: str, key: messages.LoadedKey, area: PublicArea, authorization: Authorization
    ) -> None:
        self.name = name
        self.public_key = area.der
        self._key = key
        self._verifier = public_keys.from_der(self.public_key)
        self._worker = worker
        self._authorization = authorization
        self._refused: Refused | None = None

    async def sign(self, message: bytes) -> bytes:
        if self._refused is not None:
            # A wrong authorization is not tried again: it would drive the whole TPM into its lockout.
            raise Refused(str(self._refused)) from self._refused.__cause__
        scheme = _scheme(self._verifier)
        digests = [hashlib.new(scheme.hash.value, message).digest()]
        try:
            signed = await self._worker.call(
                signing.request(self._key, self._verifier, digests, scheme), messages.Signed
            )
        except WrongAuthorization as error:
            await asyncio.to_thread(self._authorization.refused)
            self._refused = Refused(f"{self.name}: {error}; see key_auth_file and key_auth_credential")
            raise self._refused from error.__cause__
        [signature] = await asyncio.to_thread(signing.check, self._verifier, digests, signed.signatures, scheme)
        return signature

    async def close(self) -> None:
        await self._worker.close()


def _scheme(key: public_keys.PublicKey) -> Scheme:
    """ECDSA with the curve's own hash; RSA by PKCS #1 v1.5 with SHA-256."""
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return Scheme(Hash.SHA384)
    return Scheme(Hash.SHA256)


async def open_root(configuration: RootConfiguration, context: PluginContext, patience: Patience = PATIENCE) -> RootKey:
    """Raises ConfigurationError for settings and files, and the errors of keystores.errors for the TPM and the key."""
    given = configuration
    folder = None if context.data_dir is None else Path(context.data_dir)
    key_auth = Authorization.configured(
        "key_auth",
        given.key_auth_file,
        given.key_auth_credential,
        None if folder is None else folder / "tpm-root.auth-refused",
    )
    owner_auth = Authorization.configured("owner_auth", given.owner_auth_file, given.owner_auth_credential)
    parent_auth = Authorization.configured("parent_auth", given.parent_auth_file, given.parent_auth_credential)
    name, key, parent = await asyncio.to_thread(_found, given, await asyncio.to_thread(key_auth.read))
    place = messages.Place(
        tcti=settings.tcti(given.tcti),
        parent=parent,
        owner_auth=await asyncio.to_thread(owner_auth.read),
        parent_auth=await asyncio.to_thread(parent_auth.read),
    )
    worker = Worker(place, patience)
    try:
        described = await worker.call(messages.Describe(key=key), messages.Described, creation=True)
        area = public_area.parse(described.public)
        _check_signs(name, area)
        return TpmRootKey(worker, name, key, area, key_auth)
    except BaseException:
        await worker.close()
        raise


def _found(configuration: RootConfiguration, auth: bytes) -> tuple[str, messages.LoadedKey, int | None]:
    """The key's name in messages, the key, and its parent."""
    handle, file = configuration.key_handle, configuration.key_file
    if (handle is None) == (file is None):
        raise ConfigurationError("tpm: set one of key_handle and key_file")
    parent = settings.parent(configuration.parent)
    if handle is not None:
        return handle, messages.Persistent(handle=settings.handle(handle, "key_handle"), auth=auth), parent
    path = Path(str(file))
    read = keyfiles.read(path)
    blob = messages.Blob(public=read.public, private=read.private, auth=auth)
    return str(path), blob, parent if read.parent is None else read.parent


def _check_signs(name: str, area: PublicArea) -> None:
    """Raises Unsupported for what is no key, Refused for a key that does not sign certificates."""
    if area.key is None:
        raise Unsupported(f"{name}: it is no EC or RSA key")
    if not area.attributes["sign"] or area.attributes["restricted"]:
        raise Refused(f"{name}: the key does not sign certificates: it must have sign set and restricted clear")
