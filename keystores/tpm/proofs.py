"""What an operator is shown of the keys: the inventory, and for one key the proof that it is what it seems."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import ec

from keystores import proving
from keystores.errors import InvalidArgument, PermanentlyUnusable, Refused
from keystores.tpm import messages, public_area, statements
from keystores.tpm.blobs import SEALED, SEALING_ID, Entry, Folder, Index
from keystores.tpm.worker import Worker
from plugins.keyinventory import Attestation, Check, KeyRecord, Proof

if TYPE_CHECKING:
    from keystores.tpm.manager import TpmKey

NAME_PREFIX: Final = "000b"
"""Begins the Name of an object whose name algorithm is SHA-256."""
FORMAT: Final = "tpm2-certify"
"""TPMS_ATTEST of TPM2_Certify, an Ecdsa-Sig-Value with SHA-256 over it, and as the one certificate the attestation
key's TPM2B_PUBLIC."""
_NONCE_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a key manager knows of its keys. `place` is the TPM's name, `grace` in seconds, `signed_at` by id."""

    folder: Folder
    index: Index
    place: str
    grace: float
    signed_at: Mapping[str, int | None]


def used(ledger: Ledger, key_id: str, entry: Entry) -> KeyRecord:
    """The record of a key that has an id."""
    return _record(ledger, key_id, entry, last_signature_at=ledger.signed_at.get(key_id))


def records(ledger: Ledger) -> Sequence[KeyRecord]:
    """Of keys in use, of retired ones, and of what seals. Blocks on the disk. Raises NotFound, Corrupt."""
    folder, index = ledger.folder, ledger.index
    named = [used(ledger, key_id, folder.read_key(name)) for key_id, name in index.keys.items()]
    retired = [
        _record(
            ledger,
            key.id,
            folder.read_key(key.name),
            retired_at=key.retired_at,
            dispose_at=int(key.retired_at + ledger.grace),
        )
        for key in index.retired
    ]
    return [*named, *retired, *_sealed(ledger)]


def _record(
    ledger: Ledger,
    key_id: str,
    entry: Entry,
    *,
    retired_at: int | None = None,
    dispose_at: int | None = None,
    last_signature_at: int | None = None,
) -> KeyRecord:
    return KeyRecord(
        handle=entry.area.name.hex(),
        id=key_id,
        key_type=entry.key_type,
        public_key=entry.area.der,
        label=f"{key_id} in key-{entry.name}.json",
        token=ledger.place,
        attributes=entry.area.attributes,
        created_at=entry.stored.created_at,
        retired_at=retired_at,
        dispose_at=dispose_at,
        last_signature_at=last_signature_at,
    )


def _sealed(ledger: Ledger) -> Sequence[KeyRecord]:
    stored = ledger.folder.read_sealed()
    if stored is None:
        return ()
    area = public_area.parse(stored.public)
    return (
        KeyRecord(
            handle=area.name.hex(),
            id=SEALING_ID,
            key_type=None,
            public_key=None,
            label=SEALED,
            token=ledger.place,
            attributes=area.attributes,
            created_at=stored.created_at,
        ),
    )


async def prove(worker: Worker, key: TpmKey, entry: Entry, listed: KeyRecord) -> Proof:
    """Raises TemporarilyUnavailable while the TPM cannot be asked."""
    described = await worker.call(messages.Describe(key=entry.stored.blob), messages.Described)
    loaded = public_area.parse(described.public)
    checks = [await proving.possession(key, key.public_key), _same(loaded, entry), _attributes(loaded)]
    nonce = secrets.token_bytes(_NONCE_SIZE)
    certified = await worker.call(messages.Certify(key=entry.stored.blob, nonce=nonce), messages.Certified)
    checks.append(_certificate(certified, entry.area.name, nonce))
    attestation = Attestation(FORMAT, certified.statement, certified.signature, (certified.signer,))
    return Proof(replace(listed, attributes=loaded.attributes), checks, attestation)


def _same(loaded: public_area.PublicArea, entry: Entry) -> Check:
    passed = hmac.compare_digest(loaded.name, entry.area.name)
    return Check("name", passed=passed, found=f"the TPM loads it as {loaded.name.hex()}")


def _attributes(loaded: public_area.PublicArea) -> Check:
    faults = loaded.faults
    found = "; ".join(faults) or "made in this TPM, and never leaves it: fixedTPM, fixedParent, sensitiveDataOrigin"
    return Check(proving.EXPORT, passed=not faults, found=found)


def _certificate(certified: messages.Certified, name: bytes, nonce: bytes) -> Check:
    try:
        verify(certified, name, nonce)
    except PermanentlyUnusable as error:
        return Check("attestation", passed=False, found=str(error))
    return Check("attestation", passed=True, found="a restricted key of this TPM certified it by TPM2_Certify")


def verify(certified: messages.Certified, name: bytes, nonce: bytes) -> None:
    """Raises PermanentlyUnusable unless the statement is TPM2_Certify's about this Name and nonce, by a restricted key.

    What it leaves open is whose the restricted key is.
    """
    signer = public_area.parse(certified.signer)
    if not signer.attributes["restricted"] or not signer.attributes["fixedTPM"] or signer.attributes["decrypt"]:
        raise PermanentlyUnusable("the attestation key is not restricted to what the TPM states")
    if not isinstance(signer.key, ec.EllipticCurvePublicKey):
        raise PermanentlyUnusable("the attestation key is no EC key")
    try:
        statements.verify(signer.key, certified.statement, statements.Signature("ecdsa", "sha256", certified.signature))
        statement = statements.parse(certified.statement)
    except Refused as error:
        raise PermanentlyUnusable("the attestation's signature does not verify") from error
    except InvalidArgument as error:
        raise PermanentlyUnusable(f"the attestation cannot be read: {error}") from error
    if not isinstance(statement.attested, statements.Certified):
        raise PermanentlyUnusable("the attestation is no statement of TPM2_Certify")
    if not hmac.compare_digest(statement.extra, nonce):
        raise PermanentlyUnusable("the attestation is not about the nonce that was asked for")
    if statement.attested.name != name:
        raise PermanentlyUnusable("the attestation is about another key")
