"""Certificates of TPMs and of those who make them, as they are in the field.

cryptography refuses what manufacturers signed: names whose sets are not sorted (Nuvoton's roots), public keys for OAEP
only, negative serial numbers, lengths with leading zeros. What is read here is RFC 5280's certificate, and nothing
that is read is believed before its signature is verified over its very octets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from attestors.tpm.verification import ber
from attestors.tpm.verification.ber import Element
from keystores.public_keys import PublicKey
from operations.errors import InvalidArgument, Refused

LIMIT: Final = 16 << 10
"""Bytes of a certificate. Those of TPMs have one or two thousand."""

BASIC_CONSTRAINTS: Final = "2.5.29.19"
KEY_USAGE: Final = "2.5.29.15"
EXTENDED_KEY_USAGE: Final = "2.5.29.37"
SUBJECT_ALTERNATIVE_NAME: Final = "2.5.29.17"

KEY_ENCIPHERMENT, KEY_AGREEMENT, KEY_CERT_SIGN, CRL_SIGN = 2, 4, 5, 6
"""Bits of key usage (RFC 5280, 4.2.1.3)."""

_RSA: Final = frozenset({"1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7"})
"""rsaEncryption, and id-RSAES-OAEP, which the EK Credential Profile (3.2.3) has for endorsement keys."""
_RSA_BITS: Final = range(2048, 8193)
_PSS: Final = "1.2.840.113549.1.1.10"
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
    "1.2.840.10045.4.3.2": hashes.SHA256(),
    "1.2.840.10045.4.3.3": hashes.SHA384(),
    "1.2.840.10045.4.3.4": hashes.SHA512(),
}
_PSS_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
_WEAK: Final = {"1.2.840.113549.1.1.4": "MD5", "1.2.840.113549.1.1.5": "SHA-1", "1.2.840.10045.4.1": "SHA-1"}
_COMMON_NAME: Final = "2.5.4.3"
_TITLE: Final = 128
_STORED_HEADER: Final = b"\x10\x01\x00"
"""Of a TCG_PCCLIENT_STORED_CERT in NV, before two octets of length and the certificate."""

Name = tuple[frozenset[tuple[str, str]], ...]
"""Relative names in their order, each a set of types and texts, in one case and with single spaces (RFC 5280, 7.1)."""


@dataclass(frozen=True, slots=True)
class Signed:
    """Something signed: the octets, and the AlgorithmIdentifier and signature over them."""

    octets: bytes
    algorithm: str
    parameters: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Extension:
    critical: bool
    value: bytes


class Issued(Protocol):
    """What issuers give out, for a time: certificates of keys or of attributes. `label` is for people."""

    @property
    def serial(self) -> int: ...
    @property
    def not_before(self) -> datetime: ...
    @property
    def not_after(self) -> datetime: ...
    @property
    def label(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Certificate:
    """`raw` is without padding. `key` is None for algorithms that are not known here. The titles are for people."""

    raw: bytes
    version: int
    serial: int
    issuer: Name
    subject: Name
    not_before: datetime
    not_after: datetime
    key: PublicKey | None
    extensions: dict[str, Extension] = field(repr=False)
    signed: Signed = field(repr=False)
    title: str
    issuer_title: str

    @property
    def self_issued(self) -> bool:
        return self.issuer == self.subject

    @property
    def label(self) -> str:
        """For people: the subject, or the serial number of who has none to speak of."""
        return self.title or f"with serial number {self.serial:x}"


def without_padding(data: bytes) -> bytes:
    """The certificate in an NV index, which may be longer, filled up with zeros or ones. Raises InvalidArgument."""
    if data.startswith(_STORED_HEADER):
        data = data[5:]
    element = ber.read(data).expect(ber.SEQUENCE, "the certificate")
    if data[len(element.raw) :].strip(b"\0") and data[len(element.raw) :].strip(b"\xff"):
        raise InvalidArgument("bytes follow the certificate")
    return element.raw


@lru_cache(maxsize=1024)
def authority(der: bytes) -> Certificate:
    """As `parse`, for certificates that come again and again."""
    return parse(der)


def parse(data: bytes) -> Certificate:
    """A certificate in DER, or nearly so. Raises InvalidArgument."""
    if len(data) > LIMIT:
        raise InvalidArgument(f"the certificate has {len(data)} bytes; at most {LIMIT} are read")
    raw = without_padding(data)
    body, signed = signed_parts(raw, "the certificate")
    fields = body.children()
    version = ber.optional(fields, 0xA0)
    serial = ber.integer(ber.required(fields, ber.INTEGER, "the serial number"), "the serial number")
    algorithm = ber.required(fields, ber.SEQUENCE, "the signature algorithm")
    if algorithm_of(algorithm) != (signed.algorithm, signed.parameters):
        raise InvalidArgument("the certificate names two signature algorithms")
    issuer = ber.required(fields, ber.SEQUENCE, "the issuer")
    validity = ber.required(fields, ber.SEQUENCE, "the validity").children()
    if len(validity) != 2:
        raise InvalidArgument("the validity is no pair of times")
    subject = ber.required(fields, ber.SEQUENCE, "the subject")
    key = public_key(ber.required(fields, ber.SEQUENCE, "the public key"))
    while fields and fields[0].tag in {0x81, 0x82, 0xA1, 0xA2}:  # unique identifiers
        fields.pop(0)
    extensions = ber.optional(fields, 0xA3)
    if fields:
        raise InvalidArgument("the certificate has parts that no certificate has")
    return Certificate(
        raw=raw,
        version=_version(version),
        serial=serial,
        issuer=read_name(issuer),
        subject=read_name(subject),
        not_before=ber.time(validity[0], "the beginning of the validity"),
        not_after=ber.time(validity[1], "the end of the validity"),
        key=key,
        extensions={} if extensions is None else _wrapped_extensions(extensions),
        signed=signed,
        title=title(subject),
        issuer_title=title(issuer),
    )


def _version(element: Element | None) -> int:
    if element is None:
        return 1
    return ber.integer(ber.read(element.content), "the version") + 1


def signed_parts(raw: bytes, what: str) -> tuple[Element, Signed]:
    """What is signed, and the signature, of what has the form SIGNED{} (X.509). Raises InvalidArgument."""
    parts = ber.whole(raw, ber.SEQUENCE, what).children()
    if len(parts) != 3:
        raise InvalidArgument(f"{what} is not made of content, algorithm and signature")
    body = parts[0].expect(ber.SEQUENCE, what)
    algorithm, parameters = algorithm_of(parts[1].expect(ber.SEQUENCE, "the signature algorithm"))
    return body, Signed(body.raw, algorithm, parameters, ber.bits(parts[2], "the signature"))


def algorithm_of(element: Element) -> tuple[str, bytes]:
    """An AlgorithmIdentifier: the object identifier, and the parameters as they are."""
    found = element.children()
    oid = ber.object_identifier(ber.required(found, ber.OBJECT_IDENTIFIER, "the algorithm"), "the algorithm")
    return oid, b"".join(part.raw for part in found)


def read_name(element: Element) -> Name:
    """Raises InvalidArgument."""
    name: list[frozenset[tuple[str, str]]] = []
    for relative in element.expect(ber.SEQUENCE, "the name").children():
        attributes = relative.expect(ber.SET, "the name").children()
        name.append(frozenset((kind, " ".join(value.casefold().split())) for kind, value in map(attribute, attributes)))
    return tuple(name)


def title(element: Element) -> str:
    """A Name for people: its common name, or all of it where there is none, in one line and not long."""
    attributes = [attribute(one) for relative in element.children() for one in relative.children()]
    texts = [text for kind, text in attributes if kind == _COMMON_NAME] or [text for _, text in attributes]
    return "".join(character if character.isprintable() else "?" for character in ", ".join(texts))[:_TITLE]


def attribute(element: Element) -> tuple[str, str]:
    """An AttributeTypeAndValue, the value as text. Raises InvalidArgument."""
    parts = element.expect(ber.SEQUENCE, "the name").children()
    if len(parts) != 2:
        raise InvalidArgument("the name is malformed: an attribute is a type and a value")
    return ber.object_identifier(parts[0], "the name"), ber.text(parts[1])


def _wrapped_extensions(element: Element) -> dict[str, Extension]:
    return read_extensions(ber.whole(element.content, ber.SEQUENCE, "the extensions"))


def read_extensions(element: Element) -> dict[str, Extension]:
    """Raises InvalidArgument, for an extension that is there twice, too."""
    found: dict[str, Extension] = {}
    for one in element.children():
        parts = one.expect(ber.SEQUENCE, "an extension").children()
        oid = ber.object_identifier(ber.required(parts, ber.OBJECT_IDENTIFIER, "an extension"), "an extension")
        critical = ber.optional(parts, ber.BOOLEAN)
        value = ber.required(parts, ber.OCTET_STRING, f"the extension {oid}").content
        if parts or oid in found:
            raise InvalidArgument(f"the extension {oid} is malformed or there twice")
        found[oid] = Extension(critical is not None and ber.boolean(critical, f"the extension {oid}"), value)
    return found


def public_key(element: Element) -> PublicKey | None:
    """The RSA or EC key of a SubjectPublicKeyInfo; None for another. Raises InvalidArgument."""
    parts = element.children()
    if len(parts) != 2:
        raise InvalidArgument("the public key is malformed")
    oid, _ = algorithm_of(parts[0].expect(ber.SEQUENCE, "the public key"))
    try:
        if oid in _RSA:
            numbers = ber.whole(ber.bits(parts[1], "the public key"), ber.SEQUENCE, "the RSA key").children()
            # An octet for the sign is forgotten at times; there are no negative ones.
            modulus, exponent = (int.from_bytes(one.expect(ber.INTEGER, "the RSA key").content) for one in numbers)
            if modulus.bit_length() not in _RSA_BITS:
                raise InvalidArgument(f"the RSA key has {modulus.bit_length()} bits; 2048 to 8192 are taken")
            return rsa.RSAPublicNumbers(exponent, modulus).public_key()
        key = serialization.load_der_public_key(element.raw)
    except UnsupportedAlgorithm:
        return None
    except ValueError as error:
        raise InvalidArgument("the public key is malformed") from error
    return key if isinstance(key, PublicKey) else None


def verify_signature(signed: Signed, key: PublicKey | None, what: str, instead: str = "get a newer one") -> None:
    """Raises Refused unless the key made the signature, by a hash of today; `instead` is what to do without."""
    if signed.algorithm in _WEAK:
        raise Refused(f"{what} is signed with {_WEAK[signed.algorithm]}, which proves nothing any more: {instead}")
    scheme, algorithm = _scheme(signed, what)
    try:
        if isinstance(key, rsa.RSAPublicKey) and scheme is not None:
            key.verify(signed.signature, signed.octets, scheme, algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and scheme is None:
            key.verify(signed.signature, signed.octets, ec.ECDSA(algorithm))
        else:
            raise Refused(f"{what} is signed by another kind of key than its issuer has")
    except InvalidSignature as error:
        raise Refused(f"{what} is not signed by its issuer") from error


def _scheme(signed: Signed, what: str) -> tuple[padding.AsymmetricPadding | None, hashes.HashAlgorithm]:
    """The padding of RSA, None for ECDSA, and the hash."""
    if signed.algorithm == _PSS:
        algorithm = _pss_hash(signed.parameters)
        if algorithm is None:
            raise Refused(f"{what} is signed by RSA-PSS with parameters that are not taken")
        return padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH), algorithm
    if signed.algorithm not in _HASHES:
        raise Refused(f"{what} is signed by the algorithm {signed.algorithm}, which is not known here")
    is_rsa = signed.algorithm.startswith("1.2.840.113549.")
    return padding.PKCS1v15() if is_rsa else None, _HASHES[signed.algorithm]


def _pss_hash(parameters: bytes) -> hashes.HashAlgorithm | None:
    """The hash of RSASSA-PSS-params (RFC 4055, 3.1), if MGF1 has the same and the salt its length."""
    try:
        tagged = {part.tag: ber.read(part.content) for part in ber.whole(parameters, ber.SEQUENCE, "PSS").children()}
        oid, _ = algorithm_of(tagged[0xA0])
        mask, inner = algorithm_of(tagged[0xA1])
        mask_oid, _ = algorithm_of(ber.read(inner))
        algorithm = _PSS_HASHES.get(oid)
        salt = ber.integer(tagged[0xA2], "the salt's length")
    except (InvalidArgument, KeyError):
        return None
    same = mask == "1.2.840.113549.1.1.8" and mask_oid == oid
    return algorithm if algorithm is not None and same and salt == algorithm.digest_size else None
