"""Evidence as a file: what a node sent, kept so that a policy can be made of it, or tried against it, later."""

from __future__ import annotations

from typing import Final

import msgspec

VERSION: Final = 1
FILE_LIMIT: Final = 128 << 20
"""Bytes."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON document, bytes in base64. `taken_at` is in unix seconds, `pcrs` by number in `bank`.

    `quote` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE by `ak_public` (TPM2B_PUBLIC) over `nonce`; all are empty
    where nobody quoted. `selectors` are those of the node's identity (`ek:…`), without the type.
    """

    version: int = VERSION
    taken_at: int
    agent_id: str = ""
    selectors: tuple[str, ...] = ()
    bank: str
    pcrs: dict[int, bytes]
    tpm_firmware: int = 0
    nonce: bytes = b""
    quote: bytes = b""
    signature: bytes = b""
    ak_public: bytes = b""
    event_log: bytes = b""
    ima: bytes = b""
