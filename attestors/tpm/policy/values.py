"""Values as a policy writes them: digests, firmware versions, selectors. Errors are InvalidArgument."""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from attestors.tpm.ima.templates import DIGEST_SIZES
from attestors.tpm.pcrs import BANKS
from operations.errors import InvalidArgument
from operations.quoting import quote

SELECTOR_KINDS: Final = (
    *("ek", "manufacturer", "model", "firmware"),
    *("platform:manufacturer", "platform:model", "platform:version", "platform:serial"),
)
"""What a TPM's certificate, and that of the machine that it was built into, say of them."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_VERSION = re.compile(r"0x([0-9a-fA-F]{1,8})_?([0-9a-fA-F]{8})", re.ASCII)
_BY_SIZE: Final = MappingProxyType({size: name for name, size in BANKS.items()})


def policy_name(text: str) -> str:
    """It becomes a selector."""
    if not _NAME.fullmatch(text):
        raise InvalidArgument(
            f"a policy cannot be called {quote(text[:80])}: use up to 64 letters, digits, dots, dashes and underscores"
        )
    return text


def digest(text: str, sizes: Iterable[int] = tuple(BANKS.values())) -> bytes:
    """A digest in hex, of one of the sizes in bytes."""
    value = _from_hex(text)
    if len(value) not in sizes:
        digits = " or ".join(str(2 * size) for size in sizes)
        raise InvalidArgument(f"{quote(text[:140])} has {len(text)} digits, not {digits}")
    return value


def file_digest(text: str) -> tuple[str, bytes]:
    """`sha256:…`, `verity:sha256:…` where fs-verity hashed it, or the hex alone, whose length is that of a SHA."""
    algorithm, colon, digits = text.rpartition(":")
    value = _from_hex(digits)
    if not colon:
        algorithm = _BY_SIZE.get(len(value), "")
        if not algorithm:
            raise InvalidArgument(f"{quote(text[:140])} is no digest: write it as sha256:… in hex")
    size = DIGEST_SIZES.get(algorithm.lower().removeprefix("verity:"))
    if size is None:
        raise InvalidArgument(f"unknown hash {quote(algorithm[:20])}: use one of {', '.join(DIGEST_SIZES)}")
    if len(value) != size:
        raise InvalidArgument(f"{quote(text[:140])}: a {algorithm} digest has {2 * size} digits, not {len(digits)}")
    return algorithm.lower(), value


def firmware_version(text: str) -> int:
    """TPMS_ATTEST.firmwareVersion (part 2, 10.12.12): vendors count in it as they like, most upwards."""
    found = _VERSION.fullmatch(text)
    if found is None:
        raise InvalidArgument(
            f"{quote(text[:40])} is no TPM firmware version: write 0x and both words that "
            "`tpm2_getcap properties-fixed` prints, as in 0x00070055_0011cb00"
        )
    return int(found[1] + found[2], 16)


def firmware_text(version: int) -> str:
    return f"0x{version >> 32:08x}_{version & 0xFFFFFFFF:08x}"


def selectors(texts: Iterable[str]) -> dict[str, frozenset[str]]:
    """By kind. Only what the TPM is known by counts: what is judged cannot choose its judge."""
    kinds: dict[str, set[str]] = {}
    for text in texts:
        kind = next((each for each in SELECTOR_KINDS if text.startswith(f"{each}:")), "")
        if not kind or text == f"{kind}:":
            known = ", ".join(f"{each}:…" for each in SELECTOR_KINDS)
            raise InvalidArgument(f"{quote(text[:80])} is no selector of a TPM's identity: use {known}")
        kinds.setdefault(kind, set()).add(text)
    return {kind: frozenset(values) for kind, values in kinds.items()}


def _from_hex(text: str) -> bytes:
    try:
        if not text.isalnum():  # fromhex passes over blanks
            raise ValueError(text)
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidArgument(f"{quote(text[:140])} is no digest in hex") from None
