"""Roots' keys in a token, made as in a ceremony by pkcs11-tool."""

from __future__ import annotations

import asyncio

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from keystores.errors import AlreadyExists, NotFound, PermanentlyUnusable, TemporarilyUnavailable, Unsupported
from keystores.pkcs11.batches import Signer
from keystores.pkcs11.configuration import TokenConfiguration
from keystores.pkcs11.protocol import Mechanism
from keystores.pkcs11.root import Pkcs11RootKey, open_root
from operations import logs
from plugins.catalog import PluginContext
from plugins.rootkey import RootKey
from tests.simulators import softhsm
from tests.simulators.softhsm import SoftHsm

KINDS = {
    "P-256": "EC:prime256v1",
    "P-384": "EC:secp384r1",
    "RSA 2048": "rsa:2048",
    "RSA 3072": "rsa:3072",
    "RSA 4096": "rsa:4096",
    "Ed25519": "EC:edwards25519",
}


def make(hsm: SoftHsm, kind: str, label: str = "root-2026", cka_id: str = "01") -> None:
    hsm.tool("--keypairgen", "--key-type", kind, "--label", label, "--id", cka_id, "--usage-sign")


async def opened(hsm: SoftHsm, *, certified_key: bytes | None = None) -> Pkcs11RootKey:
    settings = TokenConfiguration(module_path=softhsm.MODULE, token_label=hsm.label, pin_file=str(hsm.pin_file))
    context = PluginContext(trust_domain="example.org", data_dir=str(hsm.folder), log=logs.get("root"))
    return await open_root(settings, "root-2026", context, certified_key=certified_key)


def verify(der: bytes, message: bytes, signature: bytes) -> None:
    key = serialization.load_der_public_key(der)
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, message)
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, message, ec.ECDSA(hashes.SHA256() if key.key_size == 256 else hashes.SHA384()))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_a_root_of_each_kind_signs(hsm: SoftHsm, kind: str) -> None:
    make(hsm, kind)
    root: RootKey = await opened(hsm)
    assert root.name == "key_label 'root-2026'"
    for message in (b"", b"a message", b"m" * 5000):
        verify(root.public_key, message, await root.sign(message))
    await root.close()
    with pytest.raises(TemporarilyUnavailable):
        await root.sign(b"late")


async def test_a_root_that_is_not_there_is_named(hsm: SoftHsm) -> None:
    make(hsm, "EC:prime256v1", "another")
    with pytest.raises(NotFound, match="no private key labelled 'root-2026'"):
        await opened(hsm)


async def test_two_roots_of_one_label_are_refused(hsm: SoftHsm) -> None:
    make(hsm, "EC:prime256v1", cka_id="01")
    make(hsm, "EC:prime256v1", cka_id="02")
    with pytest.raises(AlreadyExists, match=r"2 private keys labelled 'root-2026' \(CKA_ID 01 and 02\)"):
        await opened(hsm)


async def test_a_curve_that_a_root_cannot_have_is_refused(hsm: SoftHsm) -> None:
    make(hsm, "EC:secp521r1")
    with pytest.raises(Unsupported, match="root"):
        await opened(hsm)


async def test_a_certificate_gives_the_public_key_that_a_token_lacks(hsm: SoftHsm) -> None:
    make(hsm, "EC:prime256v1")
    root = await opened(hsm)
    public_key = root.public_key
    await root.close()
    hsm.tool("--delete-object", "--type", "pubkey", "--id", "01")
    with pytest.raises(NotFound, match="no public key object"):
        await opened(hsm)
    root = await opened(hsm, certified_key=public_key)
    verify(public_key, b"message", await root.sign(b"message"))
    await root.close()


async def test_a_certificate_of_another_key_is_found_out(hsm: SoftHsm) -> None:
    make(hsm, "EC:prime256v1")
    hsm.tool("--delete-object", "--type", "pubkey", "--id", "01")
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    der = other.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    root = await opened(hsm, certified_key=der)
    with pytest.raises(PermanentlyUnusable, match=r"root-2026.*does not verify"):
        await root.sign(b"message")
    await root.close()


async def test_a_signature_of_something_else_does_not_leave(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Signer.sign

    async def lying(self: Signer, key: bytes | str, mechanism: Mechanism, payloads: list[bytes]) -> list[bytes]:
        return await honest(self, key, mechanism, [payload[::-1] for payload in payloads])

    make(hsm, "EC:edwards25519")
    root = await opened(hsm)
    monkeypatch.setattr(Signer, "sign", lying)
    with pytest.raises(PermanentlyUnusable, match="does not verify"):
        await root.sign(b"a message")
    await root.close()


async def test_callers_at_once_get_their_own_signatures(hsm: SoftHsm) -> None:
    make(hsm, "EC:prime256v1")
    root = await opened(hsm)
    messages = [b"message %d" % number for number in range(16)]
    for message, signature in zip(
        messages, await asyncio.gather(*(root.sign(message) for message in messages)), strict=True
    ):
        verify(root.public_key, message, signature)
    await root.close()
