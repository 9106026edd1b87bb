"""Evidence of this machine for a file: as a server would have it, but without one that asks."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time

from attestors.tpm.agent import Configuration, opened
from attestors.tpm.evidence import Evidence
from attestors.tpm.messages import NONCE_SIZE, Activate
from attestors.tpm.pcrs import COUNT
from keystores.tpm import public_area, statements
from operations.logs import Logger


async def collect(configuration: Configuration, bank: str, log: Logger) -> Evidence:
    """All registers of the bank, quoted over a fresh nonce by a key made for this, and the logs after it.

    Raises SpireError classes. Whatever fails, nothing stays in the TPM.
    """
    attestor = await opened(configuration, None, log)
    try:
        endorsed = await attestor.endorsed()
        asked = Activate(
            credential=b"", secret=b"", nonce=secrets.token_bytes(NONCE_SIZE), bank=bank, pcrs=tuple(range(COUNT))
        )
        attested, measured = await attestor.evidence(asked, endorsed)
    finally:
        await attestor.close()
    ima = await asyncio.to_thread(measured.ima, 0, measured.ima_size)
    key = public_area.parse(endorsed.public)
    return Evidence(
        taken_at=int(time.time()),
        selectors=(f"ek:{hashlib.sha256(key.der).hexdigest()}",),
        bank=bank,
        pcrs=attested.pcrs,
        tpm_firmware=statements.parse(attested.quote).firmware,
        nonce=asked.nonce,
        quote=attested.quote,
        signature=attested.signature,
        ak_public=endorsed.key.public,
        event_log=measured.event_log,
        ima=ima,
    )


def told(evidence: Evidence, path: str | os.PathLike[str]) -> str:
    """A line for people."""
    [key] = evidence.selectors
    return (
        f"{os.fspath(path)}: {len(evidence.pcrs)} registers of {evidence.bank} quoted, an event log of "
        f"{len(evidence.event_log)} bytes, an IMA list of {len(evidence.ima)} bytes; the endorsement key's hash is "
        f"{key.removeprefix('ek:')}"
    )
