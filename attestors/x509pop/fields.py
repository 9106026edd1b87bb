"""A certificate as agent path templates see it: names of Go's x509.Certificate, which operators' templates use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cryptography import x509
from cryptography.x509.oid import NameOID

from attestors.agent_path import Value

NAMES = frozenset(
    (
        *("Version", "SerialNumber", "Subject", "Issuer", "IsCA", "DNSNames", "EmailAddresses", "IPAddresses", "URIs"),
        *("SubjectKeyId", "AuthorityKeyId"),
    )
)
"""Of the fields of a certificate."""

_LISTS = {
    "Country": NameOID.COUNTRY_NAME,
    "Organization": NameOID.ORGANIZATION_NAME,
    "OrganizationalUnit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "Locality": NameOID.LOCALITY_NAME,
    "Province": NameOID.STATE_OR_PROVINCE_NAME,
    "StreetAddress": NameOID.STREET_ADDRESS,
    "PostalCode": NameOID.POSTAL_CODE,
}
_TEXTS = {"CommonName": NameOID.COMMON_NAME, "SerialNumber": NameOID.SERIAL_NUMBER}


def certificate_fields(certificate: x509.Certificate) -> dict[str, Callable[[], Value]]:
    """For Fields: those of the fields that can make a path, names, numbers and key identifiers."""
    return {
        "Version": lambda: certificate.version.value + 1,
        "SerialNumber": lambda: certificate.serial_number,
        "Subject": lambda: _name(certificate.subject),
        "Issuer": lambda: _name(certificate.issuer),
        "IsCA": lambda: _is_ca(certificate),
        "DNSNames": lambda: [name.value for name in _names(certificate) if isinstance(name, x509.DNSName)],
        "EmailAddresses": lambda: [name.value for name in _names(certificate) if isinstance(name, x509.RFC822Name)],
        "IPAddresses": lambda: [str(name.value) for name in _names(certificate) if isinstance(name, x509.IPAddress)],
        "URIs": lambda: [
            name.value for name in _names(certificate) if isinstance(name, x509.UniformResourceIdentifier)
        ],
        "SubjectKeyId": lambda: _subject_key(certificate),
        "AuthorityKeyId": lambda: _authority_key(certificate),
    }


def _name(name: x509.Name) -> Mapping[str, Value]:
    fields: dict[str, Value] = {}
    for field, oid in _LISTS.items():
        fields[field] = [_text(attribute.value) for attribute in name.get_attributes_for_oid(oid)]
    for field, oid in _TEXTS.items():
        # Of several the last one counts, as in Go.
        fields[field] = ([""] + [_text(attribute.value) for attribute in name.get_attributes_for_oid(oid)])[-1]
    return fields


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _subject_key(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return b""


def _authority_key(certificate: x509.Certificate) -> bytes:
    try:
        identifier = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return b""
    return identifier.key_identifier or b""
