"""X509-SVIDs spliced from a template (docs/adr/0002-der-templates.md).

An authority's leaves differ in seven places: serial number, validity, subject, public key, its key identifier, and
the names in the SAN. cryptography's builder makes the first certificate; from then on those places are replaced in its
DER. Property tests hold the result equal, byte for byte, to what the builder makes of the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from identity import asn1, der
from plugins.keymanager import KeyType
from server.ca import names, signing

_URI = 0x86  # GeneralName: [6] IMPLICIT IA5String (RFC 5280, 4.2.1.6)
_DNS_NAME = 0x82  # GeneralName: [2] IMPLICIT IA5String
_EXTENSIONS = 0xA3  # TBSCertificate: [3] EXPLICIT

_SAN_OID = bytes.fromhex("0603551d11")
_SKI_OID = bytes.fromhex("0603551d0e")
_CRITICAL = bytes.fromhex("0101ff")
_EMPTY_NAME = bytes.fromhex("3000")

_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class Extension:
    """A whole Extension (RFC 5280, 4.1) in DER, and its type's OBJECT IDENTIFIER in DER."""

    oid: bytes
    encoded: bytes

    @classmethod
    def of(cls, oid: str, value: bytes, *, critical: bool) -> Extension:
        """Of a dotted object identifier and the DER of the value. Raises ValueError."""
        encoded_oid = asn1.object_identifier(oid)
        return cls(encoded_oid, _extension(encoded_oid, value, critical=critical))


@dataclass(frozen=True, slots=True)
class Leaf:
    """The values of one X509-SVID. Times are unix seconds, `subject` and `public_key` DER, `serial` positive.

    Further `extensions` stand after the usual ones, or in the place of one of the same type.
    """

    serial: int
    not_before: int
    not_after: int
    subject: bytes
    spiffe_id: str
    dns_names: Sequence[str]
    public_key: bytes
    extensions: tuple[Extension, ...] = ()


class LeafTemplate:
    """Leaves of one issuer. `issuer` is its certificate, and `key_type` that of its key."""

    __slots__ = ("_after_serial", "_before_ski", "_between", "_version", "algorithm")

    def __init__(self, issuer: x509.Certificate, key_type: KeyType) -> None:
        subject = names.leaf_name()
        sample = Leaf(1, 0, 1, subject.public_bytes(), "spiffe://sample/leaf", (), signing.public_key_of(issuer))
        tbs, self.algorithm = signing.tbs_certificate(builder(issuer, sample, subject), key_type)
        self._version, _, algorithm, issuer_name, _, _, _, extensions = asn1.children(tbs)
        self._after_serial = algorithm + issuer_name
        (sequence,) = asn1.children(extensions)
        parts = list(asn1.children(sequence))
        ski, san = (_index_of(parts, oid) for oid in (_SKI_OID, _SAN_OID))
        if san != len(parts) - 1:
            raise ValueError("the SAN is to be the last extension of the template")
        self._before_ski = b"".join(parts[:ski])
        self._between = b"".join(parts[ski + 1 : san])

    def tbs(self, leaf: Leaf) -> bytes:
        """The DER TBSCertificate of a leaf."""
        extensions = b"".join(
            (
                self._before_ski,
                _extension(_SKI_OID, asn1.element(asn1.OCTET_STRING, signing.subject_key_id(leaf.public_key))),
                self._between,
                _san(leaf),
            )
        )
        if leaf.extensions:
            extensions = _with_further(extensions, leaf.extensions)
        return asn1.element(
            asn1.SEQUENCE,
            b"".join(
                (
                    self._version,
                    asn1.integer(leaf.serial),
                    self._after_serial,
                    asn1.validity(leaf.not_before, leaf.not_after),
                    leaf.subject,
                    leaf.public_key,
                    asn1.element(_EXTENSIONS, asn1.element(asn1.SEQUENCE, extensions)),
                )
            ),
        )


def builder(issuer: x509.Certificate, leaf: Leaf, subject: x509.Name) -> x509.CertificateBuilder:
    """The same leaf by cryptography's builder: the template's origin and the measure of its correctness.

    `subject` is what `leaf.subject` encodes.
    """
    key_id = x509.SubjectKeyIdentifier(signing.issuer_key_id(issuer))
    alternatives = [
        *(x509.DNSName(name) for name in leaf.dns_names),
        x509.UniformResourceIdentifier(leaf.spiffe_id),
    ]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(der.public_key(leaf.public_key))
        .serial_number(leaf.serial)
        .not_valid_before(signing.utc(leaf.not_before))
        .not_valid_after(signing.utc(leaf.not_after))
        .add_extension(key_usage("digital_signature", "key_encipherment", "key_agreement"), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(signing.subject_key_id(leaf.public_key)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=leaf.subject == _EMPTY_NAME)
    )


def key_usage(*usages: str) -> x509.KeyUsage:
    """A KeyUsage with these bits, by cryptography's names for them."""
    return x509.KeyUsage(**{usage: usage in usages for usage in _KEY_USAGES})


def _with_further(usual: bytes, further: Sequence[Extension]) -> bytes:
    replaced = {extension.oid for extension in further}
    present = asn1.children(asn1.element(asn1.SEQUENCE, usual))
    kept = (each for each in present if next(asn1.children(each)) not in replaced)
    return b"".join((*kept, *(extension.encoded for extension in further)))


def _san(leaf: Leaf) -> bytes:
    general_names = b"".join(
        (
            *(asn1.element(_DNS_NAME, name.encode("ascii")) for name in leaf.dns_names),
            asn1.element(_URI, leaf.spiffe_id.encode("ascii")),
        )
    )
    # RFC 5280, 4.2.1.6: critical where the subject is empty.
    return _extension(_SAN_OID, asn1.element(asn1.SEQUENCE, general_names), critical=leaf.subject == _EMPTY_NAME)


def _extension(oid: bytes, value: bytes, *, critical: bool = False) -> bytes:
    return asn1.element(asn1.SEQUENCE, oid + (_CRITICAL if critical else b"") + asn1.element(asn1.OCTET_STRING, value))


def _index_of(extensions: Sequence[bytes], oid: bytes) -> int:
    (index,) = (index for index, extension in enumerate(extensions) if next(asn1.children(extension)) == oid)
    return index
