"""The token's part of sealing: a secret key that stays in it, and what it makes of a label. It runs in a worker.

The key is found by its label, so that one is made once, whatever happens to an answer, and outlives the mapping.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, exceptions
from pkcs11.constants import DEFAULT

from keystores.errors import NotFound, PermanentlyUnusable, Refused
from keystores.pkcs11.module import return_value
from keystores.pkcs11.profiles import Profile
from keystores.pkcs11.protocol import Seal, Sealed
from keystores.pkcs11.templates import lesser

KEY_BITS = 256
SECRET_SIZE = 32
_BLOCKS = (b"\x01", b"\x02")
"""An AES-CMAC has 16 bytes; two with a counter make 32 (NIST SP 800-108, 4.1)."""

_WAYS: tuple[tuple[KeyType, Mechanism, Mechanism], ...] = (
    (KeyType.GENERIC_SECRET, Mechanism.GENERIC_SECRET_KEY_GEN, Mechanism.SHA256_HMAC),
    # YubiHSMs have keys for HMAC by a type of their own.
    (KeyType.SHA256_HMAC, Mechanism.GENERIC_SECRET_KEY_GEN, Mechanism.SHA256_HMAC),
    (KeyType.AES, Mechanism.AES_KEY_GEN, Mechanism.AES_CMAC),
)
_ELSEWHERE = (
    exceptions.MechanismInvalid,
    exceptions.MechanismParamInvalid,
    exceptions.FunctionNotSupported,
    exceptions.AttributeTypeInvalid,
    exceptions.AttributeValueInvalid,
    exceptions.KeySizeRange,
    exceptions.KeyTypeInconsistent,
    exceptions.TemplateInconsistent,
    exceptions.TemplateIncomplete,
)
"""What a token says that has another way, or none."""

DEMANDED: Mapping[Attribute, bool] = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
}


def seal(session: pkcs11.Session, wanted: Seal, profile: Profile) -> Sealed:
    """Raises NotFound for a key that is not there and not to be made, PermanentlyUnusable for two keys of the label
    and for a token that has no way; Refused for a key that could leave it; exceptions.PKCS11Error.
    """
    label = wanted.label
    found = list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: label}))
    if len(found) > 1:
        raise PermanentlyUnusable(f"the token has {len(found)} secret keys labelled {label!r}: remove all but one")
    if not found:
        if wanted.cka_id is None:
            raise NotFound(f"the token has no secret key labelled {label!r}")
        return Sealed(wanted.cka_id, _first(session, label, wanted.cka_id, wanted.data, profile))
    key: pkcs11.SecretKey = found[0]
    _check_attributes(key)
    kind = key[Attribute.KEY_TYPE]
    for key_type, _, signing in _WAYS:
        if key_type is kind:
            return Sealed(key[Attribute.ID], _secret(key, signing, wanted.data))
    raise PermanentlyUnusable(f"the secret key labelled {label!r} in the token is of no kind that makes secrets")


def _first(session: pkcs11.Session, label: str, cka_id: bytes, data: bytes, profile: Profile) -> bytes:
    """By the first way that the token has. What was made on the way to it, and is of no use, goes again."""
    said: list[str] = []
    for (key_type, making, signing), less in itertools.product(_WAYS, lesser(profile)):
        try:
            key = _generated(session, label, cka_id, less, key_type, making)
        except _ELSEWHERE as error:
            said.append(f"{making.name}: {return_value(error)}")
            continue
        try:
            _check_attributes(key)
            return _secret(key, signing, data)
        except _ELSEWHERE as error:
            said.append(f"{signing.name}: {return_value(error)}")
            key.destroy()
        except Refused:
            key.destroy()
            raise
    raise PermanentlyUnusable(
        f"the token has no secret keys that make others, by HMAC-SHA256 or AES-CMAC: {'; '.join(dict.fromkeys(said))}"
    )


def _generated(
    session: pkcs11.Session, label: str, cka_id: bytes, profile: Profile, key_type: KeyType, making: Mechanism
) -> pkcs11.SecretKey:
    template: dict[Attribute, object] = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True}
    if profile.states_extractable:
        template[Attribute.EXTRACTABLE] = False
    if not profile.states_unused:
        unused = ("ENCRYPT", "DECRYPT", "WRAP", "UNWRAP", "VERIFY", "DERIVE")
        template |= {Attribute[name]: DEFAULT for name in unused}
    return session.generate_key(
        key_type,
        KEY_BITS,
        id=cka_id,
        label=label,
        store=True,
        capabilities=MechanismFlag.SIGN,
        mechanism=making,
        template=template,
    )


def _secret(key: pkcs11.SecretKey, signing: Mechanism, data: bytes) -> bytes:
    """What the key makes of the data, asked for twice: a wrong one looks like a right one, and opens nothing that the
    right one closed. Raises PermanentlyUnusable.
    """
    made, again = _made(key, signing, data), _made(key, signing, data)
    if made != again or len(made) != SECRET_SIZE:
        raise PermanentlyUnusable("the token makes different secrets of one label, or of another size; none is used")
    return made


def _made(key: pkcs11.SecretKey, signing: Mechanism, data: bytes) -> bytes:
    if signing is Mechanism.AES_CMAC:
        parts = [bytes(key.sign(block + data, mechanism=signing)) for block in _BLOCKS]
        return b"".join(parts)
    return bytes(key.sign(data, mechanism=signing))


def _check_attributes(key: pkcs11.SecretKey) -> None:
    wrong = [
        f"CKA_{attribute.name} is {str(not demanded).lower()}"
        for attribute, demanded in DEMANDED.items()
        if bool(key[attribute]) is not demanded
    ]
    if wrong:
        raise Refused(f"the token's key for sealing is not as safe as it must be ({', '.join(wrong)})")
