"""Platform certificates: which machine an endorsement key was built into, by its manufacturer's word.

Attribute certificates (RFC 5755; TCG Platform Attribute Credential Profile 1.0, Platform Certificate Profile 1.1) are
bound to the endorsement certificate by its issuer and serial number. Ordinary X.509 certificates with the purpose
tcg-kp-PlatformAttributeCertificate, as swtpm_localca makes them, have the endorsement key themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from attestors.tpm.messages import CERTIFICATES
from attestors.tpm.verification import ber, certificates, names, paths, trust
from attestors.tpm.verification.certificates import Certificate, Extension, Name, Signed
from attestors.tpm.verification.revocation import may, require_unrevoked
from attestors.tpm.verification.trust import Trust
from keystores import public_keys
from operations.errors import InvalidArgument, Refused

PLATFORM_CERTIFICATE: Final = "2.23.133.8.2"
"""tcg-kp-PlatformAttributeCertificate."""

_DIGITAL_SIGNATURE: Final = 0
_DIRECTORY_NAME: Final = 0xA4
_MANUFACTURER: Final = ("2.23.133.5.1.1", "2.23.133.2.4")
_MODEL: Final = ("2.23.133.5.1.4", "2.23.133.2.5")
_VERSION: Final = ("2.23.133.5.1.5", "2.23.133.2.6")
_SERIAL: Final = ("2.23.133.5.1.6",)
"""Attributes of the platform: those of profile 1.1, and those of 1.0."""
_UNDERSTOOD: Final = frozenset({"2.5.29.17", "2.5.29.31", "2.5.29.32", "2.5.29.35", "1.3.6.1.5.5.7.1.1", "2.5.29.55"})


@dataclass(frozen=True, slots=True)
class Platform:
    """What the certificate calls the machine; empty where it says nothing."""

    manufacturer: str
    model: str
    version: str
    serial: str


@dataclass(frozen=True, slots=True)
class AttributeCertificate:
    """`holder` is the issuer and serial number of the endorsement certificate that it is about."""

    holder: tuple[Name, int]
    issuer: Name
    serial: int
    not_before: datetime
    not_after: datetime
    extensions: dict[str, Extension] = field(repr=False)
    signed: Signed = field(repr=False)
    issuer_title: str

    @property
    def label(self) -> str:
        return f"of the platform, with serial number {self.serial:x}"


def load(path: str) -> Trust:
    """Read a file or folder of who signs platform certificates, CAs or not, and of revocation lists (PEM or DER).

    Blocks. Raises ConfigurationError.
    """
    return trust.load_signers(path)


def verify(given: Sequence[bytes], trusted: Trust, ek_certificate: bytes, now: datetime) -> Platform:
    """What the first certificate that holds says, of those that a node gave; those of issuers may be among them.

    `ek_certificate` is one that was verified. `now` is aware. Raises InvalidArgument when the endorsement certificate
    cannot be read, Refused when no platform certificate holds.
    """
    endorsement = certificates.parse(ek_certificate)
    if len(given) > CERTIFICATES:
        raise Refused(f"there are {len(given)} platform certificates; at most {CERTIFICATES} are read")
    parsed, faults = _parsed(given)
    authorities = trust.authorities(trusted.anchors, trusted.crls)
    intermediates = [one for one in parsed if isinstance(one, Certificate)]
    for one in parsed:
        try:
            if isinstance(one, AttributeCertificate):
                return _by_attributes(one, intermediates, authorities, endorsement, now)
            if PLATFORM_CERTIFICATE in (paths.purposes(one) or ()):
                return _by_key(one, intermediates, authorities, endorsement, now)
        except Refused as error:
            faults.append(str(error))
    raise Refused(f"no platform certificate holds: {faults[0]}" if faults else "the node has no platform certificate")


def parse(data: bytes) -> AttributeCertificate:
    """An attribute certificate in DER. Raises InvalidArgument."""
    if len(data) > certificates.LIMIT:
        raise InvalidArgument(f"the certificate has {len(data)} bytes; at most {certificates.LIMIT} are read")
    raw = certificates.without_padding(data)
    body, signed = certificates.signed_parts(raw, "the attribute certificate")
    fields = body.children()
    if ber.integer(ber.required(fields, ber.INTEGER, "the version"), "the version") != 1:
        raise InvalidArgument("the attribute certificate is not of version 2")
    holder = ber.required(fields, ber.SEQUENCE, "the holder")
    issuer = _issuer(ber.required(fields, 0xA0, "the issuer, in the form of version 2,"))
    algorithm = ber.required(fields, ber.SEQUENCE, "the signature algorithm")
    if certificates.algorithm_of(algorithm) != (signed.algorithm, signed.parameters):
        raise InvalidArgument("the attribute certificate names two signature algorithms")
    serial = ber.integer(ber.required(fields, ber.INTEGER, "the serial number"), "the serial number")
    period = ber.required(fields, ber.SEQUENCE, "the validity").children()
    if len(period) != 2:
        raise InvalidArgument("the validity is no pair of times")
    ber.required(fields, ber.SEQUENCE, "the attributes")
    ber.optional(fields, ber.BIT_STRING)
    extensions = ber.optional(fields, ber.SEQUENCE)
    if fields:
        raise InvalidArgument("the attribute certificate has parts that none has")
    return AttributeCertificate(
        holder=_holder(holder),
        issuer=certificates.read_name(issuer),
        serial=serial,
        not_before=ber.time(period[0], "the beginning of the validity"),
        not_after=ber.time(period[1], "the end of the validity"),
        extensions={} if extensions is None else certificates.read_extensions(extensions),
        signed=signed,
        issuer_title=certificates.title(issuer),
    )


def describe(extensions: dict[str, Extension]) -> Platform:
    """What is said in the subject's alternative names."""
    said = names.alternative(extensions)

    def first(kinds: Sequence[str]) -> str:
        return next((said[kind] for kind in kinds if kind in said), "")

    return Platform(first(_MANUFACTURER), first(_MODEL), first(_VERSION), first(_SERIAL))


def _parsed(given: Sequence[bytes]) -> tuple[list[AttributeCertificate | Certificate], list[str]]:
    """What can be read, and why not of the rest."""
    found: list[AttributeCertificate | Certificate] = []
    faults: list[str] = []
    for one in given:
        try:
            found.append(_one(one))
        except InvalidArgument as error:
            faults.append(str(error))
    return found, faults


def _one(data: bytes) -> AttributeCertificate | Certificate:
    """The version of an attribute certificate stands at its beginning; that of X.509 is tagged or missing."""
    body, _ = certificates.signed_parts(certificates.without_padding(data), "the certificate")
    kinds = [element.tag for element in body.children()[:2]]
    return parse(data) if kinds == [ber.INTEGER, ber.SEQUENCE] and _is_versioned(body) else certificates.parse(data)


def _is_versioned(body: ber.Element) -> bool:
    """X.509 of version 1 begins with serial number and algorithm, too, whose first element is no context tag."""
    holder = body.children()[1].children()
    return bool(holder) and holder[0].tag & 0xC0 == 0x80


def _holder(element: ber.Element) -> tuple[Name, int]:
    """baseCertificateID of a Holder. Raises InvalidArgument for a holder in another form."""
    for part in element.children():
        if part.tag == 0xA0:
            fields = part.children()
            general = ber.required(fields, ber.SEQUENCE, "the holder's issuer").children()
            serial = ber.required(fields, ber.INTEGER, "the holder's serial number")
            return certificates.read_name(_directory_name(general)), ber.integer(serial, "the holder's serial number")
    raise InvalidArgument("the attribute certificate names no endorsement certificate by issuer and serial number")


def _issuer(element: ber.Element) -> ber.Element:
    fields = element.children()
    return _directory_name(ber.required(fields, ber.SEQUENCE, "the issuer").children())


def _directory_name(general: list[ber.Element]) -> ber.Element:
    if len(general) != 1 or general[0].tag != _DIRECTORY_NAME:
        raise InvalidArgument("the attribute certificate names someone other than by one directory name")
    return ber.whole(general[0].content, ber.SEQUENCE, "the directory name")


def _by_attributes(
    one: AttributeCertificate,
    intermediates: Sequence[Certificate],
    authorities: paths.Authorities,
    endorsement: Certificate,
    now: datetime,
) -> Platform:
    if one.holder != (endorsement.issuer, endorsement.serial):
        raise Refused("the platform certificate is of another endorsement certificate")
    paths.require_in_force(one, now)
    for oid, extension in one.extensions.items():
        if extension.critical and oid not in _UNDERSTOOD:
            raise Refused(f"the platform certificate has the critical extension {oid}, which is not known here")
    faults: list[str] = []
    for signer in _signers(one.issuer, intermediates, authorities):
        try:
            _require_signed(one, signer, intermediates, authorities, now)
        except Refused as error:
            faults.append(str(error))
        else:
            return describe(one.extensions)
    raise Refused(faults[0] if faults else f"nobody is trusted who is named {one.issuer_title}")


def _signers(name: Name, intermediates: Sequence[Certificate], authorities: paths.Authorities) -> list[Certificate]:
    return [*authorities.anchors.get(name, ()), *(one for one in intermediates if one.subject == name)]


def _require_signed(
    one: AttributeCertificate,
    signer: Certificate,
    intermediates: Sequence[Certificate],
    authorities: paths.Authorities,
    now: datetime,
) -> None:
    paths.require_known_extensions(signer)
    if not may(signer, _DIGITAL_SIGNATURE) and not may(signer, certificates.KEY_CERT_SIGN):
        raise Refused(f"{signer.label} must sign nothing, by its key usage")
    if signer in authorities.anchors.get(signer.subject, ()):
        paths.require_in_force(signer, now)
    else:
        paths.verified(signer, intermediates, authorities, PLATFORM_CERTIFICATE, now)
    certificates.verify_signature(one.signed, signer.key, "the platform certificate")
    require_unrevoked(one, signer, authorities.lists, now)


def _by_key(
    one: Certificate,
    intermediates: Sequence[Certificate],
    authorities: paths.Authorities,
    endorsement: Certificate,
    now: datetime,
) -> Platform:
    if one.key is None or endorsement.key is None:
        raise Refused("the platform certificate has no key that is known here")
    if public_keys.to_der(one.key) != public_keys.to_der(endorsement.key):
        raise Refused("the platform certificate is of another endorsement key")
    is_ca, _ = paths.basic_constraints(one)
    if is_ca:
        raise Refused("the platform certificate is a CA's")
    paths.require_known_extensions(one)
    paths.verified(one, intermediates, authorities, PLATFORM_CERTIFICATE, now)
    return describe(one.extensions)
