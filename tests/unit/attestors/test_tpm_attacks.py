"""What a node, or who is between, may try to be another: each single try is refused, and the table is printed."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec.structs import replace

from attestors.tpm.messages import Activate, Certification, Hello, Proof
from attestors.tpm.server import TpmAttestor
from identity.spiffeid import SpiffeId
from plugins.nodeattestor import Challenge
from server.ca import checks
from tests.simulators.attacks import Changing, Ground, Proving, Table, altering, mutations
from tests.simulators.endorsement_ca import EndorsementCa
from tests.simulators.house import csr
from tests.simulators.pki import ec_key
from tests.simulators.soft_tpm import (
    AK_ATTRIBUTES,
    BANKS,
    CERTIFY,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    MADE_IN_TPM,
    QUOTE,
    RESTRICTED,
    SIGN,
    SIGNING_ATTRIBUTES,
    SoftTpm,
    sized,
)
from tests.simulators.tpm_node import Attesting, TpmNode

LATER = 10**12


@pytest.fixture
async def ground(tmp_path: Path) -> Ground:
    made = Ground(tmp_path)
    await made.start()
    return made


async def test_every_field_of_the_first_message(ground: Ground) -> None:
    for what, change in mutations():
        for name in ("ek_public", "ak_public"):
            await ground.attack(f"Hello.{name} altered", what, hello=altering(name, change))
    for version in (0, 2, 255):
        await ground.attack("Hello.version altered", str(version), "speaks version", hello=_version(version))
    await ground.end()


def _version(version: int) -> Callable[[Hello], Hello]:
    return lambda hello: replace(hello, version=version)


async def test_every_field_of_the_proof(ground: Ground) -> None:
    for what, change in mutations():
        for name in ("secret", "quote", "signature", "event_log_hash"):
            await ground.attack(f"Proof.{name} altered", what, proof=_altered(name, change))
        for name in ("statement", "signature", "public"):
            await ground.attack(f"Certification.{name} altered", what, proof=_certification(name, change))
    for number in (0, 4, 7, 9, 10, 12, 14):
        await ground.attack("Proof.pcrs altered", f"{number}", "not those that were quoted", proof=_pcr(number, 32))
    for size in (0, 31, 33, 1000):
        await ground.attack("Proof.pcrs altered", f"{size} bytes", "those of sha256 have 32", proof=_pcr(4, size))
    await ground.attack("Proof.pcrs altered", "one more", "other PCRs", proof=_pcr(23, 32))
    await ground.attack("Proof.pcrs altered", "none", "other PCRs", proof=lambda _n, made, _a: replace(made, pcrs={}))
    for size in (1, 100, -1, 1 << 64 - 1):
        await ground.attack("Proof.ima_size altered", f"{size}", proof=_field("ima_size", size))
        await ground.attack("Proof.event_log_size altered", f"{size}", proof=_field("event_log_size", size))
    await ground.attack("Proof.ima_size altered", "0", "no IMA list", proof=_field("ima_size", 0))
    await ground.end()


def _altered(name: str, change: Changing) -> Proving:
    return lambda _node, made, _asked: altering(name, change)(made)


def _field(name: str, value: object) -> Proving:
    return lambda _node, made, _asked: replace(made, **{name: value})


def _pcr(number: int, size: int) -> Proving:
    return lambda _node, made, _asked: replace(made, pcrs={**made.pcrs, number: bytes((1,)) * size})


def _certification(name: str, change: Changing) -> Proving:
    return lambda _node, made, _asked: replace(made, certification=altering(name, change)(_given(made)))


def _given(proof: Proof) -> Certification:
    assert proof.certification is not None
    return proof.certification


async def test_messages_that_are_none(ground: Ground) -> None:
    attestor = ground.attesting.attestor
    assert attestor is not None
    payload = ground.node().payload
    texts = [payload[:size] for size in range(0, len(payload), 23)]
    texts += [payload + b"\0", b"\xc1", b"\x80", bytes(300_000), b"\xdd\xff\xff\xff\xff", b"\x90", b"\xdf" * 9]
    for text in texts:
        node = ground.node()
        attempt = _attempt(attestor, text, node.respond)
        await ground.table.attack("a payload that is none", repr(text[:9]), "Hello", attempt)
    for text in (b"", b"\xc1", b"\x80", b"\x90", bytes(70_000), msgspec.msgpack.encode({"data": 7})):
        for name, honest in (("Proof", 0), ("Part", 1)):
            node = ground.node()
            attempt = _attempt(attestor, node.payload, _answering(node, honest, text))
            await ground.table.attack(f"an answer that is no {name}", repr(text[:9]), name, attempt)
    await ground.end()


def _attempt(attestor: TpmAttestor, payload: bytes, challenge: Challenge) -> Callable[[], Awaitable[object]]:
    return lambda: attestor.attest(payload, challenge)


def _answering(node: TpmNode, honest: int, text: bytes) -> Challenge:
    """Honest for some answers, and then that text."""

    async def respond(challenge: bytes) -> bytes:
        return text if len(node.asked) >= honest else await node.respond(challenge)

    return respond


async def test_who_is_no_known_tpm(ground: Ground) -> None:
    kind = "a software key that claims to be a TPM's"
    mine = SoftTpm(clock=LATER)
    shut = "credential was not opened"
    stranger = TpmNode(mine, svid_key=ground.key).started()
    await ground.table.attack(kind, "an EK of nobody's", "not known", lambda: ground.attesting.attest(stranger))
    await ground.attack(kind, "an AK beside the TPM", shut, hello=lambda made: replace(made, ak_public=mine.ak_public))
    await ground.attack(
        kind,
        "an AK beside the TPM, which quotes too",
        shut,
        hello=lambda made: replace(made, ak_public=mine.ak_public),
        proof=lambda _node, made, asked: _quoted(mine, made, asked),
    )
    await ground.attack(kind, "a known EK", "not known", hello=lambda made: replace(made, ek_public=mine.ek_public))
    for what, attributes in (
        ("not restricted", AK_ATTRIBUTES & ~RESTRICTED),
        ("that decrypts", AK_ATTRIBUTES | DECRYPT),
        ("that can leave", AK_ATTRIBUTES & ~FIXED_TPM),
        ("that was brought in", AK_ATTRIBUTES & ~MADE_IN_TPM),
        ("whose parent can change", AK_ATTRIBUTES & ~FIXED_PARENT),
        ("that does not sign", AK_ATTRIBUTES & ~SIGN),
    ):
        node = TpmNode(SoftTpm(ek=ground.tpm.ek, ak_attributes=attributes, clock=LATER), svid_key=ground.key).started()
        await ground.table.attack(
            "an attestation key with other attributes",
            what,
            "attestation key is not one",
            partial(ground.attesting.attest, node),
        )
    elsewhere = SoftTpm(ek=ground.tpm.ek, hierarchy=0x40000001, clock=LATER)
    owned = TpmNode(elsewhere, svid_key=ground.key).started()
    await ground.table.attack(
        "an attestation key with other attributes",
        "in the owner's hierarchy",
        "not below the endorsement key",
        lambda: ground.attesting.attest(owned),
    )
    await ground.end()


async def test_quotes(ground: Ground) -> None:
    other = SoftTpm(clock=LATER)
    honest = ground.node()
    seen: list[Proof] = []

    def recorded(made: Proof, _asked: Activate) -> Proof:
        seen.append(made)
        return made

    honest.alter_proof = recorded
    await ground.attesting.attest(honest)
    old = seen[0]
    attacks: tuple[tuple[str, str, Proving], ...] = (
        ("replayed", "another nonce", lambda _n, made, _a: replace(made, quote=old.quote, signature=old.signature)),
        ("replayed with all else", "credential was not opened", lambda _n, _m, _a: old),
        ("of another TPM", "not the attestation key's", lambda _n, made, asked: _quoted(other, made, asked)),
        ("over another nonce", "another nonce", lambda n, m, a: _quoted(n.tpm, m, replace(a, nonce=bytes(32)))),
        ("of fewer PCRs", "the TPM quoted", lambda n, m, a: _quoted(n.tpm, m, replace(a, pcrs=a.pcrs[:-1]))),
        ("of more PCRs", "the TPM quoted", lambda n, m, a: _quoted(n.tpm, m, replace(a, pcrs=(*a.pcrs, 23)))),
        ("of no PCRs", "the TPM quoted", lambda n, m, a: _quoted(n.tpm, m, replace(a, pcrs=()))),
        ("of another bank", "the TPM quoted", lambda n, m, a: _quoted(n.tpm, m, replace(a, bank="sha1"))),
        ("of two banks", "the TPM quoted", _of_two_banks),
        ("a certification", "a certification, not a quote", lambda n, m, a: _stated(n.tpm, m, a, CERTIFY)),
        ("not made by a TPM", "TPM_GENERATED", lambda n, m, a: _stated(n.tpm, m, a, QUOTE, magic=0)),
        ("of another type", "of type 0x8014", lambda n, m, a: _stated(n.tpm, m, a, 0x8014)),
        ("by another hash", "signed by", lambda n, m, _: replace(m, signature=n.tpm.sign(m.quote, "sha384"))),
        ("by another key", "not the attestation key's", lambda _n, m, _a: replace(m, signature=other.sign(m.quote))),
    )
    for what, reason, proof in attacks:
        await ground.attack("a quote that is not what was asked for", what, reason, proof=proof)
    await ground.end()


def _quoted(tpm: SoftTpm, made: Proof, asked: Activate) -> Proof:
    quote, signature = tpm.quote(asked.nonce, asked.bank, asked.pcrs)
    return replace(made, quote=quote, signature=signature)


def _stated(tpm: SoftTpm, made: Proof, asked: Activate, kind: int, **changed: int) -> Proof:
    """Whatever a TPM would not say, or say of something else, signed all the same."""
    named = sized(tpm.ak_name) + sized(tpm.ak_name)
    quoted, _ = tpm.quote(asked.nonce, asked.bank, asked.pcrs)
    attested = named if kind == CERTIFY else quoted[-(4 + 3 + 3 + 2 + 32) :]
    statement = tpm.statement(kind, asked.nonce, attested, **changed)
    return replace(made, quote=statement, signature=tpm.sign(statement))


def _of_two_banks(node: TpmNode, made: Proof, asked: Activate) -> Proof:
    quoted, _ = node.tpm.quote(asked.nonce, asked.bank, asked.pcrs)
    selection = quoted[-(3 + 3 + 2 + 32) :]
    attested = struct.pack(">IHB", 2, BANKS["sha1"], 3) + b"\1\0\0" + selection
    statement = node.tpm.statement(QUOTE, asked.nonce, attested)
    return replace(made, quote=statement, signature=node.tpm.sign(statement))


async def test_keys_that_are_certified(ground: Ground) -> None:
    key, other, tpm = ground.key, ec_key(), SoftTpm(clock=LATER)

    def certified(by: SoftTpm | None = None, nonce: bytes | None = None, without: int = 0) -> Proving:
        def prove(node: TpmNode, made: Proof, asked: Activate) -> Proof:
            used = SIGNING_ATTRIBUTES & ~without
            return replace(made, certification=(by or node.tpm).certify(key, nonce or asked.nonce, used))

        return prove

    def swapped(node: TpmNode, made: Proof, asked: Activate) -> Proof:
        public = node.tpm.certify(other, asked.nonce).public
        return replace(made, certification=replace(_given(made), public=public))

    def of_the_quote(_node: TpmNode, made: Proof, _asked: Activate) -> Proof:
        given = replace(_given(made), statement=made.quote, signature=made.signature)
        return replace(made, certification=given)

    attacks: tuple[tuple[str, str, Proving], ...] = (
        ("none", "require_tpm_key", _field("certification", None)),
        ("by another TPM", "not the attestation key's", certified(by=tpm)),
        ("over another nonce", "another nonce", certified(nonce=bytes(32))),
        ("with another public key", "another key", swapped),
        ("of a key that can leave", "fixedTPM", certified(without=FIXED_TPM)),
        ("of a key that was brought in", "sensitiveDataOrigin", certified(without=MADE_IN_TPM)),
        ("the quote in its place", "a quote, not a certification", of_the_quote),
    )
    for what, reason, proof in attacks:
        await ground.attack("a certification of another key", what, reason, proof=proof)
    node = ground.node()
    attested = (await ground.attesting.attest(node)).public_key

    async def ask() -> None:
        checks.approve_agent(csr(other), SpiffeId.parse(node.id), attested)

    await ground.table.attack("a CSR for another key", "than the certified one", "than the attested one", ask)
    checks.approve_agent(csr(key), SpiffeId.parse(node.id), attested)
    await ground.end()


async def test_endorsement_certificates(tmp_path: Path) -> None:
    table = Table()
    ca, other = EndorsementCa(), EndorsementCa("Other TPM CA")
    forger = EndorsementCa()  # of the same name, with a key of its own
    authorities = tmp_path / "ca"
    authorities.mkdir()
    (authorities / "root.pem").write_bytes(ca.pem)
    (authorities / "crl.pem").write_bytes(ca.revoke(66))
    attesting = Attesting(tmp_path)
    await attesting.start(endorsement_ca_path=str(authorities))
    tpm = SoftTpm()
    own = x509.load_pem_x509_certificate(ca.pem).public_bytes(Encoding.DER)
    attacks: tuple[tuple[str, str, tuple[bytes, ...]], ...] = (
        ("none", "no certificate", ()),
        ("expired", "", (ca.certify(tpm.ek, days=-1),)),
        ("revoked", "revoked", (ca.certify(tpm.ek, serial=66),)),
        ("of another manufacturer", "", (other.certify(tpm.ek),)),
        ("of a forger", "", (forger.certify(tpm.ek),)),
        ("of another key", "another key", (ca.certify(ec_key()),)),
        ("for other purposes", "purposes", (ca.certify(tpm.ek, purpose=ExtendedKeyUsageOID.SERVER_AUTH),)),
        ("no certificate", "", (b"certificate",)),
        ("cut short", "", (ca.certify(tpm.ek)[:-1],)),
        ("the CA's own", "another key", (own,)),
        ("too many", "at most 16", (ca.certify(tpm.ek),) * 17),
    )
    for what, reason, certificates in attacks:
        node = TpmNode(tpm, certificates).started()
        await table.attack("endorsement certificates", what, reason, partial(attesting.attest, node))
        tpm.reset()
    verdict = await attesting.attest(TpmNode(tpm, (ca.certify(tpm.ek),)).started())
    assert {"manufacturer:IFX", "model:SLB9670"} <= {each.value for each in verdict.selectors}
    (authorities / "crl.pem").write_bytes(ca.revoke(66, days=-1))
    await attesting.start()
    tpm.reset()
    late = TpmNode(tpm, (ca.certify(tpm.ek),)).started()
    await table.attack("endorsement certificates", "under an old list", "", lambda: attesting.attest(late))
    table.end()
