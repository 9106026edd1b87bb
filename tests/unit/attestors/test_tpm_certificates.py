"""Certificates about TPMs: none that was changed is believed, none breaks a reader, and those of makers are read."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestors.tpm.messages import Hello
from attestors.tpm.verification import certificates, endorsement, paths, revocation
from attestors.tpm.verification.certificates import Certificate
from attestors.tpm.verification.endorsement import EK_CERTIFICATE, Endorsement, Trust
from keystores.public_keys import PublicKey
from operations.errors import InvalidArgument, Refused
from tests.simulators import tpm_pki as pki
from tests.simulators.pki import ec_key, spki
from tests.simulators.shared_data import shared_data
from tests.simulators.tpm_pki import NOW, Authority, changes, ek_public

ROOT = pki.root()
MIDDLE = ROOT.authority("Acme TPM CA 7")
EK = ec_key()


def verify(*chain: bytes, ek: bytes | None = None) -> Endorsement:
    hello = Hello(ek_public=ek_public(EK) if ek is None else ek, ak_public=b"", ek_certificates=chain)
    return endorsement.verify(hello, Trust((ROOT.certificate,), (), frozenset()), NOW)


CHAIN = (MIDDLE.issue(spki(EK)), MIDDLE.certificate)
BOUNDED = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_any_changed_bit_of_a_chain_is_refused() -> None:
    for changed in changes(CHAIN[0]):
        with pytest.raises(Refused):
            verify(changed, CHAIN[1])
    for changed in changes(CHAIN[1]):
        with pytest.raises(Refused):
            verify(CHAIN[0], changed)


def test_any_changed_bit_of_the_key_is_refused() -> None:
    """What is no part of the templates is proven by activation alone: a key of another Name opens no credential."""
    name = verify(*CHAIN).public.name
    others = 0
    for changed in changes(ek_public(EK)):
        try:
            found = verify(*CHAIN, ek=changed)
        except (InvalidArgument, Refused):
            continue
        others += 1
        assert found.public.key == EK.public_key()
        assert found.public.name != name
    assert others < 32  # attributes that templates leave open


@BOUNDED
@given(data=st.binary(max_size=300))
def test_noise_is_malformed(data: bytes) -> None:
    for parse in (certificates.parse, revocation.parse):
        with pytest.raises(InvalidArgument):
            parse(data)


@BOUNDED
@given(at=st.integers(0, 2000), size=st.integers(0, 40), noise=st.binary(max_size=40))
def test_a_broken_certificate_is_read_or_malformed(at: int, size: int, noise: bytes) -> None:
    for whole, parse in ((CHAIN[0], certificates.parse), (ROOT.revocation_list(1, 2), revocation.parse)):
        start = at % len(whole)
        with contextlib.suppress(InvalidArgument):
            parse(whole[:start] + noise + whole[start + size :])


def test_crossing_certificates_cost_a_bounded_number_of_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen certificates of one name, each below another, make more paths than anybody can try."""
    checks = 0
    checked = certificates.verify_signature

    def counted(signed: certificates.Signed, key: PublicKey | None, what: str, instead: str) -> None:
        nonlocal checks
        checks += 1
        checked(signed, key, what, instead)

    monkeypatch.setattr(certificates, "verify_signature", counted)
    crossing = Authority(pki.name(((pki.CN, "Crossing"),)))
    chain = [
        crossing.issue(spki(crossing.key), subject=crossing.subject, extensions=pki.AUTHORITY, serial=number)
        for number in range(15)
    ]
    with pytest.raises(Refused, match="more paths than are looked at"):
        verify(crossing.issue(spki(EK)), *chain)
    assert checks <= 48


def test_a_long_chain() -> None:
    chain = [ROOT.authority("CA 1")]
    for number in range(2, 10):
        chain.append(chain[-1].authority(f"CA {number}"))
    for length, longest in ((6, True), (7, False)):
        below = [one.certificate for one in chain[:length]]
        if longest:
            assert verify(chain[length - 1].issue(spki(EK)), *below).certified
        else:
            with pytest.raises(Refused, match="a chain longer than the 8 that are looked at"):
                verify(chain[length - 1].issue(spki(EK)), *below)


FIELD = shared_data("ek-roots")
EXTERNAL = {
    "Alibaba_Cloud_vTPM_EK": "Aliyun TPM Root CA",
    "IFX_RSA_RT": "VeriSign Trusted Platform Module Root CA",
    "Nationz_TPM_EK": "Nationz TPM Root CA",
    "STM_ECC_01RT": "GlobalSign Trusted Platform Module ECC Root CA",
}
"""Whose issuers are not among them."""


@pytest.mark.skipif(not FIELD, reason="needs shared/data above the repository")
def test_certificates_of_manufacturers() -> None:
    """Each is read and may be an anchor; each that another one issued is verified, or refused for its SHA-1."""
    folder = endorsement.load(str(FIELD[0].parent), "")
    found: dict[str, Certificate] = {}
    for path in FIELD:
        [der] = endorsement.load(str(path), "").anchors
        found[path.stem] = certificates.parse(der)
    assert {certificate.raw for certificate in found.values()} == set(folder.anchors)
    verified: list[str] = []
    reasons: dict[str, str] = {}
    for name, certificate in found.items():
        others = tuple(der for der in folder.anchors if der != certificate.raw or certificate.self_issued)
        anchors = paths.Authorities(paths.by_subject([certificates.authority(der) for der in others]))
        try:
            paths.verified(certificate, (), anchors, EK_CERTIFICATE, datetime(2024, 6, 1, tzinfo=UTC))
        except Refused as error:
            reasons[name] = str(error)
        else:
            verified.append(name)
    for name, issuer in EXTERNAL.items():
        assert f"no trusted CA is named {issuer}" in reasons.pop(name)
    assert all("is signed with SHA-1, which proves nothing any more" in reason for reason in reasons.values())
    assert all(name.startswith(("IFX", "NTC")) for name in reasons)
    assert (len(found), len(verified), len(reasons)) == (51, 28, 19)
