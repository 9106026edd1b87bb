"""Which device it is, and what its templates look like."""

from __future__ import annotations

import pytest
from pkcs11 import Attribute
from pkcs11.constants import DEFAULT

from keystores.pkcs11.profiles import Profile, ProfileName, profile, recognised
from keystores.pkcs11.templates import lesser, templates

SAID = {
    ProfileName.SOFTHSM2: ("SoftHSM project", "SoftHSM v2", "SoftHSM Implementation of PKCS11"),
    ProfileName.KRYOPTIC: ("Kryoptic Project", "v1", "Kryoptic Project Kryoptic PKCS11 Module"),
    ProfileName.YUBIHSM2: ("Yubico (www.yubico.com)", "YubiHSM", "Yubico (www.yubico.com) YubiHSM PKCS#11 Library"),
    ProfileName.NETHSM: ("Nitrokey GmbH", "NetHSM", "Nitrokey GmbH Nitrokey PKCS#11 library"),
    ProfileName.LUNA: ("SafeNet", "LunaSA 7.4.0", "SafeNet Chrystoki"),
    ProfileName.CLOUDHSM: ("Marvell Semiconductors, Inc.", "LiquidSecurity", "CloudHSM PKCS#11"),
    ProfileName.NSHIELD: ("nCipher Corp. Ltd", "", "nCipher Security nCipher Cryptoki"),
    ProfileName.GENERIC: ("Somebody", "HSM", "A library"),
}


@pytest.mark.parametrize("name", SAID, ids=lambda name: name.value)
def test_a_device_is_known_by_what_it_says_of_itself(name: ProfileName) -> None:
    assert recognised(*SAID[name]) is name


@pytest.mark.parametrize("name", [name for name in ProfileName if name is not ProfileName.AUTO], ids=lambda n: n.value)
def test_no_profile_asks_for_less_than_a_private_sensitive_key(name: ProfileName) -> None:
    _, private = templates(profile(name))
    assert private[Attribute.PRIVATE] is True
    assert private[Attribute.SENSITIVE] is True
    assert private.get(Attribute.EXTRACTABLE, False) is False
    assert profile(name).sessions >= 1


def testtemplates_say_what_their_device_takes() -> None:
    assert templates(Profile()) == (
        {},
        {
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.SIGN_RECOVER: False,
        },
    )
    assert Attribute.EXTRACTABLE not in templates(profile(ProfileName.NETHSM))[1]
    assert templates(profile(ProfileName.CLOUDHSM))[0] == {Attribute.PRIVATE: True}
    public, private = templates(lesser(Profile())[-1])
    assert all(private[usage] is DEFAULT for usage in (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE))
    assert all(public[usage] is DEFAULT for usage in (Attribute.ENCRYPT, Attribute.WRAP))
