"""A root's or an intermediate's key in a token: made in a ceremony, found by its label, used for signatures only."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from keystores.errors import AlreadyExists, NotFound, PermanentlyUnusable, TemporarilyUnavailable, Unsupported
from keystores.pkcs11 import configuration, encoding
from keystores.pkcs11.batches import Signer
from keystores.pkcs11.device import Device
from keystores.pkcs11.failures import NoToken
from keystores.pkcs11.prompt import pin_of
from keystores.pkcs11.protocol import FindKey, FoundKey, Mechanism
from operations.errors import ConfigurationError
from plugins.keymanager import Hash, KeyType

if TYPE_CHECKING:
    from keystores.pkcs11.configuration import TokenConfiguration
    from plugins.catalog import PluginContext

RootPublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

RSA_BITS = frozenset({2048, 3072, 4096})


class Pkcs11RootKey:
    """A `plugins.rootkey.RootKey` in a token. Made by `open_root`."""

    def __init__(self, device: Device, label: str, public_key: bytes) -> None:
        """Raises Unsupported for a key of another kind."""
        self.name = f"key_label {label!r}"
        self.public_key = public_key
        self._label = label
        self._device = device
        self._signer = Signer(device)
        self._verifier = supported(public_key, self.name)

    async def sign(self, message: bytes) -> bytes:
        mechanism, payload = _payload(self._verifier, message)
        [raw] = await self._signer.sign(self._label, mechanism, [payload])
        signature = raw
        if isinstance(self._verifier, ec.EllipticCurvePublicKey):
            signature = encoding.ecdsa_signature(raw, _curve(self._verifier))
        try:
            await asyncio.to_thread(_verify, self._verifier, message, signature)
        except InvalidSignature as error:
            raise PermanentlyUnusable(
                f"{self.name}: the device returned a signature that does not verify; it was not used"
            ) from error
        return signature

    async def close(self) -> None:
        await self._device.close()


async def open_root(
    settings: TokenConfiguration, key_label: str, context: PluginContext, *, certified_key: bytes | None = None
) -> Pkcs11RootKey:
    """The one private key of that label, ready to sign.

    `certified_key` is the DER SubjectPublicKeyInfo of the root's certificate, for tokens that keep no public key
    object. Raises NotFound without such a key, AlreadyExists for two, Unsupported for a type that a root cannot have,
    Refused for the PIN, ConfigurationError, TemporarilyUnavailable while the device is away. A token that the module
    does not show counts as away: it may be plugged in later, and until then the server has its intermediate.
    """
    marker = _marker(settings, context)
    device = Device(configuration.token_spec(settings), await pin_of(settings, marker), context.log)
    try:
        try:
            await device.open()
        except NoToken as error:
            raise TemporarilyUnavailable(str(error)) from error
        found = await device.call(FindKey(key_label), list[FoundKey])
        return Pkcs11RootKey(device, key_label, _public_key(found, key_label, device.name, certified_key))
    except BaseException:
        await device.close()
        raise


def _marker(settings: TokenConfiguration, context: PluginContext) -> Path:
    """Where a refused PIN is remembered."""
    if context.data_dir is not None:
        return Path(context.data_dir) / "pkcs11-root.pin-refused"
    if settings.pin_file is not None:
        return Path(f"{settings.pin_file}.refused")
    raise ConfigurationError("pkcs11: set data_dir, where it is remembered that a PIN was refused")


def _public_key(found: list[FoundKey], label: str, token: str, certified: bytes | None) -> bytes:
    if not found:
        raise NotFound(f"key_label: the token with {token} has no private key labelled {label!r}")
    if len(found) > 1:
        cka_ids = " and ".join(sorted(key.cka_id.hex() or "none" for key in found))
        raise AlreadyExists(
            f"key_label: the token with {token} has {len(found)} private keys labelled {label!r} (CKA_ID {cka_ids}); "
            "give them different labels"
        )
    public = encoding.public_key(found[0].public) if found[0].public is not None else certified
    if public is None and found[0].public is None:
        raise NotFound(
            f"key_label: the token with {token} has no public key object for {label!r}; a certificate must give it"
        )
    if public is None:
        raise Unsupported(f"key_label: {label!r} is a key on a curve that a root cannot have")
    return public


def supported(der: bytes, name: str) -> RootPublicKey:
    """The key of a DER SubjectPublicKeyInfo, if a root may have it. Raises Unsupported."""
    key = serialization.load_der_public_key(der)
    match key:
        case ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey() if key.key_size in RSA_BITS:
            return key
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            return key
        case _:
            raise Unsupported(f"{name}: a root's key is EC P-256 or P-384, RSA of 2048, 3072 or 4096 bits, or Ed25519")


def _curve(key: ec.EllipticCurvePublicKey) -> KeyType:
    return KeyType.EC_P256 if isinstance(key.curve, ec.SECP256R1) else KeyType.EC_P384


def _payload(key: RootPublicKey, message: bytes) -> tuple[Mechanism, bytes]:
    """How the token signs the message: it hashes only where the algorithm has it so."""
    match key:
        case ed25519.Ed25519PublicKey():
            return Mechanism.EDDSA, message
        case rsa.RSAPublicKey():
            return Mechanism.PKCS1, encoding.digest_info(hashlib.sha256(message).digest(), Hash.SHA256)
        case ec.EllipticCurvePublicKey():
            hashed = hashlib.sha256 if _curve(key) is KeyType.EC_P256 else hashlib.sha384
            return Mechanism.ECDSA, hashed(message).digest()


def _verify(key: RootPublicKey, message: bytes, signature: bytes) -> None:
    match key:
        case ed25519.Ed25519PublicKey():
            key.verify(signature, message)
        case rsa.RSAPublicKey():
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        case ec.EllipticCurvePublicKey():
            algorithm = hashes.SHA256() if _curve(key) is KeyType.EC_P256 else hashes.SHA384()
            key.verify(signature, message, ec.ECDSA(algorithm))
