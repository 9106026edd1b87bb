"""SSH's data types (RFC 4251, section 5), read and written."""

from __future__ import annotations

from operations.errors import InvalidArgument


class Reader:
    """Reads one value after the other. Each method raises InvalidArgument where the data end too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes that are still to be read."""
        return len(self._data) - self.position

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise InvalidArgument("ssh: short read")
        begin = self.position
        self.position += size
        return self._data[begin : self.position]

    def uint32(self) -> int:
        return int.from_bytes(self.take(4))

    def uint64(self) -> int:
        return int.from_bytes(self.take(8))

    def string(self) -> bytes:
        return self.take(self.uint32())

    def natural(self) -> int:
        """An mpint that is not negative."""
        data = self.string()
        if data and data[0] & 0x80:
            raise InvalidArgument("ssh: a number is negative")
        return int.from_bytes(data)

    def end(self, what: str) -> None:
        """Raises InvalidArgument when there is more."""
        if self.left:
            raise InvalidArgument(f"ssh: trailing junk in {what}")


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


def natural(number: int) -> bytes:
    """An mpint: big-endian, with a zero in front where the first bit is set."""
    return string(number.to_bytes(number.bit_length() // 8 + 1) if number else b"")
