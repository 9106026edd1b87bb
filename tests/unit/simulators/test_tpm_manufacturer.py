"""The simulator of TPMs with certificates makes what tests of attestation rely on."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.simulators.tpm_manufacturer import EK_ECC_P384, EK_RSA, NV_CHAIN, NV_ECC, Manufacturer


def test_a_tpm_has_certified_endorsement_keys_and_a_chain(tmp_path: Path) -> None:
    manufacturer = Manufacturer(tmp_path / "ca")
    with manufacturer.started(tmp_path / "tpm", chain_in_nv=True) as tpm:
        found = {kind: x509.load_der_x509_certificate(der) for kind, der in tpm.certificates.items()}
        keys = {kind: certificate.public_key() for kind, certificate in found.items()}
        assert isinstance(keys["rsa"], rsa.RSAPublicKey)
        assert keys["rsa"].key_size == 2048
        assert isinstance(keys["ecc"], ec.EllipticCurvePublicKey)
        assert isinstance(keys["ecc"].curve, ec.SECP256R1)
        intermediate = x509.load_der_x509_certificate(manufacturer.intermediate)
        for certificate in found.values():
            certificate.verify_directly_issued_by(intermediate)
        intermediate.verify_directly_issued_by(x509.load_der_x509_certificate(manufacturer.root))
        assert x509.load_der_x509_certificate(tpm.platform_certificate).public_key() == keys["rsa"]
        assert tpm.read_nv(NV_ECC) == tpm.certificates["ecc"]
        assert tpm.read_nv(NV_CHAIN) == manufacturer.intermediate
        assert tpm.handles() == [EK_RSA, EK_ECC_P384]


def test_a_tpm_may_be_sold_without_persistent_keys(tmp_path: Path) -> None:
    with Manufacturer(tmp_path / "ca").started(tmp_path / "tpm", persistent=False) as tpm:
        assert tpm.handles() == []
