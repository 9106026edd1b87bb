"""Which endorsement keys are believed to be TPMs', by certificates of all kinds and by hashes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from attestors.tpm.messages import Hello
from attestors.tpm.verification import endorsement, revocation
from attestors.tpm.verification.endorsement import Endorsement, Trust
from identity.asn1 import BIT_STRING, element, object_identifier
from operations.errors import InvalidArgument, Refused
from tests.simulators import tpm_pki as pki
from tests.simulators.pki import ec_key, spki
from tests.simulators.tpm_manufacturer import MADE_BY_HAND, Manufacturer
from tests.simulators.tpm_pki import DAY, EK_ATTRIBUTES, NOW, Authority, ek_public, sized

ROOT = pki.root()
MIDDLE = ROOT.authority("Acme TPM CA 7")
EK = ec_key()
HASH = hashlib.sha256(spki(EK)).hexdigest()


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def trust(*anchors: bytes, crls: Sequence[bytes] = (), hashes: Sequence[str] = ()) -> Trust:
    return Trust(anchors, tuple(crls), frozenset(hashes))


def verify(*chain: bytes, trusted: Trust | None = None, ek: bytes | None = None) -> Endorsement:
    hello = Hello(ek_public=ek_public(EK) if ek is None else ek, ak_public=b"", ek_certificates=chain)
    return endorsement.verify(hello, trusted or trust(ROOT.certificate), NOW)


def test_a_chain_by_an_intermediate_of_the_node() -> None:
    found = verify(MIDDLE.issue(spki(EK)), MIDDLE.certificate)
    assert (found.hash, found.certified, found.listed) == (HASH, True, False)
    assert (found.manufacturer, found.model, found.firmware) == ("IFX", "SLB9670", "7.85")


def test_a_chain_by_an_intermediate_of_the_operator() -> None:
    both = trust(ROOT.certificate, MIDDLE.certificate)
    assert verify(MIDDLE.issue(spki(EK)), trusted=both).certified


def test_an_intermediate_alone_may_be_the_anchor() -> None:
    assert verify(MIDDLE.issue(spki(EK)), trusted=trust(MIDDLE.certificate)).certified


def test_a_key_by_its_hash() -> None:
    found = verify(trusted=trust(hashes=[HASH]))
    assert (found.certified, found.listed, found.manufacturer) == (False, True, "")


def test_a_listed_key_whose_certificate_counts_for_nothing() -> None:
    stranger = pki.root("Stranger").issue(spki(EK))
    found = verify(stranger, trusted=trust(ROOT.certificate, hashes=[HASH]))
    assert (found.certified, found.listed, found.model) == (False, True, "")
    both = verify(ROOT.issue(spki(EK)), trusted=trust(ROOT.certificate, hashes=[HASH]))
    assert (both.certified, both.listed) == (True, True)


@pytest.mark.parametrize(
    ("trusted", "reason"),
    [
        (trust(), "no CAs and no hashes are configured"),
        (trust(hashes=["00" * 32]), "endorsement_ca_path is not set"),
        (trust(ROOT.certificate), "the node has no certificate of it"),
    ],
)
def test_a_key_that_nobody_vouches_for(trusted: Trust, reason: str) -> None:
    with pytest.raises(Refused, match=f"{HASH} is not known here.*{reason}"):
        verify(trusted=trusted)


def directory(*relative: Sequence[tuple[str, str]]) -> Sequence[bytes]:
    return (*pki.ENDORSEMENT[:3], pki.alternative_names(pki.name(*relative)))


OAEP = pki.sequence(
    pki.sequence(object_identifier("1.2.840.113549.1.1.7"), pki.sequence()),
    element(
        BIT_STRING,
        b"\0" + pki.sequence(pki.integer(rsa_key().public_key().public_numbers().n), pki.integer(65537)),
    ),
)
TOLERATED: dict[str, Callable[[], bytes]] = {
    "several attributes in one relative name": lambda: ROOT.issue(
        spki(EK),
        extensions=directory([(pki.VERSION, "id:00070055"), (pki.MANUFACTURER, "id:49465800"), (pki.MODEL, "SLB9670")]),
    ),
    "names that are not critical": lambda: ROOT.issue(
        spki(EK), extensions=(*pki.ENDORSEMENT[:3], pki.alternative_names(pki.called(), critical=False))
    ),
    "no usages and no constraints": lambda: ROOT.issue(spki(EK), extensions=pki.ENDORSEMENT[3:]),
    "key agreement only": lambda: ROOT.issue(spki(EK), extensions=(pki.key_usage(4), pki.ENDORSEMENT[3])),
    "a negative serial number": lambda: ROOT.issue(spki(EK), serial=-0x7FFF_FFFF_FFFF),
    "a serial number of zero": lambda: ROOT.issue(spki(EK), serial=0),
    "a subject": lambda: ROOT.issue(spki(EK), subject=pki.name(((pki.CN, "unknown"),))),
    "no end": lambda: ROOT.issue(spki(EK), not_after=NOW.replace(year=9999)),
    "zeros behind it": lambda: ROOT.issue(spki(EK)) + bytes(500),
    "ones behind it": lambda: ROOT.issue(spki(EK)) + b"\xff" * 9,
    "the header of a stored certificate": lambda: b"\x10\x01\x00\x03\x00" + ROOT.issue(spki(EK)),
    "an extension of the manufacturer's": lambda: ROOT.issue(
        spki(EK), extensions=(*pki.ENDORSEMENT, pki.extension("1.3.6.1.4.1.1.2", b"what?"))
    ),
    "a length with leading zeros": lambda: ROOT.issue(
        spki(EK), extensions=(*pki.ENDORSEMENT[:3], long_length(pki.ENDORSEMENT[3]))
    ),
}


def long_length(encoded: bytes) -> bytes:
    """The same element, its length in more octets than it takes."""
    assert encoded[1] < 0x80
    return encoded[:1] + b"\x83\0\0" + encoded[1:]


@pytest.mark.parametrize("kind", TOLERATED)
def test_what_manufacturers_make_is_taken(kind: str) -> None:
    found = verify(TOLERATED[kind]())
    assert (found.certified, found.manufacturer, found.model, found.firmware) == (True, "IFX", "SLB9670", "7.85")


@pytest.mark.parametrize(
    "names",
    [
        (),
        (pki.extension("2.5.29.17", b"\x30\x05\xa4", critical=True),),
        (pki.extension("2.5.29.17", pki.sequence(element(0x82, b"tpm.example.org"))),),
    ],
    ids=["missing", "malformed", "others"],
)
def test_names_say_something_or_nothing(names: Sequence[bytes]) -> None:
    found = verify(ROOT.issue(spki(EK), extensions=(*pki.ENDORSEMENT[:3], *names)))
    assert (found.certified, found.manufacturer, found.model, found.firmware) == (True, "", "", "")


def test_texts_of_a_certificate_stay_in_a_line() -> None:
    found = verify(
        ROOT.issue(
            spki(EK),
            extensions=directory([(pki.MANUFACTURER, "Ac\nme"), (pki.MODEL, "x" * 999), (pki.VERSION, "id:7.2")]),
        )
    )
    assert (found.manufacturer, found.model, found.firmware) == ("Acme", "x" * 128, "id:7.2")


@pytest.mark.parametrize(
    ("manufacturer", "version", "read"),
    [
        ("id:49465800", "id:0755", ("IFX", "7.85")),
        ("id:53544D20", "id:00010102", ("STM", "1.258")),
        ("id:494e5443", "id:01F4000F", ("INTC", "500.15")),
        ("id:00001014", "7.2", ("id:00001014", "7.2")),
        ("Acme", "id:75", ("Acme", "id:75")),
    ],
)
def test_how_manufacturers_and_versions_are_written(manufacturer: str, version: str, read: tuple[str, str]) -> None:
    names = pki.alternative_names(pki.called(manufacturer, "x", version))
    found = verify(ROOT.issue(spki(EK), extensions=(*pki.ENDORSEMENT[:3], names)))
    assert (found.manufacturer, found.firmware) == read


def test_an_rsa_key_for_oaep_only() -> None:
    assert verify(ROOT.issue(OAEP), ek=ek_public(rsa_key())).certified
    assert verify(ROOT.issue(spki(rsa_key())), ek=ek_public(rsa_key())).certified


def test_a_modulus_without_its_sign_octet() -> None:
    numbers = rsa_key().public_key().public_numbers()
    bare = pki.sequence(element(0x02, numbers.n.to_bytes(256)), pki.integer(65537))
    key = pki.sequence(
        pki.sequence(object_identifier("1.2.840.113549.1.1.1"), b"\x05\x00"), element(BIT_STRING, b"\0" + bare)
    )
    assert verify(ROOT.issue(key), ek=ek_public(rsa_key())).certified


def test_names_match_as_people_read_them() -> None:
    """An issuer in another kind of string, case or order within a set (RFC 5280, 7.1) is still that issuer."""
    written = pki.sequence(
        pki.sequence(pki.attribute("2.5.4.6", "US", 0x13), pki.attribute(pki.CN, "ACME  Root", 0x13), tag=pki.SET)
    )
    read = pki.sequence(pki.sequence(pki.attribute(pki.CN, "Acme Root"), pki.attribute("2.5.4.6", "US"), tag=pki.SET))
    anchor = Authority(read)
    assert verify(Authority(written, anchor.key, b"-").issue(spki(EK)), trusted=trust(anchor.certificate)).certified


LATER = NOW + DAY
REFUSED: dict[str, tuple[Callable[[], Sequence[bytes]], str]] = {
    "unknown root": (lambda: [pki.root("Stranger").issue(spki(EK))], "no trusted CA is named Stranger"),
    "forged root": (lambda: [pki.root().issue(spki(EK))], "not signed by its issuer"),
    "no intermediate": (lambda: [MIDDLE.issue(spki(EK))], "no trusted CA is named Acme TPM CA 7"),
    "another key": (lambda: [ROOT.issue(spki(ec_key()))], "of another key"),
    "expired": (lambda: [ROOT.issue(spki(EK), not_after=NOW - DAY / 2)], "expired on 2025-12-31"),
    "not yet": (lambda: [ROOT.issue(spki(EK), not_before=LATER)], "not valid before 2026-01-02"),
    "expired intermediate": (lambda: below(ROOT.authority("CA 8", not_after=NOW - DAY / 2)), "CA 8 expired"),
    "a CA's": (lambda: [ROOT.issue(spki(EK), extensions=pki.AUTHORITY)], "a CA's, not an endorsement key's"),
    "for servers": (
        lambda: [ROOT.issue(spki(EK), extensions=(pki.purposes("1.3.6.1.5.5.7.3.1"),))],
        "for other purposes",
    ),
    "to sign": (lambda: [ROOT.issue(spki(EK), extensions=(pki.key_usage(0),))], "must not encipher"),
    "critical": (
        lambda: [ROOT.issue(spki(EK), extensions=(pki.extension("1.2.3", b"", critical=True),))],
        "critical extension 1.2.3",
    ),
    "twice": (lambda: [ROOT.issue(spki(EK), extensions=pki.ENDORSEMENT[:1] * 2)], "there twice"),
    "intermediate no CA": (
        lambda: below(ROOT.authority("CA 8", extensions=(pki.basic_constraints(ca=False),))),
        "CA 8 is no CA's",
    ),
    "intermediate without constraints": (lambda: below(ROOT.authority("CA 8", extensions=())), "CA 8 is no CA's"),
    "intermediate must not sign": (
        lambda: below(ROOT.authority("CA 8", extensions=(pki.basic_constraints(ca=True), pki.key_usage(6)))),
        "CA 8 must not sign certificates",
    ),
    "intermediate for servers": (
        lambda: below(ROOT.authority("CA 8", extensions=(*pki.AUTHORITY, pki.purposes("1.3.6.1.5.5.7.3.1")))),
        "CA 8 must not issue such certificates",
    ),
    "name constraints": (
        lambda: below(
            ROOT.authority("CA 8", extensions=(*pki.AUTHORITY, pki.extension("2.5.29.30", b"\x30\0", critical=True)))
        ),
        "critical extension 2.5.29.30",
    ),
    "path length": (lambda: too_long(), "must not stand above 1 intermediate CAs"),
    "bytes behind": (lambda: [ROOT.issue(spki(EK)) + b"\0\xff"], "bytes follow the certificate"),
    "too many": (lambda: [ROOT.issue(spki(EK))] * 17, "at most 16 are read"),
    "huge": (lambda: [ROOT.issue(spki(EK), extensions=(pki.extension("1.2.3", bytes(20000)),))], "at most 16384"),
    "no certificate": (lambda: [b"\x04\x01!"], "its certificate cannot be read: the certificate is malformed"),
    "empty": (lambda: [b""], "its certificate cannot be read: ASN.1 data are cut short"),
    "self-signed": (lambda: [Authority(b"\x30\x00", EK).issue(spki(EK))], "no trusted CA"),
}


def below(authority: Authority) -> Sequence[bytes]:
    return [authority.issue(spki(EK)), authority.certificate]


def too_long() -> Sequence[bytes]:
    first = ROOT.authority("CA 8", extensions=(pki.basic_constraints(ca=True, length=0), pki.key_usage(5)))
    second = first.authority("CA 9")
    return [second.issue(spki(EK)), second.certificate, first.certificate]


@pytest.mark.parametrize("kind", REFUSED)
def test_a_chain_that_is_refused(kind: str) -> None:
    chain, reason = REFUSED[kind]
    with pytest.raises(Refused, match=reason) as raised:
        verify(*chain())
    assert HASH in str(raised.value)
    assert "\n" not in str(raised.value)


def test_sha1_proves_nothing() -> None:
    weak = pki.root("Old CA", rsa_key())
    with pytest.raises(Refused, match=r"signed with SHA-1.*list the endorsement key's hash"):
        verify(weak.issue(spki(EK), weak=True), trusted=trust(weak.certificate))


def test_a_root_of_version_1_may_be_an_anchor() -> None:
    old = pki.root("Old CA")
    old.certificate = old.issue(spki(old.key), subject=old.subject, extensions=(), version=1)
    assert verify(old.issue(spki(EK)), trusted=trust(old.certificate)).certified
    # Among a node's certificates it is none: who is trusted above it did not say that it is a CA.
    between = ROOT.issue(spki(old.key), subject=ROOT.subject, extensions=(), version=1)
    with pytest.raises(Refused, match="not signed by its issuer"):
        verify(Authority(ROOT.subject, old.key, between).issue(spki(EK)), between)
    new = pki.root("Old CA")
    new.certificate = new.issue(spki(new.key), subject=new.subject, extensions=())
    with pytest.raises(Refused, match="no CA's"):
        verify(new.issue(spki(EK)), trusted=trust(new.certificate))


def test_an_expired_anchor_is_none() -> None:
    old = pki.root("Old CA")
    old.certificate = old.issue(spki(old.key), subject=old.subject, extensions=pki.AUTHORITY, not_after=NOW - DAY / 2)
    with pytest.raises(Refused, match="Old CA expired"):
        verify(old.issue(spki(EK)), trusted=trust(old.certificate))


def test_revoked() -> None:
    leaf = MIDDLE.issue(spki(EK), serial=0x1234)
    unharmed = trust(ROOT.certificate, crls=[MIDDLE.revocation_list(1, 2, -3), ROOT.revocation_list()])
    assert verify(leaf, MIDDLE.certificate, trusted=unharmed).certified
    for crls, who in (
        ([MIDDLE.revocation_list(1, 0x1234)], "serial number 1234 was revoked by Acme TPM CA 7"),
        ([ROOT.revocation_list(7)], "Acme TPM CA 7 was revoked by Acme TPM Root CA"),
    ):
        with pytest.raises(Refused, match=who):
            verify(leaf, MIDDLE.certificate, trusted=trust(ROOT.certificate, crls=crls))
    with pytest.raises(Refused, match="Acme TPM CA 7 was revoked"):  # also where it is an anchor itself
        verify(leaf, trusted=trust(MIDDLE.certificate, ROOT.certificate, crls=[ROOT.revocation_list(7)]))


def test_revocation_lists_that_say_nothing() -> None:
    leaf = ROOT.issue(spki(EK))
    old = ROOT.revocation_list(next_update=NOW - DAY / 2)
    future = ROOT.revocation_list(this_update=NOW + DAY, next_update=NOW + 2 * DAY)
    forged = pki.root().revocation_list()
    for crl, reason in (
        (old, "ended: fetch a newer one"),
        (future, "ended: fetch a newer one"),
        (forged, "not signed by its issuer"),
    ):
        with pytest.raises(Refused, match=reason):
            verify(leaf, trusted=trust(ROOT.certificate, crls=[crl]))
    assert verify(leaf, trusted=trust(ROOT.certificate, crls=[old, ROOT.revocation_list(next_update=None)])).certified
    revoked = ROOT.revocation_list(1, next_update=NOW - DAY / 2)
    with pytest.raises(Refused, match="was revoked"):  # an old list is still right in what it revoked
        verify(leaf, trusted=trust(ROOT.certificate, crls=[revoked, ROOT.revocation_list()]))
    partial = pki.extension("2.5.29.28", pki.sequence(element(0x83, b"\x01\x40")), critical=True)
    with pytest.raises(InvalidArgument, match="some reasons only"):
        revocation.parse(ROOT.revocation_list(extensions=[partial]))
    delta = pki.extension("2.5.29.27", pki.integer(1), critical=True)
    with pytest.raises(InvalidArgument, match=r"critical extension 2\.5\.29\.27"):
        revocation.parse(ROOT.revocation_list(extensions=[delta]))


def test_a_ca_that_must_not_sign_revocation_lists() -> None:
    mute = ROOT.authority("CA 8", extensions=(pki.basic_constraints(ca=True), pki.key_usage(5)))
    with pytest.raises(Refused, match="must not sign revocation lists"):
        verify(*below(mute), trusted=trust(ROOT.certificate, crls=[mute.revocation_list()]))


@pytest.mark.parametrize(
    ("ek", "reason"),
    [
        (ek_public(EK, attributes=EK_ATTRIBUTES & ~(1 << 16)), "restricted is not set"),
        (ek_public(EK, attributes=EK_ATTRIBUTES & ~(1 << 1)), "fixedTPM is not set"),
        (ek_public(EK, attributes=EK_ATTRIBUTES & ~(1 << 17) | 1 << 18), "decrypt is not set, sign is set"),
        (ek_public(EK, policy=b""), "its policy is none of the TCG's templates"),
        (ek_public(EK, cipher=b"\0\x10"), "it has no AES cipher"),
        (ek_public(EK, name_algorithm=4), "name algorithm 0x0004 is not supported"),
    ],
)
def test_a_key_that_is_no_endorsement_key(ek: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        verify(trusted=trust(hashes=[HASH]), ek=ek)


@pytest.mark.parametrize("ek", [b"", b"\0\x04abcd", ek_public(EK)[:-1], ek_public(EK) + b"\0", bytes(5000)])
def test_what_is_no_public_area(ek: bytes) -> None:
    with pytest.raises(InvalidArgument):
        verify(trusted=trust(hashes=[HASH]), ek=ek)


def test_policies_are_those_of_the_templates() -> None:
    """PolicyA is TPM2_PolicySecret of the endorsement hierarchy; PolicyB allows TPM2_PolicyAuthorizeNV as well."""
    allowed: set[bytes] = set()
    for algorithm, number, index in (
        ("sha256", 11, 0x01C07F01),
        ("sha384", 12, 0x01C07F02),
        ("sha512", 13, 0x01C07F03),
    ):

        def extended(*parts: bytes, algorithm: str = algorithm) -> bytes:
            return hashlib.new(algorithm, b"".join(parts)).digest()

        zeros = bytes(hashlib.new(algorithm).digest_size)
        a = extended(extended(zeros, struct.pack(">II", 0x151, 0x4000000B)))
        index_public = struct.pack(">IHI", index, number, 0x220F1008) + sized(a) + struct.pack(">H", len(zeros) + 2)
        c = extended(zeros, struct.pack(">I", 0x192), struct.pack(">H", number), extended(index_public))
        allowed |= {extended(zeros, struct.pack(">I", 0x171), a, c)} | ({a} if algorithm == "sha256" else set())
    assert allowed == endorsement.POLICIES


def test_a_software_tpm_is_known_by_its_maker(tmp_path: Path) -> None:
    manufacturer = Manufacturer(tmp_path / "ca")
    with manufacturer.started(tmp_path / "tpm") as tpm:
        for kind in ("rsa", "ecc", "ecc384"):
            tpm.tool("createek", "-G", kind, "-c", "ek.ctx", "-u", "ek.pub", "-f", "tss")
            tpm.flush()
            certificate = tpm.certificates["ecc-p384" if kind == "ecc384" else kind]
            hello = Hello(
                ek_public=(tmp_path / "tpm/ek.pub").read_bytes(),
                ak_public=b"",
                ek_certificates=(certificate, manufacturer.intermediate),
            )
            later = NOW.replace(year=2090)
            trusted = endorsement.load(str(manufacturer.root_path), "")
            found = endorsement.verify(hello, trusted, later)
            assert (found.certified, found.manufacturer, found.model) == (True, "id:00001014", "swtpm")
            version = tpm.firmware() >> 32 if kind != "ecc" else MADE_BY_HAND
            assert found.firmware == f"{version >> 16}.{version & 0xFFFF}"
            with pytest.raises(Refused, match="no trusted CA is named swtpm-localca"):
                endorsement.verify(
                    Hello(ek_public=hello.ek_public, ak_public=b"", ek_certificates=(certificate,)), trusted, later
                )
