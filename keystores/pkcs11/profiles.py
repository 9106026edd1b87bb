"""What devices do differently. A profile names only what departs from the standard's plain reading."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Profile:
    """How one kind of device wants to be treated.

    `states_extractable`: CKA_EXTRACTABLE = false stands in the template of a new key; some devices refuse the
    attribute there. What the key became is read back in either case.
    `states_sign_recover`: likewise CKA_SIGN_RECOVER = false, which SoftHSM takes for true when it is left out.
    """

    states_extractable: bool = True
    states_sign_recover: bool = True


class ProfileName(Enum):
    """`profile` in the configuration."""

    AUTO = "auto"
    SOFTHSM2 = "softhsm2"
    KRYOPTIC = "kryoptic"
    YUBIHSM2 = "yubihsm2"
    NETHSM = "nethsm"
    LUNA = "luna"
    CLOUDHSM = "cloudhsm"
    NSHIELD = "nshield"
    GENERIC = "generic"


_PROFILES = {ProfileName.NETHSM: Profile(states_extractable=False, states_sign_recover=False)}


def profile(name: ProfileName) -> Profile:
    """The profile of that name. `auto` is the plain reading so far: no device in reach needs another one."""
    return _PROFILES.get(name, Profile())
