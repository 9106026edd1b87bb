"""What operators learn of keys in a token: records, of what the token says now and what keys_path says, and proofs."""

from __future__ import annotations

from collections.abc import Mapping as Map
from collections.abc import Sequence
from dataclasses import dataclass

from keystores import proving, public_keys
from keystores.errors import PermanentlyUnusable
from keystores.pkcs11 import mapping
from keystores.pkcs11.device import Device
from keystores.pkcs11.mapping import Mapping
from keystores.pkcs11.profiles import ProfileName
from keystores.pkcs11.protocol import DescribedKey, DescribeKeys
from keystores.pkcs11.tokens import token_key
from operations.errors import SpireError
from plugins.keyinventory import Check, KeyRecord, Proof
from plugins.keymanager import Key, KeyType

SEALING = "sealing"
"""What the secret key for sealing is called, in its label and here."""

_STAYS: Map[str, bool] = {
    "CKA_PRIVATE": True,
    "CKA_SENSITIVE": True,
    "CKA_ALWAYS_SENSITIVE": True,
    "CKA_EXTRACTABLE": False,
    "CKA_NEVER_EXTRACTABLE": True,
    "CKA_LOCAL": True,
}
_SIGNS: Map[str, bool] = {"CKA_SIGN": True, "CKA_DECRYPT": False, "CKA_UNWRAP": False, "CKA_DERIVE": False}
_HINTS: Map[ProfileName, str] = {
    ProfileName.YUBIHSM2: "; the YubiHSM's own attestation is not to be had through PKCS#11: see docs/runbooks/keys.md"
}


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a key manager knows of its keys. `grace` in seconds, None where none goes; `signed_at` by id."""

    mapping: Mapping
    grace: float | None
    signed_at: Map[str, int | None]


async def described(device: Device, known: Mapping) -> Sequence[DescribedKey]:
    """Raises the errors of keystores.errors."""
    prefix = f"{known.namespace}/"
    expected = [bytes.fromhex(key.cka_id) for key in known.keys.values()]
    try:
        return await device.call(DescribeKeys(prefix, expected), list[DescribedKey])
    except PermanentlyUnusable:  # the token was looked at anew: something is missing, and the rest is to be told
        return await device.call(DescribeKeys(prefix, []), list[DescribedKey])


def records(found: Sequence[DescribedKey], ledger: Ledger, device: Device) -> Sequence[KeyRecord]:
    """Of what the token has, and of what it lacks although keys_path names it: that has no label and no attributes."""
    there = {each.key.cka_id.hex() for each in found}
    lost = [
        KeyRecord(key.cka_id, key_id, key.key_type, key.public_key, "", "", created_at=key.created_at)
        for key_id, key in ledger.mapping.keys.items()
        if key.cka_id not in there
    ]
    return [*(_record(each, ledger, _place(device)) for each in found), *lost]


def _place(device: Device) -> str:
    facts = device.facts
    return device.name if facts is None else f"{facts.label}, serial {facts.serial}, {facts.model}"


def _record(found: DescribedKey, ledger: Ledger, token: str) -> KeyRecord:
    handle = found.key.cka_id.hex()
    at, known = ledger.mapping, token_key(found.key)
    label = found.key.label
    key_id = at.id_of(handle)
    if key_id is not None:
        mapped = at.keys[key_id]
        return KeyRecord(
            handle, key_id, mapped.key_type, mapped.public_key, label, token, found.attributes,
            created_at=mapped.created_at, last_signature_at=ledger.signed_at.get(key_id),
        )  # fmt: skip
    if found.secret:
        return KeyRecord(handle, SEALING, None, None, label, token, found.attributes)
    key_type = _type_of(known.public_key)
    for retired in at.retired:
        if retired.cka_id == handle:
            due = None if ledger.grace is None else int(retired.retired_at + ledger.grace)
            return KeyRecord(
                handle, retired.key_id, key_type, known.public_key, label, token, found.attributes,
                created_at=retired.created_at, retired_at=retired.retired_at, dispose_at=due,
            )  # fmt: skip
    key_id = mapping.id_in(label, at.namespace)
    return KeyRecord(handle, key_id, key_type, known.public_key, label, token, found.attributes, named=False)


def _type_of(public_key: bytes | None) -> KeyType | None:
    if public_key is None:
        return None
    try:
        return public_keys.key_type_of(public_keys.from_der(public_key))
    except SpireError:
        return None  # somebody else's, under our labels


async def proof(key: Key, cka_id: bytes, found: Sequence[DescribedKey], ledger: Ledger, device: Device) -> Proof:
    """Raises PermanentlyUnusable for a key that the token does not have any more."""
    same = [each for each in found if each.key.cka_id == cka_id and not each.secret]
    if len(same) != 1:
        raise PermanentlyUnusable(f"the token has {len(same)} private keys with CKA_ID {cka_id.hex()}")
    [described_key] = same
    told = described_key.attributes
    hint = "" if device.facts is None else _HINTS.get(device.facts.profile, "")
    checks = [await proving.possession(key, key.public_key)]
    public_key = token_key(described_key.key).public_key
    if public_key not in (None, key.public_key):
        wrong = "the public key object beside it in the token is of another key"
        checks.append(Check("public key object", passed=False, found=wrong))
    checks.append(_compared(proving.EXPORT, told, _STAYS, hint))
    checks.append(_compared("usage", told, _SIGNS))
    return Proof(_record(described_key, ledger, _place(device)), checks)


def _compared(name: str, told: Map[str, bool], demanded: Map[str, bool], hint: str = "") -> Check:
    """Against what the token tells now; what it does not tell is no pass."""
    wrong = [each for each in demanded if told.get(each) is not demanded[each]]
    if wrong:
        said = ", ".join(_said(each, told.get(each)) for each in wrong)
        return Check(name, passed=False, found=f"the token says {said}{hint}")
    right = ", ".join(_said(attribute, told[attribute]) for attribute in demanded)
    return Check(name, passed=True, found=f"the token says {right}{hint}")


def _said(attribute: str, value: bool | None) -> str:
    return f"nothing of {attribute}" if value is None else f"{attribute} is {str(value).lower()}"
