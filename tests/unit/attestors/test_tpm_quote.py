"""Quotes and certifications of a TPM are believed, and nothing that was altered, replayed or made elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.tpm.messages import Activate, Certification, Proof
from attestors.tpm.verification import certify, endorsement, quote
from attestors.tpm.verification.clock import Clock, require_later, same_boot
from attestors.tpm.verification.quote import AttestationKey
from keystores.tpm import public_area, statements
from operations.errors import InvalidArgument, Refused
from tests.simulators.pki import ec_key
from tests.simulators.swtpm import SIGNING
from tests.simulators.tpm_manufacturer import Manufacturer, SoldTpm

NONCE: Final = bytes(range(32))
PCRS: Final = (0, 7, 16)
ASKED: Final = Activate(credential=b"", secret=b"", nonce=NONCE, bank="sha256", pcrs=PCRS)
AK_ATTRIBUTES: Final = 0x00050072
SIGNING_ATTRIBUTES: Final = 0x00040072
SHA256: Final = 0x000B
ECDSA_SHA256: Final = struct.pack(">HH", 0x0018, SHA256)
VALUES: Final = {number: bytes([number]) * 32 for number in PCRS}
BOUNDED: Final = settings(max_examples=500, deadline=None)


def sized(content: bytes) -> bytes:
    return len(content).to_bytes(2) + content


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


@BOUNDED
@given(what=st.sampled_from(["quote", "signature"]), at=st.integers(0, 999), bit=st.integers(0, 7))
def test_any_changed_bit_of_a_quote_is_refused(what: str, at: int, bit: int) -> None:
    data = bytearray(getattr(GOOD, what))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises((InvalidArgument, Refused)):
        quote.verify(KEY, msgspec.structs.replace(GOOD, **{what: bytes(data)}), ASKED)


@BOUNDED
@given(what=st.sampled_from(["statement", "signature", "public"]), at=st.integers(0, 999), bit=st.integers(0, 7))
def test_any_changed_bit_of_a_certification_is_refused(what: str, at: int, bit: int) -> None:
    data = bytearray(getattr(CERTIFIED, what))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises((InvalidArgument, Refused)):
        certify.verify(KEY, msgspec.structs.replace(CERTIFIED, **{what: bytes(data)}), NONCE)


@BOUNDED
@given(at=st.integers(0, 999), bit=st.integers(0, 7))
def test_any_changed_bit_of_the_attestation_key_makes_it_another(at: int, bit: int) -> None:
    """Its Name is what the credential is for."""
    data = bytearray(SIGNER.public)
    data[at % len(data)] ^= 1 << bit
    try:
        key = quote.attestation_key(bytes(data))
    except (InvalidArgument, Refused):
        return
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


NOW: Final = Clock(clock=5000, reset_count=3, restart_count=2, safe=True)


@pytest.mark.parametrize(
    "later",
    [
        NOW,
        msgspec.structs.replace(NOW, clock=5001),
        msgspec.structs.replace(NOW, clock=5001, restart_count=3),
        Clock(clock=6000, reset_count=4, restart_count=0, safe=True),
        Clock(clock=10, reset_count=4, restart_count=0, safe=False),
    ],
    ids=["same", "on", "restart", "reset", "power loss"],
)
def test_a_clock_that_goes_on(later: Clock) -> None:
    require_later(later, NOW)


@pytest.mark.parametrize(
    ("earlier", "reason"),
    [
        (msgspec.structs.replace(NOW, clock=4999), "clock went back from 5000 to 4999"),
        (msgspec.structs.replace(NOW, clock=4999, safe=False), "clock went back"),
        (msgspec.structs.replace(NOW, clock=9000, restart_count=1), "restart count went back from 2 to 1"),
        (Clock(clock=9000, reset_count=2, restart_count=9, safe=True), "reset count went back from 3 to 2"),
        (Clock(clock=4999, reset_count=4, restart_count=0, safe=True), "clock went back"),
        (Clock(clock=0, reset_count=0, restart_count=0, safe=False), r"was cleared.*evict the agent"),
    ],
)
def test_a_clock_that_went_back(earlier: Clock, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        require_later(earlier, NOW)


def test_one_boot() -> None:
    assert same_boot(NOW, msgspec.structs.replace(NOW, clock=9999, safe=False))
    assert not same_boot(NOW, msgspec.structs.replace(NOW, reset_count=4))
    assert not same_boot(NOW, msgspec.structs.replace(NOW, restart_count=3))


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoldTpm]:
    folder = tmp_path_factory.mktemp("sold")
    with Manufacturer(folder / "ca").started(folder / "tpm", persistent=False) as started:
        yield started


KINDS: Final = {
    "P-256": ("ecc", "sha256", "ecdsa"),
    "P-384": ("ecc384", "sha384", "ecdsa"),
    "RSASSA": ("rsa", "sha256", "rsassa"),
    "RSAPSS": ("rsa", "sha384", "rsapss"),
}


def make_keys(tpm: SoldTpm, kind: str) -> AttestationKey:
    algorithm, digest, scheme = KINDS[kind]
    tpm.tool("createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.pub", "-f", "tss")
    tpm.flush()
    names = ("-c", "ak.ctx", "-u", "ak.pub", "-f", "tss")
    tpm.tool("createak", "-C", "ek.ctx", "-G", algorithm, "-g", digest, "-s", scheme, *names)
    tpm.flush()
    ek = endorsement.endorsement_key((tpm.folder / "ek.pub").read_bytes())
    return quote.attestation_key((tpm.folder / "ak.pub").read_bytes(), ek)


def take_quote(tpm: SoldTpm, kind: str, bank: str = "sha256", nonce: bytes = NONCE) -> Proof:
    _, digest, scheme = KINDS[kind]
    selection = f"{bank}:{','.join(map(str, PCRS))}"
    files = ("-m", "quote.msg", "-s", "quote.sig", "-f", "tss")
    tpm.tool("quote", "-c", "ak.ctx", "-l", selection, "-q", nonce.hex(), "-g", digest, "--scheme", scheme, *files)
    tpm.flush()
    tpm.tool("pcrread", selection, "-o", "pcrs")
    read, size = (tpm.folder / "pcrs").read_bytes(), hashlib.new(bank).digest_size
    return Proof(
        secret=b"",
        quote=(tpm.folder / "quote.msg").read_bytes(),
        signature=(tpm.folder / "quote.sig").read_bytes(),
        pcrs={number: read[at * size : (at + 1) * size] for at, number in enumerate(PCRS)},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_tpm_quotes(tpm: SoldTpm, kind: str) -> None:
    key = make_keys(tpm, kind)
    tpm.tool("pcrextend", f"16:sha256={'ab' * 32},sha1={'cd' * 20}")
    first = quote.verify(key, take_quote(tpm, kind), ASKED)
    second = quote.verify(key, take_quote(tpm, kind), ASKED)
    require_later(second.clock, first.clock)
    assert same_boot(first.clock, second.clock)
    assert first.tpm_firmware == second.tpm_firmware == 0x2019102300163636
    assert first.pcrs.values[16] != bytes(32)
    asked = msgspec.structs.replace(ASKED, bank="sha1")
    assert quote.verify(key, take_quote(tpm, kind, "sha1"), asked).pcrs.values[16] != bytes(20)
    with pytest.raises(Refused, match="another nonce"):
        quote.verify(key, take_quote(tpm, kind, nonce=b"\7" * 32), ASKED)


def test_a_key_of_another_hierarchy_is_refused(tpm: SoldTpm) -> None:
    """Its TPM obscures what it says of its counters and firmware."""
    make_keys(tpm, "P-256")
    ek = endorsement.endorsement_key((tpm.folder / "ek.pub").read_bytes())
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
    for hierarchy, fits in (("o", False), ("e", True)):
        tpm.tool("createprimary", "-C", hierarchy, "-G", "ecc:ecdsa-sha256:null", "-a", attributes, "-c", "ak.ctx")
        tpm.flush()
        tpm.tool("readpublic", "-c", "ak.ctx", "-f", "tss", "-o", "ak.pub")
        tpm.flush()
        area = (tpm.folder / "ak.pub").read_bytes()
        taken = take_quote(tpm, "P-256")
        found = quote.verify(quote.attestation_key(area), taken, ASKED)
        assert (found.tpm_firmware == 0x2019102300163636) is fits
        if fits:
            assert quote.verify(quote.attestation_key(area, ek), taken, ASKED) == found
        else:
            with pytest.raises(Refused, match="not below the endorsement key"):
                quote.verify(quote.attestation_key(area, ek), taken, ASKED)


def test_counters_of_a_tpm(tpm: SoldTpm) -> None:
    key = make_keys(tpm, "P-256")

    def clock() -> Clock:
        return quote.verify(key, take_quote(tpm, "P-256"), ASKED).clock

    first = clock()
    tpm.tool("shutdown", "-c")
    tpm.reset()
    key = make_keys(tpm, "P-256")
    second = clock()
    assert second.reset_count > first.reset_count
    require_later(second, first)
    assert not same_boot(first, second)
    tpm.reset()  # without TPM2_Shutdown
    key = make_keys(tpm, "P-256")
    third = clock()
    assert not third.safe
    require_later(third, second)
    tpm.tool("clear")
    key = make_keys(tpm, "P-256")
    with pytest.raises(Refused, match=r"reset count went back.*was cleared"):
        require_later(clock(), third)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tpm_certifies_a_key(tpm: SoldTpm, kind: str) -> None:
    key = make_keys(tpm, kind)
    _, digest, scheme = KINDS[kind]
    tpm.tool("createprimary", "-C", "o", "-c", "primary.ctx")
    tpm.flush()
    tpm.tool(
        "create", "-C", "primary.ctx", "-G", "ecc", "-a", SIGNING, "-u", "svid.pub", "-r", "svid.priv", "-c", "svid.ctx"
    )
    tpm.flush()
    tpm.tool("readpublic", "-c", "svid.ctx", "-f", "pem", "-o", "svid.pem")
    tpm.flush()
    how = ("-g", digest, "--scheme", scheme, "-f", "tss")
    tpm.tool("certify", "-c", "svid.ctx", "-C", "ak.ctx", *how, "-o", "statement", "-s", "signature")
    tpm.flush()
    # tpm2_certify has no nonce of the caller's: it gives 00 ff 55 aa.
    made = Certification(
        statement=(tpm.folder / "statement").read_bytes(),
        signature=(tpm.folder / "signature").read_bytes(),
        public=(tpm.folder / "svid.pub").read_bytes(),
    )
    wanted = load_pem_public_key((tpm.folder / "svid.pem").read_bytes())
    found = certify.verify(key, made, bytes.fromhex("00ff55aa"))
    assert found == wanted.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_quote_of_a_machine_in_a_cloud() -> None:
    """An attestation of a Windows VM, by google/go-attestation: RSA, and SHA-1 throughout."""
    path = Path("/work/shared/data/windows_gcp_shielded_vm.json")
    if not path.exists():
        return
    machine = json.loads(path.read_text())
    area = base64.b64decode(machine["AK"]["Public"])
    with pytest.raises(Refused, match="signs by rsassa with sha1"):
        quote.attestation_key(sized(area))
    key = public_area.parse(sized(area)).key
    assert key is not None
    stated = base64.b64decode(machine["Quote"]["Quote"])
    signature = statements.parse_signature(base64.b64decode(machine["Quote"]["Signature"]))
    with pytest.raises(Refused, match="signed with sha1"):
        statements.verify(key, stated, signature)
    statements.verify(key, stated, signature, statements.STRONG | {"sha1"})
    found = statements.parse(stated).attested
    assert isinstance(found, statements.Quoted)
    assert found.selection == (("sha1", tuple(range(24))),)
    digests = {register["Index"]: base64.b64decode(register["Digest"]) for register in machine["Log"]["PCRs"]}
    composite = b"".join(digests[number] for number in range(24))
    assert hashlib.sha1(composite, usedforsecurity=False).digest() == found.digest
    with pytest.raises(InvalidArgument, match=r"type 0x801a"):
        statements.parse(base64.b64decode(machine["AK"]["CreateAttestation"]))
