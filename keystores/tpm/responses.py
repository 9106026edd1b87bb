"""What a TSS2_RC means: what to do about it, and what to tell an operator (TPM 2.0 Library, part 2, 6.6)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

_FORMAT_ONE: Final = 0x080
_TPM_LAYERS: Final = frozenset({0, 11, 12})
"""The TPM itself; a resource manager, in the kernel or beside it, which uses the TPM's codes."""

INITIALIZE, FAILURE = 0x100, 0x101
PCR_CHANGED: Final = 0x128
AUTH_FAIL, BAD_AUTH, AUTH_MISSING, AUTH_UNAVAILABLE = 0x08E, 0x0A2, 0x125, 0x12F
HANDLE, VALUE, INTEGRITY, POLICY_FAIL, HIERARCHY = 0x08B, 0x084, 0x09F, 0x09D, 0x085
OBJECT_MEMORY, SESSION_MEMORY, SESSION_HANDLES = 0x902, 0x903, 0x905
LOCKOUT: Final = 0x921
_BUSY: Final = frozenset({0x922, 0x908, 0x90A, 0x920, 0x909, PCR_CHANGED, 0x153})
"""RETRY, YIELDED, TESTING, NV_RATE, CANCELED, PCR_CHANGED, NEEDS_TEST: the same command goes through soon."""
_FULL: Final = frozenset({0x901, OBJECT_MEMORY, SESSION_MEMORY, 0x904, SESSION_HANDLES, 0x906})
"""CONTEXT_GAP, OBJECT_MEMORY, SESSION_MEMORY, MEMORY, SESSION_HANDLES, OBJECT_HANDLES."""
_AUTH: Final = frozenset({AUTH_FAIL, BAD_AUTH, AUTH_MISSING, AUTH_UNAVAILABLE})
_UNSUPPORTED: Final = frozenset({0x081, 0x082, 0x083, 0x089, 0x08A, 0x08C, 0x08D, 0x092, 0x096, 0x0A6, 0x143, VALUE})
"""ASYMMETRIC, ATTRIBUTES, HASH, MODE, TYPE, KDF, RANGE, SCHEME, SYMMETRIC, CURVE, COMMAND_CODE, VALUE."""

_MALFORMED: Final = frozenset({0x095, 0x09A, 0x09C, 0x087, 0x0A5, 0x0A7})
"""SIZE, INSUFFICIENT, KEY, KEY_SIZE, BINDING, ECC_POINT: of a parameter, which is then a blob."""


class Meaning(Enum):
    """What a code asks for."""

    WAIT = "wait, and send the command again"
    START = "TPM2_Startup first"
    FULL = "give back what is held, and what earlier processes left"
    REFUSED = "the authorization is wrong"
    POLICY = "the object's policy is not met"
    LOCKED = "the dictionary attack lockout is on"
    INTEGRITY = "another TPM's blob, another parent's, or damaged"
    UNSUPPORTED = "the TPM lacks it"
    BROKEN = "the TPM is in failure mode"
    GONE = "a handle, session or connection is gone: make a new context"


def is_tpm(code: int) -> bool:
    """The TPM said it, and not the libraries before it."""
    return code >> 16 & 0xFF in _TPM_LAYERS


def error_number(code: int) -> int:
    """The TPM's code without the number of the handle, parameter or session that it is about."""
    code &= 0xFFFF
    return code & 0x03F | _FORMAT_ONE if code & _FORMAT_ONE else code & 0xFFF


def _about_a_parameter(code: int) -> bool:
    return bool(code & _FORMAT_ONE and code & 0x040)


_MEANINGS: Final[Mapping[int, Meaning]] = {
    **dict.fromkeys(_BUSY, Meaning.WAIT),
    **dict.fromkeys(_FULL, Meaning.FULL),
    **dict.fromkeys(_AUTH, Meaning.REFUSED),
    **dict.fromkeys(_UNSUPPORTED, Meaning.UNSUPPORTED),
    INITIALIZE: Meaning.START,
    FAILURE: Meaning.BROKEN,
    POLICY_FAIL: Meaning.POLICY,
    LOCKOUT: Meaning.LOCKED,
    INTEGRITY: Meaning.INTEGRITY,
}


def meaning(code: int) -> Meaning:
    """What to do. Whatever nobody foresaw is worth one new context: so is a code that garbage on the wire made."""
    if not is_tpm(code):
        return Meaning.GONE
    number = error_number(code)
    found = _MEANINGS.get(number, Meaning.GONE)
    if number in _MALFORMED and _about_a_parameter(code):
        return Meaning.INTEGRITY
    # A value is unsupported when it is a parameter; a handle with that value is one that the TPM does not know.
    if found is Meaning.UNSUPPORTED and number == VALUE and not _about_a_parameter(code):
        return Meaning.GONE
    return found
