"""Subjects of authorities and leaves, in the attribute order that SPIRE writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

from plugins.credentialcomposer import DistinguishedName

_MAX_COMMON_NAME = 64

_LISTS = {
    NameOID.COUNTRY_NAME: "country",
    NameOID.ORGANIZATION_NAME: "organization",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "organizational_unit",
    NameOID.LOCALITY_NAME: "locality",
    NameOID.STATE_OR_PROVINCE_NAME: "province",
    NameOID.STREET_ADDRESS: "street_address",
    NameOID.POSTAL_CODE: "postal_code",
}
_SINGLES = {NameOID.COMMON_NAME: "common_name", NameOID.SERIAL_NUMBER: "serial_number"}
_ORDER = (*_LISTS, *_SINGLES)


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


def downstream_name(issuer: x509.Name, depth: int) -> x509.Name:
    """The subject of an authority below this issuer: the issuer's, with the depth as its organizational unit."""
    return _name({**_values(issuer), NameOID.ORGANIZATIONAL_UNIT_NAME: (f"DOWNSTREAM-{depth}",)})


def to_distinguished_name(name: x509.Name) -> DistinguishedName:
    """For composers. What SPIRE's plugin API has no field for is left out."""
    values = _values(name)

    def texts(oid: x509.ObjectIdentifier) -> tuple[str, ...]:
        return values.get(oid, ())

    return DistinguishedName(
        country=texts(NameOID.COUNTRY_NAME),
        organization=texts(NameOID.ORGANIZATION_NAME),
        organizational_unit=texts(NameOID.ORGANIZATIONAL_UNIT_NAME),
        locality=texts(NameOID.LOCALITY_NAME),
        province=texts(NameOID.STATE_OR_PROVINCE_NAME),
        street_address=texts(NameOID.STREET_ADDRESS),
        postal_code=texts(NameOID.POSTAL_CODE),
        serial_number=next(iter(texts(NameOID.SERIAL_NUMBER)), ""),
        common_name=next(iter(texts(NameOID.COMMON_NAME)), ""),
    )


def from_distinguished_name(name: DistinguishedName) -> x509.Name:
    """Of a composer. Raises ValueError for what an X.501 name cannot hold."""
    extra = [x509.NameAttribute(x509.ObjectIdentifier(each.oid), each.value) for each in name.extra_names]
    values: dict[x509.ObjectIdentifier, Sequence[str]] = {oid: getattr(name, field) for oid, field in _LISTS.items()}
    values |= {oid: (value,) for oid, field in _SINGLES.items() if (value := getattr(name, field))}
    replaced = {attribute.oid for attribute in extra}
    usual = _name({oid: texts for oid, texts in values.items() if oid not in replaced})
    return x509.Name([*usual.rdns, *(x509.RelativeDistinguishedName([attribute]) for attribute in extra)])


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
