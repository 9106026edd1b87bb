"""What software TPMs and a machine in a cloud state is read and believed as it should be."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Final

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from attestors.tpm.messages import Activate, Certification, Proof
from attestors.tpm.verification import certify, endorsement, quote
from attestors.tpm.verification.clock import Clock, require_later, same_boot
from attestors.tpm.verification.quote import AttestationKey
from keystores.tpm import public_area, statements
from operations.errors import InvalidArgument, Refused
from tests.simulators.shared_data import shared_data
from tests.simulators.swtpm import SIGNING
from tests.simulators.tpm_manufacturer import Manufacturer, SoldTpm
from tests.simulators.tpm_pki import sized

NONCE: Final = bytes(range(32))
PCRS: Final = (0, 7, 16)
ASKED: Final = Activate(credential=b"", secret=b"", nonce=NONCE, bank="sha256", pcrs=PCRS)


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
    assert first.tpm_firmware == second.tpm_firmware == tpm.firmware()
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
        assert (found.tpm_firmware == tpm.firmware()) is fits
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


MACHINE = shared_data("windows_gcp_shielded_vm.json")


@pytest.mark.skipif(not MACHINE, reason="needs shared/data above the repository")
def test_a_quote_of_a_machine_in_a_cloud() -> None:
    """An attestation of a Windows VM, by google/go-attestation: RSA, and SHA-1 throughout."""
    machine = json.loads(MACHINE[0].read_text())
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
