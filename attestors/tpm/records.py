"""What the server remembers of a node between its attestations (docs/adr/0030-tpm-exchange.md).

A record saves work and shows a TPM that went back in time. Nothing in it is a verdict: where it does not fit what is
quoted now, or the policies, everything is asked for again.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec
from msgspec.structs import replace

from attestors.tpm.event_log.model import BootFacts
from attestors.tpm.ima.model import Prefix
from attestors.tpm.pcrs import IMA_PCR, PcrValues
from attestors.tpm.verification.clock import Clock, same_boot
from operations.errors import Corrupt
from plugins.nodeattestor import RECORD_LIMIT

VERSION: Final = 1
_REASONS = 8
_REASON = 400
"""Characters."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why the latest attestation that was refused, or would have been, was; `at` in unix seconds."""

    at: int
    reasons: tuple[str, ...]


class Boot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a boot is verified, by the policies that `policies` is the digest of.

    `state` is `state_of` the quoted registers. `event_log` is the SHA-256 of the log that replays to them, empty for
    none, and `facts` what it says. Of the IMA list the prefix `ima` is verified, and its files satisfy `standing`.
    """

    policies: bytes
    state: bytes
    event_log: bytes = b""
    facts: BootFacts | None = None
    ima: Prefix = Prefix()
    standing: tuple[str, ...] = ()


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ak` is the attestation key's Name, `clock` what its latest accepted quote says."""

    version: int = VERSION
    ak: bytes = b""
    clock: Clock | None = None
    boot: Boot | None = None
    failure: Failure | None = None

    def boot_of(self, ak: bytes, clock: Clock, pcrs: PcrValues, policies: bytes) -> Boot | None:
        """What is known of the boot that a quote is from: None where anything but the IMA list has changed."""
        boot = self.boot
        if boot is None or self.clock is None or self.ak != ak or not same_boot(self.clock, clock):
            return None
        return boot if boot.policies == policies and boot.state == state_of(pcrs) else None


def state_of(pcrs: PcrValues) -> bytes:
    """A digest of the quoted values, but for that of IMA's register, which grows."""
    state = sha256(pcrs.bank.encode())
    for number in sorted(pcrs.values):
        if number != IMA_PCR:
            state.update(bytes((number,)) + pcrs.values[number])
    return state.digest()


def failure(at: int, reasons: tuple[str, ...]) -> Failure:
    """As many of the reasons as a record has room for."""
    return Failure(at=at, reasons=tuple(reason[:_REASON] for reason in reasons[:_REASONS]))


def load(data: bytes) -> Record:
    """Raises Corrupt for what is no record of this version."""
    try:
        record = msgspec.msgpack.decode(data, type=Record)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the node's record cannot be read: {error}") from error
    if record.version != VERSION:
        raise Corrupt(f"the node's record has version {record.version}, not {VERSION}")
    return record


def dump(record: Record) -> bytes:
    """At most RECORD_LIMIT bytes: what of the boot has no room is asked for again the next time."""
    data = msgspec.msgpack.encode(record)
    if len(data) > RECORD_LIMIT and record.boot is not None:
        data = msgspec.msgpack.encode(replace(record, boot=replace(record.boot, facts=None, event_log=b"")))
    if len(data) > RECORD_LIMIT:
        data = msgspec.msgpack.encode(replace(record, boot=None))
    return data
