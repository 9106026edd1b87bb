"""Platform certificates: attribute certificates bound to the endorsement certificate, and swtpm's X.509 ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.tpm.verification import certificates, platform
from attestors.tpm.verification.platform import Platform
from attestors.tpm.verification.trust import Trust
from operations.errors import ConfigurationError, Refused
from tests.simulators import tpm_pki as pki
from tests.simulators.pki import ec_key, spki
from tests.simulators.shared_data import shared_data
from tests.simulators.tpm_manufacturer import Manufacturer
from tests.simulators.tpm_pki import DAY, NOW, Authority, changes

MAKER = pki.root("TPM CA")
EK = MAKER.issue(spki(ec_key()), serial=0x77)
HOLDER = (MAKER.subject, 0x77)
FACTORY = pki.root("Factory")
"""Signs platform certificates, and is no CA."""
FACTORY.certificate = FACTORY.issue(
    spki(FACTORY.key), subject=FACTORY.subject, extensions=(pki.basic_constraints(ca=False), pki.key_usage(0))
)
CALLED = pki.alternative_names(
    pki.name(
        (("2.23.133.5.1.1", "Acme"),),
        (("2.23.133.5.1.4", "Anvil"), ("2.23.133.5.1.5", "2.1")),
        (("2.23.133.5.1.6", "SN-1"),),
    ),
    critical=False,
)
ACME = Platform("Acme", "Anvil", "2.1", "SN-1")


def trust(*anchors: Authority, crls: Sequence[bytes] = ()) -> Trust:
    return Trust(tuple(anchor.certificate for anchor in anchors), tuple(crls), frozenset())


def verify(*given: bytes, trusted: Trust | None = None) -> Platform:
    return platform.verify(given, trusted or trust(FACTORY), EK, NOW)


def attributes(by: Authority = FACTORY, extra: Sequence[bytes] = (), not_after: datetime = NOW + DAY) -> bytes:
    return by.attribute_certificate(HOLDER, extensions=(CALLED, *extra), not_after=not_after)


def test_an_attribute_certificate() -> None:
    assert verify(attributes()) == ACME


def test_the_first_that_holds_counts() -> None:
    assert verify(b"junk", attributes(pki.root("Other")), attributes()) == ACME


def test_a_signer_below_a_trusted_ca() -> None:
    root = pki.root("Factory Root")
    signer = root.authority("Line 7", extensions=(pki.basic_constraints(ca=False), pki.key_usage(0)))
    assert verify(attributes(signer), signer.certificate, trusted=trust(root)) == ACME
    with pytest.raises(Refused, match="nobody is trusted who is named Line 7"):
        verify(attributes(signer), trusted=trust(root))
    with pytest.raises(Refused, match="no trusted CA is named Factory Root"):
        verify(attributes(signer), signer.certificate)


def test_names_of_the_first_profile() -> None:
    old = pki.alternative_names(pki.name((("2.23.133.2.4", "Acme"), ("2.23.133.2.5", "Anvil"), ("2.23.133.2.6", "2"))))
    found = verify(FACTORY.attribute_certificate(HOLDER, extensions=(old,)))
    assert found == Platform("Acme", "Anvil", "2", "")


MUTE = pki.root("Factory")
MUTE.certificate = MUTE.issue(spki(MUTE.key), subject=MUTE.subject, extensions=(pki.key_usage(2),))
CRL_SIGNER = pki.root("Factory 2")
REFUSED: dict[str, tuple[Callable[[], Platform], str]] = {
    "none": (verify, "the node has no platform certificate"),
    "another TPM's": (
        lambda: verify(FACTORY.attribute_certificate((MAKER.subject, 0x78), extensions=(CALLED,))),
        "of another endorsement certificate",
    ),
    "another maker's": (
        lambda: verify(FACTORY.attribute_certificate((FACTORY.subject, 0x77), extensions=(CALLED,))),
        "of another endorsement certificate",
    ),
    "forged": (lambda: verify(attributes(pki.root("Factory"))), "not signed by its issuer"),
    "unknown": (lambda: verify(attributes(pki.root("Other"))), "nobody is trusted who is named Other"),
    "expired": (lambda: verify(attributes(not_after=NOW - DAY / 2)), "expired on 2025-12-31"),
    "critical": (
        lambda: verify(attributes(extra=[pki.extension("1.2.3", b"", critical=True)])),
        r"critical extension 1\.2\.3",
    ),
    "revoked": (
        lambda: verify(attributes(CRL_SIGNER), trusted=trust(CRL_SIGNER, crls=[CRL_SIGNER.revocation_list(5)])),
        "was revoked by Factory 2",
    ),
    "must not sign": (lambda: verify(attributes(MUTE), trusted=trust(MUTE)), "must sign nothing"),
    "too many": (lambda: verify(*[attributes()] * 17), "at most 16 are read"),
    "junk": (lambda: verify(b"junk"), "no platform certificate holds"),
    "huge": (lambda: verify(attributes(extra=[pki.extension("1.2.3", bytes(20000))])), "at most 16384"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_platform_certificate_that_is_refused(kind: str) -> None:
    attempt, reason = REFUSED[kind]
    with pytest.raises(Refused, match=reason):
        attempt()


def test_files_of_signers(tmp_path: Path) -> None:
    file = tmp_path / "factory.cer"
    file.write_bytes(FACTORY.certificate)
    assert verify(attributes(), trusted=platform.load(str(file))) == ACME
    with pytest.raises(ConfigurationError, match="cannot be read"):
        platform.load(str(tmp_path / "missing"))


def test_what_swtpm_makes(tmp_path: Path) -> None:
    manufacturer = Manufacturer(tmp_path / "ca")
    sold, other = manufacturer.make(tmp_path / "tpm"), manufacturer.make(tmp_path / "other")
    trusted = platform.load(str(manufacturer.root_path))
    later = NOW.replace(year=2090)
    given = (sold.platform_certificate, manufacturer.intermediate)
    found = platform.verify(given, trusted, sold.certificates["rsa"], later)
    assert found == Platform("Acme", "Anvil", "2.1", "")
    with pytest.raises(Refused, match="of another endorsement key"):
        platform.verify(given, trusted, other.certificates["rsa"], later)
    with pytest.raises(Refused, match="no trusted CA is named swtpm-localca"):
        platform.verify(given[:1], trusted, sold.certificates["rsa"], later)
    with pytest.raises(Refused, match="the node has no platform certificate"):  # an endorsement certificate is none
        platform.verify((sold.certificates["rsa"],), trusted, sold.certificates["rsa"], later)


GOOD = attributes()
BOUNDED = settings(max_examples=400, deadline=None)


def test_any_changed_bit_is_refused() -> None:
    for changed in changes(GOOD):
        with pytest.raises(Refused):
            verify(changed)


@BOUNDED
@given(at=st.integers(0, 2000), size=st.integers(0, 40), noise=st.binary(max_size=40))
def test_what_is_broken_is_refused(at: int, size: int, noise: bytes) -> None:
    start = at % len(GOOD)
    broken = GOOD[:start] + noise + GOOD[start + size :]
    if broken != GOOD:
        with pytest.raises(Refused):
            verify(broken)


FIELD = shared_data("platform-certificates")
MACHINES = {
    "Intel_nuc1.cer": Platform("Intel Corporation", "NUC7i5DNHE", "J71739-401", "DW1600420300110_BTDN732000QM"),
    "Intel_nuc_pc.cer": Platform("Intel", "DE3815TYKH", "H26998-402", ""),
    "Intel_pc1.cer": Platform("", "", "", ""),
    "Intel_pc4.cer": Platform("Intel", "DE3815TYKH", "H26998-402", "G6YK42300C87,GETY421001GV"),
    "lenovo.cer": Platform("LENOVO", "20L7002BUS", "ThinkPad T480s", "PF0ZAQSW_L1HF7CS001A"),
    "plat_cert1.cer": Platform("Intel", "S2600KP", "H76962-350", "BQKP52840678"),
}


@pytest.mark.skipif(not FIELD, reason="needs shared/data above the repository")
def test_certificates_of_real_machines() -> None:
    """Each is read. Five are by the signer whose certificate is there; other keys had its name, before and after."""
    read = {path.name: path.read_bytes() for path in FIELD}
    signing = read.pop("IntelSigningKey_20April2017.cer")
    signer = certificates.parse(signing)
    assert signer.title == "www.intel.com"
    found = {name: platform.parse(data) for name, data in read.items()}
    assert len(found) == 12
    for name, said in MACHINES.items():
        assert platform.describe(found[name].extensions) == said
    by_signer = ["Intel_nuc_pc.cer", "Intel_nuc_pc2.cer", "Intel_pc1.cer", "Intel_pc2.cer", "Intel_pc3.cer"]
    for name in by_signer:  # theirs are of 2017, with SHA-1, which proves nothing any more
        signed = found[name].signed
        with pytest.raises(Refused, match="signed with SHA-1"):
            certificates.verify_signature(signed, signer.key, name)
        assert isinstance(signer.key, rsa.RSAPublicKey)
        sha1 = hashes.SHA1()  # noqa: S303 - what was signed then
        signer.key.verify(signed.signature, signed.octets, padding.PKCS1v15(), sha1)
    for data in read.values():
        with pytest.raises(Refused, match="of another endorsement certificate"):
            platform.verify((data,), Trust((signing,), (), frozenset()), EK, datetime(2018, 12, 1, tzinfo=UTC))
