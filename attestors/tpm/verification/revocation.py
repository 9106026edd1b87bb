"""Certificate revocation lists (RFC 5280, 5), as files that an operator fetched: nothing is asked over the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from attestors.tpm.verification import ber, certificates
from attestors.tpm.verification.certificates import Certificate, Issued, Name, Signed
from operations.errors import InvalidArgument, Refused

LIMIT: Final = 8 << 20
"""Bytes of a list."""

_ISSUING_DISTRIBUTION_POINT: Final = "2.5.29.28"
_AUTHORITY_KEY_IDENTIFIER: Final = "2.5.29.35"
_CRL_NUMBER: Final = "2.5.29.20"
_UNDERSTOOD: Final = frozenset({_ISSUING_DISTRIBUTION_POINT, _AUTHORITY_KEY_IDENTIFIER, _CRL_NUMBER})


@dataclass(frozen=True, slots=True)
class RevocationList:
    """`serials` are those of revoked certificates, on hold ones too. `next_update` is None where it never ends."""

    issuer: Name
    this_update: datetime
    next_update: datetime | None
    serials: frozenset[int] = field(repr=False)
    signed: Signed = field(repr=False)


def parse(data: bytes) -> RevocationList:
    """A CertificateList in DER. Raises InvalidArgument, for a list of some reasons or of other issuers too."""
    if len(data) > LIMIT:
        raise InvalidArgument(f"the revocation list has {len(data)} bytes; at most {LIMIT} are read")
    body, signed = certificates.signed_parts(data, "the revocation list")
    fields = body.children()
    ber.optional(fields, ber.INTEGER)
    algorithm = ber.required(fields, ber.SEQUENCE, "the signature algorithm")
    if certificates.algorithm_of(algorithm) != (signed.algorithm, signed.parameters):
        raise InvalidArgument("the revocation list names two signature algorithms")
    issuer = certificates.read_name(ber.required(fields, ber.SEQUENCE, "the issuer"))
    if not fields:
        raise InvalidArgument("the revocation list has no time")
    this_update = ber.time(fields.pop(0), "the list's time")
    next_update = None
    if fields and fields[0].tag in {ber.UTC_TIME, ber.GENERALIZED_TIME}:
        next_update = ber.time(fields.pop(0), "the time of the next list")
    revoked = ber.optional(fields, ber.SEQUENCE)
    extensions = ber.optional(fields, 0xA0)
    if fields:
        raise InvalidArgument("the revocation list has parts that none has")
    if extensions is not None:
        _require_whole(ber.whole(extensions.content, ber.SEQUENCE, "the extensions"))
    serials = frozenset(_serials(revoked.content)) if revoked is not None else frozenset[int]()
    return RevocationList(issuer, this_update, next_update, serials, signed)


def _serials(content: bytes) -> Iterable[int]:
    for entry in ber.elements(content):
        yield ber.integer(ber.read(entry.expect(ber.SEQUENCE, "the list").content), "a revoked serial number")


def _require_whole(extensions: ber.Element) -> None:
    """A list that leaves something out, in a way that has to be understood, cannot be taken for the whole."""
    for oid, extension in certificates.read_extensions(extensions).items():
        if extension.critical and oid not in _UNDERSTOOD:
            raise InvalidArgument(f"the revocation list has the critical extension {oid}, which is not known here")
        if oid == _ISSUING_DISTRIBUTION_POINT:
            point = ber.whole(extension.value, ber.SEQUENCE, "the distribution point").children()
            if any(part.tag in {0x83, 0x84} and part.content != b"\0" for part in point):
                raise InvalidArgument("the revocation list is one of some reasons only, or of other issuers")


def require_unrevoked(certificate: Issued, issuer: Certificate, lists: Iterable[RevocationList], now: datetime) -> None:
    """Raise Refused if a list of the issuer has the certificate, or if it has lists of which none can be believed.

    An issuer without lists revokes nothing.
    """
    of_issuer = [one for one in lists if one.issuer == issuer.subject]
    if not of_issuer:
        return
    if not may(issuer, certificates.CRL_SIGN):
        raise Refused(f"the issuer {issuer.label} must not sign revocation lists, by its key usage; take its list away")
    faults: list[str] = []
    current = False
    for one in of_issuer:
        try:
            certificates.verify_signature(one.signed, issuer.key, f"the revocation list of {issuer.label}")
        except Refused as error:
            faults.append(str(error))
            continue
        if certificate.serial in one.serials:
            raise Refused(f"the certificate {certificate.label} was revoked by {issuer.label}")
        if one.this_update <= now and (one.next_update is None or now <= one.next_update):
            current = True
        else:
            faults.append(
                f"the revocation list of {issuer.label} is of {one.this_update:%Y-%m-%d} and ended: fetch a newer one"
            )
    if not current:
        raise Refused(faults[0])


def is_revoked(certificate: Issued, issuer: Certificate, lists: Iterable[RevocationList]) -> bool:
    """Whether a list that the issuer signed has the certificate, be it current or not."""
    for one in lists:
        if one.issuer == issuer.subject and certificate.serial in one.serials:
            try:
                certificates.verify_signature(one.signed, issuer.key, "the revocation list")
            except Refused:
                continue
            return True
    return False


def may(certificate: Certificate, bit: int) -> bool:
    """Whether the key usage has the bit, or there is none to restrict it. Raises Refused for a malformed one."""
    extension = certificate.extensions.get(certificates.KEY_USAGE)
    if extension is None:
        return True
    try:
        content = ber.whole(extension.value, ber.BIT_STRING, "the key usage").content
    except InvalidArgument as error:
        raise Refused(f"the certificate {certificate.label} cannot be used: {error}") from error
    octets = content[1:]
    return bit // 8 < len(octets) and bool(octets[bit // 8] & 0x80 >> bit % 8)
