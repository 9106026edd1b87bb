"""Subjects of authorities and leaves, in the attribute order that SPIRE writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

_MAX_COMMON_NAME = 64

_ORDER = (
    NameOID.COUNTRY_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.LOCALITY_NAME,
    NameOID.STATE_OR_PROVINCE_NAME,
    NameOID.STREET_ADDRESS,
    NameOID.POSTAL_CODE,
    NameOID.COMMON_NAME,
    NameOID.SERIAL_NUMBER,
)


@dataclass(frozen=True, slots=True)
class Subject:
    """The `ca_subject` of a configuration. All empty: the default."""

    country: tuple[str, ...] = ()
    organization: tuple[str, ...] = ()
    common_name: str = ""


def authority_name(subject: Subject, serial: int) -> x509.Name:
    """An authority's subject: as configured, else C=US, O=SPIFFE; its serialNumber is the certificate's, in decimal.

    Raises ValueError for what an X.501 name cannot hold, such as a country of three letters.
    """
    if subject == Subject():
        subject = Subject(("US",), ("SPIFFE",))
    return _name(
        {
            NameOID.COUNTRY_NAME: subject.country,
            NameOID.ORGANIZATION_NAME: subject.organization,
            NameOID.COMMON_NAME: (subject.common_name,) if subject.common_name else (),
            NameOID.SERIAL_NUMBER: (str(serial),),
        }
    )


@lru_cache(maxsize=4096)
def leaf_name(common_name: str = "", requested: x509.Name | None = None) -> x509.Name:
    """A leaf's subject: what a minting operator asked for, else C=US, O=SPIRE; a first DNS name becomes its CN."""
    values = _values(requested) if requested is not None else {}
    if not values:
        values = {NameOID.COUNTRY_NAME: ("US",), NameOID.ORGANIZATION_NAME: ("SPIRE",)}
    # RFC 5280, A.1 bounds a CN, and strict parsers refuse longer ones. The SAN has the name in any case.
    if 0 < len(common_name) <= _MAX_COMMON_NAME:
        values = {**values, NameOID.COMMON_NAME: (common_name,)}
    return _name(values)


@lru_cache(maxsize=4096)
def leaf_name_der(common_name: str = "", requested: x509.Name | None = None) -> bytes:
    return leaf_name(common_name, requested).public_bytes()


def _values(name: x509.Name) -> dict[x509.ObjectIdentifier, tuple[str, ...]]:
    found: dict[x509.ObjectIdentifier, tuple[str, ...]] = {}
    for attribute in name:
        if attribute.oid in _ORDER and isinstance(attribute.value, str):
            found[attribute.oid] = (*found.get(attribute.oid, ()), attribute.value)
    return found


def _name(values: Mapping[x509.ObjectIdentifier, Sequence[str]]) -> x509.Name:
    """One RDN an attribute type, as SPIRE writes several organizations. Raises ValueError."""
    sets = ([x509.NameAttribute(oid, value) for value in dict.fromkeys(values.get(oid, ()))] for oid in _ORDER)
    return x509.Name([x509.RelativeDistinguishedName(attributes) for attributes in sets if attributes])
