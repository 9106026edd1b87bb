"""The PROXY protocol, versions 1 and 2, as a server reads it: a proxy's word on whose connection it passes on.

By HAProxy's specification (proxy-protocol.txt, sections 2.1 and 2.2). The header comes before the TLS handshake, from
proxies that are trusted to send one; others' is no TLS record, so their handshake fails.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import Final

from operations.errors import InvalidArgument
from transport.peer import address_text
from transport.sockets import Link, WantRead

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LONGEST: Final = 4096
"""Bytes of a header that are read. The specification asks for 216; more are for what proxies add."""
_V1_LONGEST: Final = 107
_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD: Final = len(_V2) + 4
_V1_FAMILIES: Final = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}
_V2_FAMILIES: Final = {0x1: 4, 0x2: 16}  # bytes of an address; 0x3, of Unix sockets, names no host
_V2_STREAM: Final = 0x1


def is_from(host: str, networks: Sequence[Network]) -> bool:
    """Whether a connection's address is in one of the networks. IPv4 counts as such on an IPv6 socket too."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)


def missing(data: bytes) -> int:
    """How many more bytes surely belong to the header that `data` begins; 0 when it is whole, or is none.

    Raises InvalidArgument for a header that is too long.
    """
    if data.startswith(_V1):
        ended = data.endswith(b"\r\n")
        if len(data) > _V1_LONGEST or (len(data) == _V1_LONGEST and not ended):
            raise InvalidArgument("the PROXY header has no end")
        return 0 if ended else 1
    if data.startswith(_V2):
        if len(data) < _V2_HEAD:
            return _V2_HEAD - len(data)
        whole = _V2_HEAD + int.from_bytes(data[_V2_HEAD - 2 : _V2_HEAD])
        if whole > LONGEST:
            raise InvalidArgument(f"the PROXY header is longer than {LONGEST} bytes")
        return max(0, whole - len(data))
    for start in (_V1, _V2):
        if start.startswith(data):
            return len(start) - len(data)
    return 0


def source(header: bytes) -> str | None:
    """Who connected to the proxy, as `host:port`; None where the header does not say. Raises InvalidArgument."""
    if missing(header):
        raise InvalidArgument("the PROXY header is cut off")
    if header.startswith(_V1):
        return _source_v1(header)
    if header.startswith(_V2):
        return _source_v2(header)
    raise InvalidArgument("what a trusted proxy sent is neither TLS nor a PROXY header")


def _source_v1(header: bytes) -> str | None:
    try:
        words = header.decode("ascii").removesuffix("\r\n").split(" ")
    except UnicodeDecodeError:
        raise InvalidArgument("the PROXY header is no ASCII") from None
    if words[1] == "UNKNOWN":
        return None
    family = _V1_FAMILIES.get(words[1])
    if family is None or len(words) != 6 or "%" in words[2] + words[3]:
        raise InvalidArgument("the PROXY header is malformed")
    try:
        host, _ = family(words[2]), family(words[3])
    except ValueError:
        raise InvalidArgument("the PROXY header names no address of its family") from None
    port, _ = _port(words[4]), _port(words[5])
    return address_text(str(host), port)


def _port(text: str) -> int:
    if not (text.isdigit() and len(text) <= 5 and int(text) < 65536 and str(int(text)) == text):
        raise InvalidArgument("the PROXY header names no port")
    return int(text)


def _source_v2(header: bytes) -> str | None:
    version, command = header[len(_V2)] >> 4, header[len(_V2)] & 0xF
    family, protocol = header[len(_V2) + 1] >> 4, header[len(_V2) + 1] & 0xF
    if version != 2 or command > 1:
        raise InvalidArgument("the PROXY header has an unknown version or command")
    if command == 0 or family not in _V2_FAMILIES or protocol != _V2_STREAM:
        return None  # LOCAL, the proxy's own connection; or of a kind that no TCP connection is
    size = _V2_FAMILIES[family]
    addresses = header[_V2_HEAD:]
    if len(addresses) < 2 * size + 4:
        raise InvalidArgument("the PROXY header is too short for its addresses")
    host = ipaddress.ip_address(addresses[:size])
    (port,) = struct.unpack_from(">H", addresses, 2 * size)
    return address_text(str(host), port)


class ProxiedLink:
    """A link whose first bytes may be a PROXY header. `source` is what it says, after the handshake."""

    def __init__(self, sock: socket.socket, link: Link) -> None:
        self._socket = sock
        self._link = link
        self._header: bytearray | None = bytearray()
        self.source: str | None = None

    @property
    def peer_certificates(self) -> tuple[bytes, ...]:
        return self._link.peer_certificates

    def handshake(self) -> None:
        if self._header is not None:
            try:
                self._read(self._header)
            except InvalidArgument as error:
                raise ConnectionError(str(error)) from error
            self._header = None
        self._link.handshake()

    def _read(self, header: bytearray) -> None:
        """Take the header off the socket, and not a byte more: what follows is for TLS."""
        while True:
            wanted = missing(bytes(header)) if header else len(_V1)
            if not wanted:
                break
            if not header and not self._begins_header():
                return
            if header.startswith(_V1):
                wanted = self._rest_of_line(bytes(header[-1:]))
            header += self._socket_bytes(wanted)
        self.source = source(bytes(header))

    def _begins_header(self) -> bool:
        """Whether the first byte can be a header's; TLS begins with 22, the type of a handshake record."""
        return self._socket_bytes(1, socket.MSG_PEEK) in (_V1[:1], _V2[:1])

    def _rest_of_line(self, last: bytes) -> int:
        """How many of the bytes at hand belong to the line, at least 1."""
        at_hand = last + self._socket_bytes(_V1_LONGEST, socket.MSG_PEEK)
        end = at_hand.find(b"\r\n")
        return (end + 2 if end >= 0 else len(at_hand)) - len(last)

    def _socket_bytes(self, size: int, flags: int = 0) -> bytes:
        try:
            data = self._socket.recv(size, flags)
        except BlockingIOError:
            raise WantRead from None
        if not data:
            raise ConnectionError("connection closed before its PROXY header ended")
        return data

    def receive(self, size: int) -> bytes:
        return self._link.receive(size)

    def buffered(self) -> bool:
        return self._link.buffered()

    def send(self, data: memoryview) -> int:
        return self._link.send(data)

    def shutdown(self) -> None:
        self._link.shutdown()
