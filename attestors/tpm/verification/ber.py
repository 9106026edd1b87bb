"""Reading ASN.1 as certificates of TPMs have it: DER that is not always canonical.

What is let pass is what readers of DER stumble over in the field, and what changes no meaning: lengths with leading
zeros, sets in another order, integers without their sign octet. Indefinite lengths and long tags are refused, as no
certificate has them. What is signed is compared octet for octet, so leniency here makes nothing valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from operations.errors import InvalidArgument

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OBJECT_IDENTIFIER: Final = 0x06
SEQUENCE: Final = 0x30
SET: Final = 0x31
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18

_ENCODINGS: Final = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "latin-1",  # PrintableString, with what does not belong there
    0x14: "latin-1",
    0x16: "latin-1",
    0x1A: "latin-1",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}
_MAX_ELEMENTS: Final = 4096


@dataclass(frozen=True, slots=True)
class Element:
    """`raw` is the whole element, `content` what is in it."""

    tag: int
    content: bytes
    raw: bytes

    def children(self) -> list[Element]:
        """Raises InvalidArgument for what is not made of elements."""
        found: list[Element] = []
        for element in elements(self.content):
            if len(found) == _MAX_ELEMENTS:
                raise InvalidArgument("an ASN.1 sequence has too many elements")
            found.append(element)
        return found

    def expect(self, tag: int, what: str) -> Element:
        """Itself, if it has the tag. Raises InvalidArgument."""
        if self.tag != tag:
            raise InvalidArgument(f"{what} is malformed: its ASN.1 tag is {self.tag:#04x}, not {tag:#04x}")
        return self


def read(data: bytes, at: int = 0) -> Element:
    """The element that begins at an offset. Raises InvalidArgument."""
    if at + 2 > len(data):
        raise InvalidArgument("ASN.1 data are cut short")
    tag, length, start = data[at], data[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise InvalidArgument("ASN.1 data have a tag that no certificate has")
    if length & 0x80:
        octets = length & 0x7F
        if not 0 < octets <= 8:
            raise InvalidArgument("ASN.1 data have an indefinite or enormous length")
        if start + octets > len(data):
            raise InvalidArgument("ASN.1 data are cut short")
        length = int.from_bytes(data[start : start + octets])
        start += octets
    end = start + length
    if end > len(data):
        raise InvalidArgument("ASN.1 data are cut short")
    return Element(tag, data[start:end], data[at:end])


def elements(content: bytes) -> Iterator[Element]:
    """Elements that stand one after the other. Raises InvalidArgument."""
    at = 0
    while at < len(content):
        element = read(content, at)
        at += len(element.raw)
        yield element


def whole(data: bytes, tag: int, what: str) -> Element:
    """The one element that the data are. Raises InvalidArgument."""
    element = read(data).expect(tag, what)
    if len(element.raw) != len(data):
        raise InvalidArgument(f"bytes follow {what}")
    return element


def optional(found: list[Element], tag: int) -> Element | None:
    """Takes the first element away if it has the tag."""
    return found.pop(0) if found and found[0].tag == tag else None


def required(found: list[Element], tag: int, what: str) -> Element:
    """Takes the first element away, which has to have the tag. Raises InvalidArgument."""
    if not found:
        raise InvalidArgument(f"{what} is missing")
    return found.pop(0).expect(tag, what)


def integer(element: Element, what: str) -> int:
    """Signed, as it is written. Raises InvalidArgument."""
    content = element.expect(INTEGER, what).content
    if not content:
        raise InvalidArgument(f"{what} is an integer without octets")
    return int.from_bytes(content, signed=True)


def boolean(element: Element, what: str) -> bool:
    content = element.expect(BOOLEAN, what).content
    if len(content) != 1:
        raise InvalidArgument(f"{what} is neither true nor false")
    return content != b"\0"


def bits(element: Element, what: str) -> bytes:
    """A BIT STRING of whole octets. Raises InvalidArgument."""
    content = element.expect(BIT_STRING, what).content
    if not content or content[0] != 0:
        raise InvalidArgument(f"{what} is no string of whole octets")
    return content[1:]


def object_identifier(element: Element, what: str) -> str:
    """In dotted notation (X.690, 8.19). Raises InvalidArgument."""
    content = element.expect(OBJECT_IDENTIFIER, what).content
    if not content or content[-1] & 0x80 or len(content) > 64:
        raise InvalidArgument(f"{what} is no object identifier")
    arcs: list[int] = []
    value = 0
    for octet in content:
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - first * 40, *arcs[1:])))


def text(element: Element) -> str:
    """A character string of any kind; of other elements and of broken ones the octets in hex."""
    encoding = _ENCODINGS.get(element.tag)
    if encoding is not None:
        try:
            return element.content.decode(encoding)
        except UnicodeDecodeError:
            pass
    return element.content.hex()


def time(element: Element, what: str) -> datetime:
    """UTCTime or GeneralizedTime, aware (RFC 5280, 4.1.2.5), with or without seconds. Raises InvalidArgument."""
    try:
        written = element.content.decode("ascii")
        if not written.endswith("Z") or not written[:-1].partition(".")[0].isdigit():
            raise ValueError(written)
        digits = written[:-1].partition(".")[0]
        if element.tag == UTC_TIME:
            digits = ("20" if digits[:2] < "50" else "19") + digits
        elif element.tag != GENERALIZED_TIME:
            raise ValueError(written)
        if len(digits) not in {12, 14}:
            raise ValueError(written)
        numbers = [int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, len(digits), 2))]
        year, month, day, hour, minute, *rest = numbers
        second = 59 if rest == [60] else sum(rest)  # a leap second
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise InvalidArgument(f"{what} is no time of a certificate") from error
