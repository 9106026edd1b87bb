"""What a quote proves: the registers' values, the TPM's clock and firmware, at the time of a nonce."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestors.tpm.messages import Activate, Proof
from attestors.tpm.pcrs import BANKS, PcrValues
from attestors.tpm.verification.clock import Clock
from keystores.tpm import public_area, statements
from keystores.tpm.public_area import PublicArea
from operations.errors import InvalidArgument, Refused, Unsupported

_MUST: Final = ("restricted", "sign", "fixedTPM", "fixedParent", "sensitiveDataOrigin")
_MUST_NOT: Final = ("decrypt",)
_MIN_RSA_BITS: Final = 2048
_ENDORSEMENT: Final = 0x4000000B
"""TPM_RH_ENDORSEMENT, which is its own Name (part 1, 16)."""


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """A key that signs nothing but what its TPM states. Whose TPM that is the credential's activation tells.

    `ancestry` are the qualified Names that it may have in the endorsement hierarchy; empty if nobody asked.
    """

    area: PublicArea
    ancestry: frozenset[bytes] = frozenset()

    @property
    def name(self) -> bytes:
        return self.area.name


@dataclass(frozen=True, slots=True)
class Quote:
    """`tpm_firmware` is the firmwareVersion, 64 bits that each manufacturer divides in its own way."""

    pcrs: PcrValues
    clock: Clock
    tpm_firmware: int


def attestation_key(ak_public: bytes, ek: PublicArea | None = None) -> AttestationKey:
    """The key in a TPM2B_PUBLIC. Raises InvalidArgument for what is none, Refused for one that proves nothing.

    With `ek`, statements count only if the key is a primary one of the endorsement hierarchy or below `ek`: of keys
    elsewhere a TPM obscures the counters and the firmware version (part 1, 36.7).
    """
    if len(ak_public) > statements.LIMIT:
        raise InvalidArgument(f"the attestation key's public area has {len(ak_public)} bytes, more than any TPM makes")
    try:
        area = public_area.parse(ak_public)
    except Unsupported as error:
        raise Refused(f"the attestation key cannot be used: {error}") from error
    faults = [f"{name} is not set" for name in _MUST if not area.attributes[name]]
    faults += [f"{name} is set" for name in _MUST_NOT if area.attributes[name]]
    if faults:
        raise Refused(
            f"the attestation key is not one that signs only what its TPM states: {', '.join(faults)}; "
            "the agent has to make another one"
        )
    _require_scheme(area)
    return AttestationKey(area, frozenset() if ek is None else _ancestry(area, ek))


def _require_scheme(area: PublicArea) -> None:
    schemes: tuple[str, ...] = ()
    if isinstance(area.key, rsa.RSAPublicKey):
        if area.key.key_size < _MIN_RSA_BITS:
            raise Refused(f"the attestation key has {area.key.key_size} bits; RSA keys need {_MIN_RSA_BITS} or more")
        schemes = ("rsassa", "rsapss")
    elif isinstance(area.key, ec.EllipticCurvePublicKey):
        schemes = ("ecdsa",)
    else:
        raise Refused("the attestation key is no EC or RSA key")
    if area.scheme is None or area.scheme.name not in schemes or area.scheme.hash not in statements.STRONG:
        found = "any scheme" if area.scheme is None else f"{area.scheme.name} with {area.scheme.hash or 'no hash'}"
        raise Refused(f"the attestation key signs by {found}; it has to be {' or '.join(schemes)} with SHA-256 or more")


def _ancestry(area: PublicArea, ek: PublicArea) -> frozenset[bytes]:
    hierarchy = _ENDORSEMENT.to_bytes(4)
    return frozenset({_below(hierarchy, area), _below(_below(hierarchy, ek), area)})


def _below(parent: bytes, area: PublicArea) -> bytes:
    """The qualified Name of an object (part 1, 16, "Qualified Name")."""
    return area.name[:2] + hashlib.new(area.name_hash, parent + area.name).digest()


def stated(key: AttestationKey, statement: bytes, signature: bytes, nonce: bytes) -> statements.Statement:
    """A TPMS_ATTEST that the key signed over the nonce. Raises InvalidArgument and Refused."""
    signed = statements.parse_signature(signature)
    scheme = key.area.scheme
    if scheme is None or (signed.scheme, signed.hash) != (scheme.name, scheme.hash):
        raise Refused(f"the statement is signed by {signed.scheme} with {signed.hash}, as the attestation key does not")
    if key.area.key is None:
        raise Refused("the attestation key is no EC or RSA key")
    statements.verify(key.area.key, statement, signed)
    found = statements.parse(statement)
    if not hmac.compare_digest(found.extra, nonce):
        raise Refused("the TPM's statement is about another nonce than the one that was asked for: it may be replayed")
    if key.ancestry and found.signer not in key.ancestry:
        raise Refused(
            "the attestation key is not below the endorsement key, so that its TPM obscures counters and firmware "
            "version: the agent has to make it there"
        )
    return found


def verify(key: AttestationKey, proof: Proof, asked: Activate) -> Quote:
    """What the proof's quote says of the registers that were asked for. The secret is not looked at.

    Raises InvalidArgument for what is no quote, Refused for one that does not prove what was asked.
    """
    if asked.bank not in BANKS:
        raise InvalidArgument(f"there are no PCRs in a bank {asked.bank!r}; banks are {', '.join(BANKS)}")
    found = stated(key, proof.quote, proof.signature, asked.nonce)
    if not isinstance(found.attested, statements.Quoted):
        raise Refused("the TPM's statement is a certification, not a quote")
    _require_selection(found.attested, asked)
    values = _values(proof, asked)
    scheme = key.area.scheme
    digest = hashlib.new(scheme.hash if scheme else "sha256", values.composite()).digest()
    if not hmac.compare_digest(digest, found.attested.digest):
        raise Refused("the PCR values that were sent are not those that were quoted")
    clock = Clock(clock=found.clock, reset_count=found.reset_count, restart_count=found.restart_count, safe=found.safe)
    return Quote(values, clock, found.firmware)


def _require_selection(quoted: statements.Quoted, asked: Activate) -> None:
    selection = [(bank, numbers) for bank, numbers in quoted.selection if numbers]
    if selection != [(asked.bank, tuple(sorted(set(asked.pcrs))))]:
        found = " + ".join(f"{bank}:{','.join(map(str, numbers))}" for bank, numbers in selection) or "nothing"
        raise Refused(
            f"the TPM quoted {found}, not {asked.bank}:{','.join(map(str, sorted(asked.pcrs)))}; "
            f"if it has no {asked.bank} bank, enable it (tpm2_pcrallocate) or choose another by pcr_bank"
        )


def _values(proof: Proof, asked: Activate) -> PcrValues:
    if set(proof.pcrs) != set(asked.pcrs):
        raise Refused("values were sent of other PCRs than those that were asked for")
    size = BANKS[asked.bank]
    for number, value in proof.pcrs.items():
        if len(value) != size:
            raise Refused(f"the value of PCR {number} has {len(value)} bytes; those of {asked.bank} have {size}")
    return PcrValues(asked.bank, dict(sorted(proof.pcrs.items())))
