"""Signatures of files as evmctl makes them, those of the machines, and ones that are not what they seem."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from hypothesis import given
from hypothesis import strategies as st

from attestors.tpm.ima import replay, signatures
from attestors.tpm.ima.model import ImaEntry, Prefix
from attestors.tpm.ima.signatures import Keys
from attestors.tpm.pcrs import IMA_PCR
from operations.errors import InvalidArgument
from tests.simulators.booted import GOLDEN, MACHINES, Boot, registers
from tests.simulators.pki import Authority, ec_key

SIGNERS = {name: (MACHINES / f"signer-{name}.pem").read_bytes() for name in ("rsa", "ec")}
KEYS: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey] = {
    "rsa-2048": rsa.generate_private_key(65537, 2048),
    "rsa-4096": rsa.generate_private_key(65537, 4096),
    "p-256": ec_key(),
    "p-384": ec_key(ec.SECP384R1()),
}
CONTENT = b"a file\n"


@cache
def golden() -> dict[str, ImaEntry]:
    quoted = registers(GOLDEN, "sha256").values[IMA_PCR]
    return {entry.path: entry for entry in replay.replay(Boot.of().ima, Prefix(), quoted, "sha256").entries}


def public(name: str) -> bytes:
    return (
        KEYS[name]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def measured(signature: bytes, algorithm: str = "sha256", content: bytes = CONTENT) -> ImaEntry:
    digest = hashlib.new(algorithm.removeprefix("verity:"), content).digest()
    return ImaEntry(IMA_PCR, "ima-sig", algorithm, digest, "/usr/bin/file", signature)


def signed(kind: int, version: int, name: str, algorithm: str = "sha256") -> bytes:
    """What a signer other than evmctl writes: a struct signature_v2_hdr and the signature."""
    number, hash_algorithm = {"sha256": (4, hashes.SHA256()), "sha1": (2, hashes.SHA1())}[algorithm]  # noqa: S303
    digest = hashlib.new(algorithm, CONTENT).digest()
    if version == 3:
        digest = hashlib.new(algorithm, bytes((kind, number)) + digest).digest()
    key = KEYS[name]
    how = utils.Prehashed(hash_algorithm)
    if isinstance(key, rsa.RSAPrivateKey):
        value = key.sign(digest, padding.PKCS1v15(), how)
    else:
        value = key.sign(digest, ec.ECDSA(how))
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[-4:]
    return struct.pack(">BBB4sH", kind, version, number, identifier, len(value)) + value


def evmctl(folder: Path, name: str, algorithm: str, *options: str) -> bytes:
    """security.ima as evmctl writes it."""
    (folder / "file").write_bytes(CONTENT)
    (folder / "key.pem").write_bytes(
        KEYS[name].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    done = subprocess.run(
        ["evmctl", "ima_sign", "--sigfile", "-a", algorithm, "-k", "key.pem", *options, "file"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "file.sig").read_bytes()


def test_files_that_the_machines_signed() -> None:
    for name, path in (("rsa", "/usr/bin/signed-rsa"), ("ec", "/usr/bin/signed-ec")):
        entry = golden()[path]
        assert Keys.load([SIGNERS[name]]).signed(entry)
        assert Keys.load(list(SIGNERS.values())).signed(entry)
        assert Keys.load([b"".join(SIGNERS.values())]).signed(entry)
        (other,) = SIGNERS.keys() - {name}
        assert not Keys.load([SIGNERS[other]]).signed(entry)
    assert not Keys.load(list(SIGNERS.values())).signed(golden()["/usr/bin/plain"])


@pytest.mark.parametrize("algorithm", ["sha224", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("name", KEYS)
def test_signatures_by_evmctl(tmp_path: Path, name: str, algorithm: str) -> None:
    keys = Keys.load([public(name)])
    signature = evmctl(tmp_path, name, algorithm)
    assert keys.signed(measured(signature, algorithm))
    assert keys.signed(measured(signature, algorithm))
    assert not keys.signed(measured(signature, algorithm, b"another file"))
    assert not keys.signed(measured(signature, "sha256" if algorithm != "sha256" else "sha512"))
    assert not keys.signed(measured(signature, f"verity:{algorithm}"))
    assert not Keys.load([public(other) for other in KEYS if other != name]).signed(measured(signature, algorithm))


def test_keys_are_known_by_their_certificates_names(tmp_path: Path) -> None:
    """A certificate may call its key otherwise than by its SHA-1, and evmctl as the certificate does."""
    certificate = Authority.root(key=ec_key()).der
    pem = x509.load_der_x509_certificate(certificate).public_bytes(serialization.Encoding.PEM)
    assert Keys.load([pem])
    key = KEYS["p-256"].public_key()
    renamed = x509.SubjectKeyIdentifier(b"named by chance, 1234")
    builder = _builder(key).add_extension(renamed, critical=False)
    named = builder.sign(ec_key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (tmp_path / "named.pem").write_bytes(named)
    signature = evmctl(tmp_path, "p-256", "sha256", "--keyid-from-cert", "named.pem")
    assert signature[3:7] == b"1234"
    assert Keys.load([named]).signed(measured(signature))
    assert Keys.load([named]).signed(measured(evmctl(tmp_path, "p-256", "sha256")))
    assert not Keys.load([public("p-256")]).signed(measured(signature))


def _builder(key: object) -> x509.CertificateBuilder:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    base = x509.load_pem_x509_certificate(SIGNERS["ec"])
    return (
        x509.CertificateBuilder()
        .subject_name(base.subject)
        .issuer_name(base.subject)
        .public_key(key)
        .serial_number(1)
        .not_valid_before(base.not_valid_before_utc)
        .not_valid_after(base.not_valid_after_utc)
    )


@pytest.mark.parametrize("name", ["rsa-2048", "p-256"])
def test_signatures_of_version_three(name: str) -> None:
    keys = Keys.load([public(name)])
    verity, structure = signed(6, 3, name), signed(3, 3, name)
    assert keys.signed(measured(verity, "verity:sha256"))
    assert keys.signed(measured(structure))
    # Neither counts for the other kind of digest, nor as one of version 2.
    assert not keys.signed(measured(verity))
    assert not keys.signed(measured(structure, "verity:sha256"))
    for changed in (b"\x03" + verity[1:], b"\x06" + structure[1:], b"\x03\x02" + structure[2:], signed(6, 2, name)):
        assert not keys.signed(measured(changed))
        assert not keys.signed(measured(changed, "verity:sha256"))


def test_weak_and_strange_signatures_do_not_count() -> None:
    keys = Keys.load([public("p-256")])
    good = signed(3, 2, "p-256")
    assert keys.signed(measured(good))
    assert not keys.signed(measured(signed(3, 2, "p-256", "sha1"), "sha1"))
    assert not keys.signed(ImaEntry(*_values(measured(good))[:6], violation=True))
    assert not keys.signed(ImaEntry(*_values(measured(good))[:5]))
    for bad in (
        b"",
        good[:9],
        good[:-1],
        good + b"\0",
        good[:7] + b"\xff\xff" + good[9:],
        b"\x05" + good[1:],
        good * 40,
    ):
        assert not keys.signed(measured(bad))
    for version in (0, 1, 4, 255):
        assert not keys.signed(measured(bytes((3, version)) + good[2:]))
    for number in (0, 2, 5, 8, 255):
        assert not keys.signed(measured(good[:2] + bytes((number,)) + good[3:]))


def _values(entry: ImaEntry) -> tuple[int, str, str, bytes, str, bytes | None]:
    return entry.pcr, entry.template, entry.algorithm, entry.digest, entry.path, entry.signature


@given(st.binary(max_size=100), st.integers(0, 110))
def test_altered_signatures_do_not_count(garbage: bytes, at: int) -> None:
    entry = golden()["/usr/bin/signed-ec"]
    assert entry.signature is not None
    altered = entry.signature[:at] + garbage + entry.signature[at + len(garbage) :]
    keys = Keys.load(list(SIGNERS.values()))
    changed = ImaEntry(*_values(entry)[:5], altered)
    assert keys.signed(changed) == (altered == entry.signature)


def test_what_verified_once_does_so_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "REMEMBERED", 1)
    keys = Keys.load(list(SIGNERS.values()))
    good = [golden()["/usr/bin/signed-rsa"], golden()["/usr/bin/signed-ec"]]
    bad = [ImaEntry(*_values(good[0])[:5], good[1].signature), ImaEntry(*_values(good[1])[:5], good[0].signature)]
    for _ in range(3):
        assert all(keys.signed(entry) for entry in good)
        assert not any(keys.signed(entry) for entry in bad)


def test_keys_that_cannot_be_used_say_why() -> None:
    edwards = ed25519.Ed25519PrivateKey.generate()
    private = edwards.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    other = edwards.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for pem, why in (
        (b"", "no certificate and no public key"),
        (b"\x30\x82garbage", "given in PEM"),
        (private, "'PRIVATE KEY' where a CERTIFICATE or a PUBLIC KEY was wanted"),
        (other, "RSA or ECDSA"),
        (SIGNERS["ec"].replace(b"\nM", b"\nN"), "cannot be read"),
        (public("p-256")[:60], "cannot be read"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            Keys.load([SIGNERS["rsa"], pem])
    assert not Keys.load([]).signed(golden()["/usr/bin/signed-rsa"])
    with pytest.raises(InvalidArgument, match="more than 64 keys"):
        Keys.load([public("p-256")] * 200)


@given(st.binary(max_size=200))
def test_garbage_is_no_key(garbage: bytes) -> None:
    with pytest.raises(InvalidArgument):
        Keys.load([garbage])
    with pytest.raises(InvalidArgument):
        Keys.load([b"-----BEGIN CERTIFICATE-----\n" + garbage])
