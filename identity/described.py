"""A verified chain in a few words, for people who look at a running program."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from identity import der, x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument

# The types of RFC 2253 and some more, in the order in which Go puts a name together.
_TYPES: Final[Mapping[ObjectIdentifier, str]] = {
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STREET_ADDRESS: "STREET",
    NameOID.POSTAL_CODE: "POSTALCODE",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COMMON_NAME: "CN",
    NameOID.SERIAL_NUMBER: "SERIALNUMBER",
}
_SINGLE: Final = frozenset((NameOID.COMMON_NAME, NameOID.SERIAL_NUMBER))


@dataclass(frozen=True, slots=True)
class Described:
    """One certificate. `expires_at` is in Unix seconds; `spiffe_id` None where it has none."""

    spiffe_id: SpiffeId | None
    expires_at: int
    subject: str


def describe(
    chain: Sequence[bytes], roots: Mapping[TrustDomain, Sequence[bytes]], now: datetime
) -> tuple[Described, ...]:
    """The chain up to the root that it leads to, leaf first. Raises as x509svid.verify."""
    return tuple(_described(certificate) for certificate in x509svid.verified_path(chain, roots, now))


def _described(certificate: bytes) -> Described:
    parsed = der.certificate(certificate)
    try:
        spiffe_id = x509svid.leaf_id(certificate)
    except InvalidArgument:
        spiffe_id = None
    return Described(spiffe_id, int(parsed.not_valid_after_utc.timestamp()), subject_text(parsed.subject))


def subject_text(name: x509.Name) -> str:
    """A name as Go's crypto/x509/pkix prints it: known types in its own order, all in reverse, `O=SPIRE,C=US`."""
    values: defaultdict[ObjectIdentifier, list[str]] = defaultdict(list)
    parts: list[str] = []
    for attribute in name:
        if attribute.oid in _TYPES:
            values[attribute.oid].append(_escaped(str(attribute.value)))
        else:
            parts.append(f"{attribute.oid.dotted_string}=#{_value_der(attribute).hex()}")
    for oid, label in _TYPES.items():
        # Of those that can be there once only, the last counts.
        found = values[oid][-1:] if oid in _SINGLE else values[oid]
        if found:
            parts.append("+".join(f"{label}={value}" for value in found))
    return ",".join(reversed(parts))


def _value_der(attribute: x509.NameAttribute[str | bytes]) -> bytes:
    """The attribute's value as DER: it ends the only SEQUENCE of the only SET of a name (RFC 5280, 4.1.2.4)."""
    rest = x509.Name([attribute]).public_bytes()
    for _ in range(3):
        rest = rest[2 if rest[1] < 0x80 else 2 + (rest[1] & 0x7F) :]
    return rest[2 + rest[1] :]  # behind the type, whose length is one byte


def _escaped(value: str) -> str:
    """RFC 2253, 2.4."""
    escaped = "".join(f"\\{char}" if char in ',+"\\<>;' else char for char in value)
    if escaped[:1] in ("#", " "):
        escaped = f"\\{escaped}"
    return f"{escaped[:-1]}\\ " if len(value) > 1 and value.endswith(" ") else escaped
