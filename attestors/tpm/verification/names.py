"""What an endorsement or platform certificate calls its TPM and platform (TCG EK Credential Profile 2.5, 3.2.9)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from attestors.tpm.verification import ber, certificates
from attestors.tpm.verification.certificates import Extension
from operations.errors import InvalidArgument

TPM_MANUFACTURER: Final = "2.23.133.2.1"
TPM_MODEL: Final = "2.23.133.2.2"
TPM_VERSION: Final = "2.23.133.2.3"

_DIRECTORY_NAME: Final = 0xA4
_ID: Final = re.compile(r"id:([0-9A-Fa-f]{8})")
_VERSION: Final = re.compile(r"id:([0-9A-Fa-f]{4}|[0-9A-Fa-f]{8})")
_MAX_TEXT: Final = 128


def alternative(extensions: Mapping[str, Extension]) -> Mapping[str, str]:
    """The attributes of the directory names among the subject's alternative names, by type.

    One relative name with several attributes, or several with one each: both occur, critical or not. What is
    malformed has no attributes: it says something of the TPM, and does not decide whether it is one.
    """
    extension = extensions.get(certificates.SUBJECT_ALTERNATIVE_NAME)
    if extension is None:
        return {}
    try:
        return of_general_names(extension.value)
    except InvalidArgument:
        return {}


def of_general_names(encoded: bytes) -> dict[str, str]:
    """As `alternative`, for a DER GeneralNames. Raises InvalidArgument."""
    found: dict[str, str] = {}
    for general in ber.whole(encoded, ber.SEQUENCE, "the alternative names").children():
        if general.tag != _DIRECTORY_NAME:
            continue
        for relative in ber.whole(general.content, ber.SEQUENCE, "the directory name").children():
            for kind, text in map(certificates.attribute, relative.expect(ber.SET, "the directory name").children()):
                found.setdefault(kind, clean(text))
    return found


def clean(text: str) -> str:
    """In one line, without what cannot be printed, and not long: it becomes a selector."""
    return "".join(character for character in text if character.isprintable()).strip()[:_MAX_TEXT]


def manufacturer(text: str) -> str:
    """From `id:49465800`, a vendor ID of the TCG's registry, its letters: IFX. Other texts stay as they are."""
    if (match := _ID.fullmatch(text)) is None:
        return text
    letters = bytes.fromhex(match[1]).rstrip(b"\0 ")
    return letters.decode() if letters.isalnum() else text


def firmware(text: str) -> str:
    """From `id:00070055`, or `id:0755` as it was before, the numbers that tpm2_getcap shows of the version: 7.85."""
    if (match := _VERSION.fullmatch(text)) is None:
        return text
    half = len(match[1]) // 2
    return f"{int(match[1][:half], 16)}.{int(match[1][half:], 16)}"
