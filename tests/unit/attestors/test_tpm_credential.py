"""Credentials that are made here are activated by a TPM, and by no other one."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestors.tpm.verification import credential, endorsement
from keystores.tpm import public_area
from keystores.tpm.public_area import PublicArea
from operations.errors import InvalidArgument, Refused
from tests.simulators.tpm_manufacturer import Manufacturer, SoldTpm

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


def activate(tpm: SoldTpm, blob: bytes, secret: bytes) -> bytes:
    """TPM2_ActivateCredential by tpm2-tools, which want both parts in one file. Raises CalledProcessError."""
    folder = tpm.folder
    (folder / "blob").write_bytes(struct.pack(">II", 0xBADCC0DE, 1) + blob + secret)
    (folder / "secret").unlink(missing_ok=True)
    try:
        tpm.tool("startauthsession", "--policy-session", "-S", "session.ctx")
        tpm.tool("policysecret", "-S", "session.ctx", "-c", "e")
        command = ["tpm2_activatecredential", "-c", "ak.ctx", "-C", "ek.ctx", "-i", "blob", "-o", "secret"]
        subprocess.run(
            [*command, "-P", "session:session.ctx", "-T", tpm.tcti], cwd=folder, check=True, capture_output=True
        )
    finally:
        tpm.flush()
    return (folder / "secret").read_bytes()


@pytest.mark.parametrize("kind", ["rsa", "ecc", "ecc384"])
def test_a_tpm_activates_what_is_made_for_it(tpm: SoldTpm, kind: str) -> None:
    ek, name = made(tpm, kind)
    for secret in (SECRET, b"x"):
        assert activate(tpm, *credential.make(ek, name, secret)) == secret


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
