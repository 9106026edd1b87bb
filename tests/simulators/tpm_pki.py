"""Certificates about TPMs, good and as bad as they come: DER by hand, since no builder makes what is in the field."""

from __future__ import annotations

import datetime
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from identity.asn1 import BIT_STRING, INTEGER, OCTET_STRING, SEQUENCE, element, object_identifier
from tests.simulators.pki import PrivateKey, ec_key, spki

SET: Final = 0x31
NOW: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
DAY: Final = datetime.timedelta(days=1)
CN, MANUFACTURER, MODEL, VERSION = "2.5.4.3", "2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3"
EK_CERTIFICATE, PLATFORM_CERTIFICATE = "2.23.133.8.1", "2.23.133.8.2"
_ECDSA_SHA256, _RSA_SHA256, _RSA_SHA1 = "1.2.840.10045.4.3.2", "1.2.840.113549.1.1.11", "1.2.840.113549.1.1.5"


def sequence(*parts: bytes, tag: int = SEQUENCE) -> bytes:
    return element(tag, b"".join(parts))


def integer(value: int) -> bytes:
    """Of either sign."""
    return element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, signed=True))


def attribute(kind: str, text: str, tag: int = 0x0C) -> bytes:
    return sequence(object_identifier(kind), element(tag, text.encode()))


def name(*relative: Sequence[tuple[str, str]]) -> bytes:
    """A Name of relative names, each of one or several attributes in the order given."""
    return sequence(*(sequence(*(attribute(*one) for one in attributes), tag=SET) for attributes in relative))


def extension(kind: str, value: bytes, *, critical: bool = False) -> bytes:
    flag = b"\x01\x01\xff" if critical else b""
    return sequence(object_identifier(kind), flag, element(OCTET_STRING, value))


def basic_constraints(*, ca: bool, length: int | None = None) -> bytes:
    parts = (b"\x01\x01\xff" if ca else b"", b"" if length is None else integer(length))
    return extension("2.5.29.19", sequence(*parts), critical=True)


def key_usage(*bits: int) -> bytes:
    octet = sum(0x80 >> bit for bit in bits)
    return extension("2.5.29.15", element(BIT_STRING, bytes((0, octet))), critical=True)


def purposes(*kinds: str, critical: bool = False) -> bytes:
    return extension("2.5.29.37", sequence(*map(object_identifier, kinds)), critical=critical)


def alternative_names(directory_name: bytes, *, critical: bool = True) -> bytes:
    return extension("2.5.29.17", sequence(element(0xA4, directory_name)), critical=critical)


def called(manufacturer: str = "id:49465800", model: str = "SLB9670", version: str = "id:00070055") -> bytes:
    """The directory name of a TPM in three relative names."""
    return name(((MANUFACTURER, manufacturer),), ((MODEL, model),), ((VERSION, version),))


def time(moment: datetime.datetime) -> bytes:
    if moment.year < 2050:
        return element(0x17, f"{moment:%y%m%d%H%M%SZ}".encode())
    return generalized(moment)


def generalized(moment: datetime.datetime) -> bytes:
    return element(0x18, f"{moment:%Y%m%d%H%M%SZ}".encode())


AUTHORITY: Final = (basic_constraints(ca=True), key_usage(5, 6))
ENDORSEMENT: Final = (
    basic_constraints(ca=False),
    key_usage(2, 4),
    purposes(EK_CERTIFICATE),
    alternative_names(called()),
)


@dataclass
class Authority:
    """A CA. `certificate` is DER, and its own unless an issuer made it."""

    subject: bytes
    key: PrivateKey = field(default_factory=ec_key)
    certificate: bytes = b""

    def __post_init__(self) -> None:
        if not self.certificate:
            self.certificate = self.issue(spki(self.key), subject=self.subject, extensions=AUTHORITY)

    def authority(
        self,
        common_name: str,
        *,
        extensions: Sequence[bytes] = AUTHORITY,
        serial: int = 7,
        not_after: datetime.datetime = NOW + 1000 * DAY,
    ) -> Authority:
        """A CA below this one."""
        key, subject = ec_key(), name(((CN, common_name),))
        certificate = self.issue(spki(key), subject=subject, extensions=extensions, serial=serial, not_after=not_after)
        return Authority(subject, key, certificate)

    def issue(
        self,
        key: bytes,
        *,
        subject: bytes = b"\x30\x00",
        extensions: Sequence[bytes] = ENDORSEMENT,
        serial: int = 1,
        version: int = 3,
        not_before: datetime.datetime = NOW - DAY,
        not_after: datetime.datetime = NOW + 1000 * DAY,
        weak: bool = False,
    ) -> bytes:
        """A certificate of a DER SubjectPublicKeyInfo, or of what is said to be one."""
        return self.sign(
            element(0xA0, integer(version - 1)) if version > 1 else b"",
            integer(serial),
            self.algorithm(weak=weak),
            self.subject,
            sequence(time(not_before), time(not_after)),
            subject,
            key,
            element(0xA3, sequence(*extensions)) if extensions else b"",
            weak=weak,
        )

    def revocation_list(
        self,
        *serials: int,
        this_update: datetime.datetime = NOW - DAY,
        next_update: datetime.datetime | None = NOW + DAY,
        extensions: Sequence[bytes] = (),
    ) -> bytes:
        return self.sign(
            integer(1),
            self.algorithm(),
            self.subject,
            time(this_update),
            b"" if next_update is None else time(next_update),
            sequence(*(sequence(integer(serial), time(this_update)) for serial in serials)) if serials else b"",
            element(0xA0, sequence(*extensions)) if extensions else b"",
        )

    def attribute_certificate(
        self,
        holder: tuple[bytes, int],
        *,
        extensions: Sequence[bytes],
        serial: int = 5,
        not_after: datetime.datetime = NOW + DAY,
    ) -> bytes:
        """About the endorsement certificate of this issuer (a DER Name) and serial number."""
        issuer, number = holder
        return self.sign(
            integer(1),
            sequence(element(0xA0, sequence(element(0xA4, issuer)) + integer(number))),
            element(0xA0, sequence(element(0xA4, self.subject))),
            self.algorithm(),
            integer(serial),
            sequence(generalized(NOW - DAY), generalized(not_after)),
            sequence(),
            sequence(*extensions),
        )

    def algorithm(self, *, weak: bool = False) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return sequence(object_identifier(_RSA_SHA1 if weak else _RSA_SHA256), b"\x05\x00")
        return sequence(object_identifier(_ECDSA_SHA256))

    def sign(self, *parts: bytes, weak: bool = False) -> bytes:
        body = sequence(*parts)
        if isinstance(self.key, rsa.RSAPrivateKey):
            digest = hashes.SHA1() if weak else hashes.SHA256()  # noqa: S303 - what must be refused
            signature = self.key.sign(body, padding.PKCS1v15(), digest)
        else:
            signature = self.key.sign(body, ec.ECDSA(hashes.SHA256()))
        return sequence(body, self.algorithm(weak=weak), element(BIT_STRING, b"\0" + signature))


def root(common_name: str = "Acme TPM Root CA", key: PrivateKey | None = None) -> Authority:
    return Authority(name(((CN, common_name),)), key or ec_key())


EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
EK_ATTRIBUTES: Final = 0x000300B2
"""Of templates L-1 and L-2: fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt."""


def sized(content: bytes) -> bytes:
    """A TPM2B."""
    return len(content).to_bytes(2) + content


def ek_public(
    key: PrivateKey,
    attributes: int = EK_ATTRIBUTES,
    policy: bytes = EK_POLICY,
    cipher: bytes = b"\0\x06\0\x80\0\x43",
    name_algorithm: int = 0x000B,
) -> bytes:
    """A TPM2B_PUBLIC as template L-1 or L-2 makes it."""
    if isinstance(key, rsa.RSAPrivateKey):
        kind, rest = 0x0001, struct.pack(">HI", key.key_size, 0)
        rest += sized(key.public_key().public_numbers().n.to_bytes(key.key_size // 8))
    else:
        point = key.public_key().public_numbers()
        kind, rest = 0x0023, b"\0\x03\0\x10" + sized(point.x.to_bytes(32)) + sized(point.y.to_bytes(32))
    return sized(struct.pack(">HHI", kind, name_algorithm, attributes) + sized(policy) + cipher + b"\0\x10" + rest)


def changes(data: bytes) -> Iterator[bytes]:
    """The data with each of their bits changed, one at a time."""
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            yield bytes(changed)
