"""IMA lists as the kernel writes them, and the value of PCR 10 that they come to."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from attestors.tpm.pcrs import PcrValues


@dataclass
class ImaList:
    """Entries of the template ima-ng, in the sha256 bank. Methods return the list, so that calls can be chained."""

    data: bytes = b""
    value: bytes = bytes(32)

    def aggregate(self, quoted: PcrValues) -> ImaList:
        """What every list begins with: the digest of PCRs 0 to 9."""
        composite = b"".join(quoted.values[number] for number in range(10))
        return self.measured("boot_aggregate", hashlib.sha256(composite).digest())

    def file(self, path: str, content: bytes) -> ImaList:
        return self.measured(path, hashlib.sha256(content).digest())

    def measured(self, path: str, digest: bytes) -> ImaList:
        named = b"sha256:\0" + digest
        name = path.encode() + b"\0"
        data = struct.pack("<I", len(named)) + named + struct.pack("<I", len(name)) + name
        listed = hashlib.sha1(data, usedforsecurity=False).digest()
        return self._add(listed, hashlib.sha256(data).digest(), data)

    def violation(self, path: str) -> ImaList:
        """A file that was written to while it was measured: zeros in the list, ones in the register."""
        named, name = b"sha256:\0" + bytes(32), path.encode() + b"\0"
        data = struct.pack("<I", len(named)) + named + struct.pack("<I", len(name)) + name
        return self._add(bytes(20), b"\xff" * 32, data)

    def _add(self, listed: bytes, extended: bytes, data: bytes) -> ImaList:
        template = b"ima-ng"
        self.data += struct.pack("<I20sI", 10, listed, len(template)) + template + struct.pack("<I", len(data)) + data
        self.value = hashlib.sha256(self.value + extended).digest()
        return self
