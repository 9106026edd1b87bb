"""What a token says of one key, read anew. It runs in a worker."""

from __future__ import annotations

import pkcs11
from pkcs11 import Attribute, exceptions

TOLD = (
    "TOKEN",
    "PRIVATE",
    "SENSITIVE",
    "ALWAYS_SENSITIVE",
    "EXTRACTABLE",
    "NEVER_EXTRACTABLE",
    "LOCAL",
    "SIGN",
    "DECRYPT",
    "UNWRAP",
    "DERIVE",
)


def label(key: pkcs11.PrivateKey | pkcs11.SecretKey) -> str | None:
    """None for one that cannot be read, and so is somebody else's."""
    try:
        return key[Attribute.LABEL]
    except UnicodeDecodeError:
        return None


def attributes(key: pkcs11.PrivateKey | pkcs11.SecretKey) -> dict[str, bool]:
    """By the standard's names; what the token does not tell is left out."""
    found: dict[str, bool] = {}
    for name in TOLD:
        try:
            found[f"CKA_{name}"] = bool(key[Attribute[name]])
        except (exceptions.AttributeTypeInvalid, exceptions.AttributeSensitive, exceptions.FunctionNotSupported):
            continue
    return found
