"""Quotes and certifications of a TPM are believed, and nothing that was altered, replayed or made elsewhere."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.tpm.messages import Activate, Certification, Proof
from attestors.tpm.verification import certify, quote
from attestors.tpm.verification.clock import Clock
from keystores.tpm import public_area, statements
from operations.errors import InvalidArgument, Refused
from tests.simulators.pki import ec_key
from tests.simulators.tpm_pki import changes, sized

NONCE: Final = bytes(range(32))
PCRS: Final = (0, 7, 16)
ASKED: Final = Activate(credential=b"", secret=b"", nonce=NONCE, bank="sha256", pcrs=PCRS)
AK_ATTRIBUTES: Final = 0x00050072
SIGNING_ATTRIBUTES: Final = 0x00040072
SHA256: Final = 0x000B
ECDSA_SHA256: Final = struct.pack(">HH", 0x0018, SHA256)
VALUES: Final = {number: bytes([number]) * 32 for number in PCRS}
BOUNDED: Final = settings(max_examples=500, deadline=None)


def public(key: ec.EllipticCurvePrivateKey, attributes: int, scheme: bytes, *, curve: int = 0x0003) -> bytes:
    point, size = key.public_key().public_numbers(), (key.curve.key_size + 7) // 8
    parts = (b"\0\0", b"\0\x10", scheme, curve.to_bytes(2), b"\0\x10", sized(point.x.to_bytes(size)))
    area = struct.pack(">HHI", 0x0023, SHA256, attributes) + b"".join(parts) + sized(point.y.to_bytes(size))
    return sized(area)


@dataclass(frozen=True)
class Signer:
    """A key in a TPM of Python, which states whatever it is told to."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=ec_key)
    magic: int = 0xFF544347
    kind: int = 0x8018
    nonce: bytes = NONCE
    selection: tuple[tuple[int, tuple[int, ...]], ...] = ((SHA256, PCRS),)
    values: bytes = b"".join(VALUES.values())
    digest: str = "sha256"
    tail: bytes = b""

    @property
    def public(self) -> bytes:
        return public(self.key, AK_ATTRIBUTES, ECDSA_SHA256)

    def proof(self, **changes: Any) -> Proof:
        attested = struct.pack(">I", len(self.selection))
        for bank, numbers in self.selection:
            bitmap = sum(1 << number for number in numbers).to_bytes(3, "little")
            attested += struct.pack(">HB", bank, 3) + bitmap
        attested += sized(hashlib.new(self.digest, self.values).digest())
        made = self.state(attested)
        proof = Proof(secret=b"", quote=made, signature=self.sign(made), pcrs=VALUES)
        return msgspec.structs.replace(proof, **changes)

    def certification(self, certified: bytes, sent: bytes | None = None) -> Certification:
        made = self.state(sized(public_area.parse(certified).name) + sized(b"qualified"))
        return Certification(statement=made, signature=self.sign(made), public=certified if sent is None else sent)

    def state(self, attested: bytes) -> bytes:
        clock = struct.pack(">QII?Q", 1000, 3, 1, True, 0x0007_0055_0000_0000)
        head = struct.pack(">IH", self.magic, self.kind)
        return head + sized(b"signer") + sized(self.nonce) + clock + attested + self.tail

    def sign(self, statement: bytes, algorithm: int = SHA256) -> bytes:
        used = {SHA256: hashes.SHA256(), 0x000C: hashes.SHA384()}[algorithm]
        r, s = decode_dss_signature(self.key.sign(statement, ec.ECDSA(used)))
        return struct.pack(">HH", 0x0018, algorithm) + sized(r.to_bytes(32)) + sized(s.to_bytes(32))


SIGNER: Final = Signer()
KEY: Final = quote.attestation_key(SIGNER.public)
SVID_KEY: Final = public(ec_key(), SIGNING_ATTRIBUTES, b"\0\x10")


def test_what_a_quote_says() -> None:
    found = quote.verify(KEY, SIGNER.proof(), ASKED)
    assert (found.pcrs.bank, dict(found.pcrs.values)) == ("sha256", VALUES)
    assert found.clock == Clock(clock=1000, reset_count=3, restart_count=1, safe=True)
    assert found.tpm_firmware == 0x0007_0055_0000_0000


def changed(**how: Any) -> Callable[[], Proof]:
    return lambda: replace(SIGNER, **how).proof()


REFUSED: Final[dict[str, tuple[Callable[[], Proof], str]]] = {
    "another nonce": (changed(nonce=bytes(32)), "another nonce.*may be replayed"),
    "no nonce": (changed(nonce=b""), "another nonce"),
    "a certification": (
        lambda: msgspec.structs.replace(
            replace(SIGNER, kind=0x8017).proof(),
            quote=(made := replace(SIGNER, kind=0x8017).certification(SVID_KEY)).statement,
            signature=made.signature,
        ),
        "is a certification, not a quote",
    ),
    "fewer registers": (changed(selection=((SHA256, (0, 7)),)), "quoted sha256:0,7, not sha256:0,7,16"),
    "more registers": (changed(selection=((SHA256, (*PCRS, 23)),)), "quoted sha256:0,7,16,23, not"),
    "another bank": (changed(selection=((0x0004, PCRS),)), "quoted sha1:0,7,16, not sha256:0,7,16"),
    "another bank besides": (changed(selection=((SHA256, PCRS), (0x0004, PCRS))), r"quoted sha256:0,7,16 \+ sha1"),
    "no register": (changed(selection=((SHA256, ()),)), r"quoted nothing, not.*tpm2_pcrallocate"),
    "other values": (changed(values=bytes(96)), "values that were sent are not those that were quoted"),
    "another digest": (changed(digest="sha384"), "values that were sent are not those that were quoted"),
    "another key's signature": (
        lambda: SIGNER.proof(signature=Signer().proof().signature),
        "is not the attestation key's",
    ),
    "another hash": (
        lambda: SIGNER.proof(signature=SIGNER.sign(SIGNER.proof().quote, 0x000C)),
        "signed by ecdsa with sha384, as the attestation key does not",
    ),
    "other registers sent": (
        lambda: SIGNER.proof(pcrs={0: VALUES[0], 7: VALUES[7], 8: VALUES[16]}),
        "other PCRs than those that were asked for",
    ),
    "a register not sent": (lambda: SIGNER.proof(pcrs={0: VALUES[0]}), "other PCRs than"),
    "values divided otherwise": (
        lambda: SIGNER.proof(pcrs={0: VALUES[0] + b"\7", 7: VALUES[7][1:], 16: VALUES[16]}),
        "PCR 0 has 33 bytes; those of sha256 have 32",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_quote_that_is_refused(kind: str) -> None:
    make, reason = REFUSED[kind]
    with pytest.raises(Refused, match=reason) as raised:
        quote.verify(KEY, make(), ASKED)
    assert "\n" not in str(raised.value)


MALFORMED: Final[dict[str, tuple[Callable[[], Proof], str]]] = {
    "no magic": (changed(magic=0xFF544348), "no statement that a TPM made"),
    "another statement": (changed(kind=0x801A), "type 0x801a, neither a quote nor a certification"),
    "bytes behind": (changed(tail=b"\0"), "bytes follow the TPM's statement"),
    "unknown bank": (changed(selection=((0x0012, PCRS),)), "unknown hash algorithm 0x0012"),
    "many banks": (changed(selection=((SHA256, PCRS),) * 5), "registers of 5 banks"),
    "no signature": (lambda: SIGNER.proof(signature=b""), "signature is cut short"),
    "an HMAC": (lambda: SIGNER.proof(signature=struct.pack(">HH", 5, SHA256) + bytes(32)), "algorithm 0x0005"),
    "much": (lambda: SIGNER.proof(signature=bytes(5000)), "5000 bytes, more than any TPM makes"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_quote_that_is_malformed(kind: str) -> None:
    make, reason = MALFORMED[kind]
    with pytest.raises(InvalidArgument, match=reason):
        quote.verify(KEY, make(), ASKED)


def test_a_bank_that_does_not_exist() -> None:
    with pytest.raises(InvalidArgument, match="no PCRs in a bank 'md5'"):
        quote.verify(KEY, SIGNER.proof(), msgspec.structs.replace(ASKED, bank="md5"))


def test_sha1_counts_where_it_was_asked_for() -> None:
    values = {number: bytes([number]) * 20 for number in PCRS}
    signer = replace(SIGNER, selection=((0x0004, PCRS),), values=b"".join(values.values()))
    with pytest.raises(Refused, match="quoted sha1"):
        quote.verify(KEY, signer.proof(pcrs=values), ASKED)
    asked = msgspec.structs.replace(ASKED, bank="sha1")
    assert quote.verify(KEY, signer.proof(pcrs=values), asked).pcrs.bank == "sha1"


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (AK_ATTRIBUTES & ~(1 << 16), "restricted is not set"),
        (AK_ATTRIBUTES & ~(1 << 18), "sign is not set"),
        (AK_ATTRIBUTES & ~(1 << 1), "fixedTPM is not set"),
        (AK_ATTRIBUTES & ~(1 << 4), "fixedParent is not set"),
        (AK_ATTRIBUTES & ~(1 << 5), "sensitiveDataOrigin is not set"),
        (AK_ATTRIBUTES | 1 << 17, "decrypt is set"),
    ],
)
def test_a_key_that_signs_more_than_statements(attributes: int, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        quote.attestation_key(public(ec_key(), attributes, ECDSA_SHA256))


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (b"\0\x10", "signs by any scheme"),
        (struct.pack(">HH", 0x0018, 0x0004), "signs by ecdsa with sha1"),
        (struct.pack(">HH", 0x0018, 0x0012), "signs by ecdsa with 0x0012"),
        (struct.pack(">HHH", 0x001A, SHA256, 1), "signs by 0x001a with sha256"),
        (struct.pack(">HH", 0x001B, SHA256), "signs by 0x001b with sha256"),
    ],
)
def test_a_key_of_another_scheme(scheme: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        quote.attestation_key(public(ec_key(), AK_ATTRIBUTES, scheme))


def test_other_attestation_keys() -> None:
    with pytest.raises(Refused, match="curve 0x0005 is neither P-256 nor P-384"):
        quote.attestation_key(public(ec_key(), AK_ATTRIBUTES, ECDSA_SHA256, curve=5))
    with pytest.raises(InvalidArgument, match="no point of its curve"):
        quote.attestation_key(public(ec_key(), AK_ATTRIBUTES, ECDSA_SHA256, curve=4))
    with pytest.raises(InvalidArgument, match="cut short"):
        quote.attestation_key(SIGNER.public[:40])
    with pytest.raises(InvalidArgument, match="more than any TPM makes"):
        quote.attestation_key(bytes(5000))


def test_a_certified_key() -> None:
    made = replace(SIGNER, kind=0x8017).certification(SVID_KEY)
    assert certify.verify(KEY, made, NONCE) == public_area.parse(SVID_KEY).der


def test_certifications_that_are_refused() -> None:
    signer = replace(SIGNER, kind=0x8017)
    other = public(ec_key(), SIGNING_ATTRIBUTES, b"\0\x10")
    for made, reason in (
        (signer.certification(SVID_KEY, other), "certified another key than the one that was sent"),
        (replace(signer, nonce=bytes(32)).certification(SVID_KEY), "another nonce"),
        (replace(signer, key=ec_key()).certification(SVID_KEY), "not the attestation key's"),
        (
            signer.certification(exported := public(ec_key(), SIGNING_ATTRIBUTES & ~2, b"\0\x10"), exported),
            "was not made in the TPM to stay there and sign: fixedTPM is not set",
        ),
        (signer.certification(SIGNER.public), "restricted is set"),
        (
            msgspec.structs.replace(
                signer.certification(SVID_KEY), statement=SIGNER.proof().quote, signature=SIGNER.proof().signature
            ),
            "certified another key|is a quote|not the attestation key's",
        ),
    ):
        with pytest.raises(Refused, match=reason):
            certify.verify(KEY, made, NONCE)
    quoted = SIGNER.proof()
    with pytest.raises(Refused, match="is a quote, not a certification"):
        certify.verify(KEY, Certification(statement=quoted.quote, signature=quoted.signature, public=SVID_KEY), NONCE)
    with pytest.raises(InvalidArgument, match="more bytes than any TPM makes"):
        certify.verify(KEY, msgspec.structs.replace(signer.certification(SVID_KEY), public=bytes(5000)), NONCE)
    for public_bytes in (b"", b"\0\x01x"):
        with pytest.raises(InvalidArgument, match="cut short"):
            certify.verify(KEY, msgspec.structs.replace(signer.certification(SVID_KEY), public=public_bytes), NONCE)


GOOD: Final = SIGNER.proof()
CERTIFIED: Final = replace(SIGNER, kind=0x8017).certification(SVID_KEY)


@pytest.mark.parametrize("what", ["quote", "signature"])
def test_any_changed_bit_of_a_quote_is_refused(what: str) -> None:
    for changed in changes(getattr(GOOD, what)):
        with pytest.raises((InvalidArgument, Refused)):
            quote.verify(KEY, msgspec.structs.replace(GOOD, **{what: changed}), ASKED)


@pytest.mark.parametrize("what", ["statement", "signature", "public"])
def test_any_changed_bit_of_a_certification_is_refused(what: str) -> None:
    for changed in changes(getattr(CERTIFIED, what)):
        with pytest.raises((InvalidArgument, Refused)):
            certify.verify(KEY, msgspec.structs.replace(CERTIFIED, **{what: changed}), NONCE)


def test_any_changed_bit_of_the_attestation_key_makes_it_another() -> None:
    """Its Name is what the credential is for."""
    for changed in changes(SIGNER.public):
        try:
            key = quote.attestation_key(changed)
        except (InvalidArgument, Refused):
            continue
        assert key.name != KEY.name


@BOUNDED
@given(data=st.binary(max_size=400))
def test_noise_is_no_statement(data: bytes) -> None:
    for parse in (statements.parse, statements.parse_signature, quote.attestation_key):
        with pytest.raises((InvalidArgument, Refused)):
            parse(data)


@BOUNDED
@given(at=st.integers(0, 200), size=st.integers(0, 30), noise=st.binary(max_size=30))
def test_broken_statements_are_read_or_malformed(at: int, size: int, noise: bytes) -> None:
    for whole, parse in ((GOOD.quote, statements.parse), (CERTIFIED.statement, statements.parse)):
        broken = whole[: at % len(whole)] + noise + whole[at % len(whole) + size :]
        try:
            parse(broken)
        except InvalidArgument:
            continue
