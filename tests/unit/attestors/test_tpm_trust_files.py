"""Files of CAs, revocation lists and hashes: what an operator gives, and what is told of what cannot be used."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from attestors.tpm.verification import endorsement
from attestors.tpm.verification.endorsement import Trust
from identity.pem import block
from operations.errors import ConfigurationError
from tests.simulators import tpm_pki as pki
from tests.simulators.pki import ec_key, spki

ROOT = pki.root()
MIDDLE = ROOT.authority("Acme TPM CA 7")
EK = ec_key()
HASH = hashlib.sha256(spki(EK)).hexdigest()


def write(path: Path, content: bytes | str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def pem(der: bytes, label: str = "CERTIFICATE") -> str:
    return block(label, der)


def test_files_of_trust(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    (folder / "old").mkdir(parents=True)
    write(folder / "root.pem", "Our root\n" + pem(ROOT.certificate) + pem(ROOT.certificate))
    write(folder / "middle.cer", MIDDLE.certificate)
    write(folder / "middle.crl", MIDDLE.revocation_list(9))
    write(folder / "root.crl.pem", pem(ROOT.revocation_list(), "X509 CRL"))
    write(folder / ".hidden", "whatever")
    hashes = write(tmp_path / "hashes", f"# TPMs of rack 7\n\n{HASH}  # node 12\n{'AB' * 32}\r\n")
    found = endorsement.load(str(folder), hashes)
    assert set(found.anchors) == {ROOT.certificate, MIDDLE.certificate}
    assert set(found.crls) == {MIDDLE.revocation_list(9), ROOT.revocation_list()} or len(found.crls) == 2
    assert found.hashes == {HASH, "ab" * 32}
    single = endorsement.load(str(folder / "root.pem"), "")
    assert single == Trust((ROOT.certificate,), (), frozenset())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither a certificate nor a revocation list"),
        ("hello", "neither a certificate nor a revocation list"),
        (b"\x30\x03abc", "cannot be read as a certificate: ASN.1 data are cut short"),
        (pem(ROOT.issue(spki(EK))), r"ca\.pem:1: .*is no CA's; to trust one endorsement key put its hash"),
        ("\n" + pem(b"\x30\x00", "PRIVATE KEY"), r"ca\.pem:2: PRIVATE KEY is neither"),
        ("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", r"ca\.pem:1: the PEM block is no base64"),
        (pem(ROOT.certificate) + "-----BEGIN CERTIFICATE-----\nMII", "a PEM block does not end"),
        (
            pem(b"\x30\x00", "X509 CRL"),
            r"ca\.pem:1: cannot be read as a revocation list: the.* is not made of",
        ),
        (pem(ROOT.revocation_list(), "X509 CRL"), "no CA certificate is there"),
    ],
    ids=["empty", "text", "broken", "leaf", "key", "base64", "cut short", "broken list", "lists only"],
)
def test_files_that_cannot_be_trusted(tmp_path: Path, content: bytes | str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        endorsement.load(write(tmp_path / "ca.pem", content), "")


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing: cannot be read: No such file"):
        endorsement.load(str(tmp_path / "missing"), "")
    with pytest.raises(ConfigurationError, match=r"missing: cannot be read: No such file"):
        endorsement.load("", str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no CA certificate is there"):
        endorsement.load(str(tmp_path / "empty"), "")
    with pytest.raises(ConfigurationError, match=r"hashes:2: \"abc\" is no SHA-256 of an endorsement key"):
        endorsement.load("", write(tmp_path / "hashes", f"{HASH}\nabc\n"))


def test_nothing_configured_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert endorsement.load("", "") == Trust((), (), frozenset())
    assert "every TPM is going to be refused" in caplog.text
