"""Credentials that are made here are activated by a TPM, and by no other one."""

from __future__ import annotations

import hashlib
import hmac
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from tpm2_pytss import TPM2B_PUBLIC
from tpm2_pytss.utils import make_credential

from attestors.tpm.verification import credential, endorsement
from keystores.tpm import public_area
from keystores.tpm.public_area import PublicArea
from operations.errors import InvalidArgument, Refused
from tests.simulators.pki import PrivateKey, ec_key
from tests.simulators.tpm_manufacturer import Manufacturer, SoldTpm
from tests.simulators.tpm_pki import ek_public

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoldTpm]:
    folder = tmp_path_factory.mktemp("sold")
    with Manufacturer(folder / "ca").started(folder / "tpm", persistent=False) as started:
        yield started


def made(tpm: SoldTpm, kind: str) -> tuple[PublicArea, bytes]:
    """An EK and, below it, an AK, by tpm2-tools: the EK's public area, and the AK's Name."""
    tpm.tool("createek", "-G", kind, "-c", "ek.ctx", "-u", "ek.pub", "-f", "tss")
    tpm.flush()
    arguments = ("-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-n", "ak.name")
    tpm.tool("createak", *arguments)
    tpm.flush()
    return endorsement.endorsement_key((tpm.folder / "ek.pub").read_bytes()), (tpm.folder / "ak.name").read_bytes()


def activate(tpm: SoldTpm, blob: bytes, secret: bytes, *, policy: bool = True) -> bytes:
    """TPM2_ActivateCredential by tpm2-tools, which want both parts in one file. Raises CalledProcessError.

    Keys of the high range have a password besides their policy, which is empty.
    """
    folder = tpm.folder
    (folder / "blob").write_bytes(struct.pack(">II", 0xBADCC0DE, 1) + blob + secret)
    command = ["tpm2_activatecredential", "-T", tpm.tcti, "-c", "ak.ctx", "-C", "ek.ctx", "-i", "blob", "-o", "secret"]
    try:
        if policy:
            tpm.tool("startauthsession", "--policy-session", "-S", "session.ctx")
            tpm.tool("policysecret", "-S", "session.ctx", "-c", "e")
            command += ["-P", "session:session.ctx"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    finally:
        tpm.flush()
    return (folder / "secret").read_bytes()


@pytest.mark.parametrize("kind", ["rsa", "ecc", "ecc384"])
def test_a_tpm_activates_what_is_made_for_it(tpm: SoldTpm, kind: str) -> None:
    ek, name = made(tpm, kind)
    for secret in (SECRET, b"x"):
        assert activate(tpm, *credential.make(ek, name, secret), policy=kind != "ecc384") == secret


@pytest.mark.parametrize("kind", ["rsa", "ecc"])
def test_a_tpm_activates_nothing_else(tpm: SoldTpm, kind: str) -> None:
    ek, name = made(tpm, kind)
    blob, secret = credential.make(ek, name, SECRET)
    other, _ = credential.make(ek, name, SECRET)
    for wrong in ((blob[:-1] + bytes([blob[-1] ^ 1]), secret), (other, secret)):
        with pytest.raises(subprocess.CalledProcessError):
            activate(tpm, *wrong)
    with pytest.raises(subprocess.CalledProcessError):  # for another attestation key
        activate(tpm, *credential.make(ek, name[:-1] + bytes([name[-1] ^ 1]), SECRET))


def test_secrets_that_no_credential_holds(tpm: SoldTpm) -> None:
    ek, name = made(tpm, "ecc")
    for secret in (b"", bytes(33)):
        with pytest.raises(InvalidArgument, match="1 to 32 bytes"):
            credential.make(ek, name, secret)


def test_a_key_that_protects_nothing(tpm: SoldTpm, tmp_path: Path) -> None:
    made(tpm, "ecc")
    tpm.tool("readpublic", "-c", "ak.ctx", "-f", "tss", "-o", "ak.pub")
    tpm.flush()
    area = public_area.parse((tpm.folder / "ak.pub").read_bytes())
    with pytest.raises(Refused, match="AES"):
        credential.make(area, area.name, SECRET)


def test_another_library_makes_the_same() -> None:
    """tpm2-pytss' make_credential: what it makes and what is made here open in the same way, with the same sizes."""
    for key in (ec_key(), rsa.generate_private_key(65537, 2048)):
        area = ek_public(key)
        name = public_area.parse(area).name
        theirs = make_credential(TPM2B_PUBLIC.unmarshal(area)[0], SECRET, name)
        ours = credential.make(public_area.parse(area), name, SECRET)
        made = [(theirs[0].marshal(), theirs[1].marshal()), ours]
        assert [opened(key, name, *one) for one in made] == [SECRET, SECRET]
        assert [len(part) for part in made[0]] == [len(part) for part in made[1]]


def opened(key: PrivateKey, name: bytes, blob: bytes, secret: bytes) -> bytes:
    """TPM2_ActivateCredential by the private key, for SHA-256 and AES-128."""
    if isinstance(key, rsa.RSAPrivateKey):
        sha256 = hashes.SHA256()
        seed = key.decrypt(secret[2:], padding.OAEP(padding.MGF1(sha256), sha256, b"IDENTITY\0"))
    else:
        x, y = secret[4:36], secret[38:70]
        point = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1()).public_key()
        own = key.public_key().public_numbers().x.to_bytes(32)
        z = key.exchange(ec.ECDH(), point)
        seed = hashlib.sha256(b"\0\0\0\1" + z + b"IDENTITY\0" + x + own).digest()
    integrity, identity = blob[4:36], blob[36:]
    wrapping = hmac.digest(seed, b"\0\0\0\1INTEGRITY\0" + (256).to_bytes(4), "sha256")
    assert integrity == hmac.digest(wrapping, identity + name, "sha256")
    cipher = hmac.digest(seed, b"\0\0\0\1STORAGE\0" + name + (128).to_bytes(4), "sha256")[:16]
    decryptor = Cipher(algorithms.AES(cipher), CFB(bytes(16))).decryptor()
    return (decryptor.update(identity) + decryptor.finalize())[2:]
