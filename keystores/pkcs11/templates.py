"""What a new key is asked to be, and whether it became that: in a token only what is read back counts."""

from __future__ import annotations

import msgspec
import pkcs11
from pkcs11 import Attribute
from pkcs11.constants import DEFAULT

from keystores.errors import Refused
from keystores.pkcs11.profiles import Profile


def lesser(profile: Profile) -> list[Profile]:
    """The profile, and what to try when the token refuses its template: each states less than the one before."""
    changes = ({"states_sign_recover": False}, {"states_extractable": False}, {"states_unused": False})
    profiles = [profile]
    for change in changes:
        if (less := msgspec.structs.replace(profiles[-1], **change)) != profiles[-1]:
            profiles.append(less)
    return profiles


def templates(profile: Profile) -> tuple[dict[Attribute, object], dict[Attribute, object]]:
    """What the public and the private half are told besides usage, id and label."""
    private: dict[Attribute, object] = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True}
    public: dict[Attribute, object] = {}
    if profile.states_extractable:
        private[Attribute.EXTRACTABLE] = False
    if profile.states_sign_recover:
        private[Attribute.SIGN_RECOVER] = False
    if profile.states_public_private:
        public[Attribute.PRIVATE] = True
    if not profile.states_unused:
        for attribute in (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE):
            private[attribute] = DEFAULT
        for attribute in (Attribute.ENCRYPT, Attribute.WRAP):
            public[attribute] = DEFAULT
    return public, private


DEMANDED = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
    Attribute.SIGN: True,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}


def check_attributes(private: pkcs11.PrivateKey) -> None:
    """Raises Refused for a new key that is not sign-only, sensitive, local and never extractable."""
    wrong = [
        f"CKA_{attribute.name} is {str(not demanded).lower()}"
        for attribute, demanded in DEMANDED.items()
        if bool(private[attribute]) is not demanded
    ]
    if wrong:
        raise Refused(f"the token made a key that is not as safe as it must be ({', '.join(wrong)}); it was destroyed")


def check_id(private: pkcs11.PrivateKey, cka_id: bytes) -> None:
    """Raises Refused for a token that cut the CKA_ID: the key would not be found again."""
    if private[Attribute.ID] != cka_id:
        raise Refused(
            f"the token keeps a CKA_ID of {len(private[Attribute.ID])} bytes where {len(cka_id)} were given: "
            "it needs a newer module; the key was destroyed"
        )
