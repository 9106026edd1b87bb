"""What devices do differently. A profile names only what departs from the standard's plain reading.

Nothing here is needed for safety: what a new key became is read back, and every signature is verified, for each device.
"""

from __future__ import annotations

from enum import Enum

import msgspec


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


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How one kind of device wants to be treated.

    `states_extractable`: CKA_EXTRACTABLE = false stands in the template of a new key; some devices refuse the attribute
    there, and none of them makes extractable keys unasked. `states_sign_recover`: likewise CKA_SIGN_RECOVER = false,
    which SoftHSM takes for true when it is left out. `states_unused`: usages that the key shall not have are stated as
    false. `states_public_private`: CKA_PRIVATE = true stands in the template of the public half too.

    `sessions`: how many to sign with when the configuration does not say. `keep_alive`: seconds without work after
    which the sessions are used, before the device ends them. `throttles`: CKR_FUNCTION_FAILED means "not so fast".
    `audit_log`: CKR_DEVICE_MEMORY while signing means that the log that the device is told to keep is full.
    """

    states_extractable: bool = True
    states_sign_recover: bool = True
    states_unused: bool = True
    states_public_private: bool = False
    sessions: int = 2
    keep_alive: float | None = None
    throttles: bool = False
    audit_log: bool = False


_PROFILES: dict[ProfileName, Profile] = {
    # 2.6.1 has crashed under concurrent calls (SoftHSMv2#688), and gains little by them: it locks its objects.
    ProfileName.SOFTHSM2: Profile(sessions=1),
    ProfileName.KRYOPTIC: Profile(sessions=1),
    # 16 sessions per device, which end after 30 idle seconds; all PKCS#11 sessions of a process share one of them.
    ProfileName.YUBIHSM2: Profile(sessions=1, keep_alive=10.0, audit_log=True),
    # Its module talks HTTPS to an appliance; the attributes are the appliance's, and cannot be asked for.
    ProfileName.NETHSM: Profile(states_extractable=False, states_sign_recover=False, sessions=8),
    ProfileName.LUNA: Profile(states_sign_recover=False, sessions=8),
    ProfileName.CLOUDHSM: Profile(
        states_sign_recover=False, states_public_private=True, sessions=8, throttles=True, keep_alive=60.0
    ),
    # It refuses keys for everything, not usages that are stated as false (pkcs11-provider#761, #791).
    ProfileName.NSHIELD: Profile(states_sign_recover=False, sessions=8),
    ProfileName.GENERIC: Profile(),
}

_MARKS: tuple[tuple[str, ProfileName], ...] = (
    ("softhsm", ProfileName.SOFTHSM2),
    ("kryoptic", ProfileName.KRYOPTIC),
    ("yubihsm", ProfileName.YUBIHSM2),
    ("nethsm", ProfileName.NETHSM),
    ("nitrokey", ProfileName.NETHSM),
    ("luna", ProfileName.LUNA),
    ("safenet", ProfileName.LUNA),
    ("cloudhsm", ProfileName.CLOUDHSM),
    ("cavium", ProfileName.CLOUDHSM),
    ("marvell", ProfileName.CLOUDHSM),
    ("nshield", ProfileName.NSHIELD),
    ("ncipher", ProfileName.NSHIELD),
    ("entrust", ProfileName.NSHIELD),
)
"""Words in what devices say of themselves, more special ones first."""


def recognised(*texts: str) -> ProfileName:
    """What `auto` takes: by the manufacturers, model and library of CK_INFO and CK_TOKEN_INFO."""
    said = " ".join(texts).lower()
    return next((name for mark, name in _MARKS if mark in said), ProfileName.GENERIC)


def profile(name: ProfileName) -> Profile:
    return _PROFILES.get(name, Profile())
