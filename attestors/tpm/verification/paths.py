"""From a certificate up to an anchor (RFC 5280, section 6), within a limit of work.

Policies and name constraints are not processed: critical ones are refused, as RFC 5280 asks of who does not know them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from attestors.tpm.verification import ber, certificates
from attestors.tpm.verification.certificates import Certificate, Issued, Name
from attestors.tpm.verification.revocation import RevocationList, is_revoked, may, require_unrevoked
from operations.errors import InvalidArgument, Refused

MAX_LENGTH: Final = 8
"""Certificates of a path, leaf and anchor included."""
MAX_CHECKS: Final = 48
"""Signatures that are checked: who sends the certificates could make very many paths of them."""

_UNDERSTOOD: Final = frozenset(
    {
        certificates.BASIC_CONSTRAINTS,
        certificates.KEY_USAGE,
        certificates.EXTENDED_KEY_USAGE,
        certificates.SUBJECT_ALTERNATIVE_NAME,
        "2.5.29.9",  # subject directory attributes, where a TPM's specification is
        "2.5.29.14",  # key identifiers
        "2.5.29.35",
        "2.5.29.31",  # where revocation lists are
        "2.5.29.32",  # certificate policies: nobody asks for a certain one
        "1.3.6.1.5.5.7.1.1",  # where the issuer's certificate is
    }
)
_ANY_PURPOSE: Final = "2.5.29.37.0"
_INSTEAD: Final = "make its CA's certificate an anchor itself, or list the endorsement key's hash"


@dataclass(frozen=True, slots=True)
class Authorities:
    """What an operator trusts, by subject, and the revocation lists there are."""

    anchors: Mapping[Name, Sequence[Certificate]]
    lists: Sequence[RevocationList] = ()


Path = tuple[Certificate, ...]
"""Leaf first, anchor last."""


def verified(
    leaf: Certificate, intermediates: Sequence[Certificate], authorities: Authorities, purpose: str, now: datetime
) -> Path:
    """A valid path from the leaf to an anchor. `purpose` is the extended key usage that CAs may be restricted to.

    What the leaf has to be itself, other than in force and not revoked, is for the caller. `now` is aware. Raises
    Refused.
    """
    require_in_force(leaf, now)
    search = _Search(authorities, by_subject(intermediates), purpose, now)
    found = search.extend((leaf,))
    if found is None:
        raise Refused(
            search.faults[0]
            if search.faults
            else f"no trusted CA is named {leaf.issuer_title}, which issued the certificate {leaf.label}, and no "
            "intermediate leads to one: trust that CA or its root"
        )
    return found


def by_subject(found: Sequence[Certificate]) -> dict[Name, list[Certificate]]:
    named: dict[Name, list[Certificate]] = {}
    for certificate in found:
        named.setdefault(certificate.subject, []).append(certificate)
    return named


@dataclass(slots=True)
class _Search:
    """Depth first. `faults` are what was wrong with the candidates, the first one being the best tried."""

    authorities: Authorities
    intermediates: Mapping[Name, Sequence[Certificate]]
    purpose: str
    now: datetime
    checks: int = 0
    faults: list[str] = field(default_factory=list[str])

    def extend(self, path: Path) -> Path | None:
        for issuer, is_anchor in self._candidates(path):
            self.checks += 1
            if self.checks > MAX_CHECKS:
                self.faults.insert(0, "the certificates make more paths than are looked at")
                return None
            try:
                self._require(path, issuer, anchor=is_anchor)
                if is_anchor:
                    self._require_unrevoked_anchor(issuer)
                    return (*path, issuer)
            except Refused as error:
                self.faults.append(str(error))
                continue
            found = self.extend((*path, issuer))
            if found is not None:
                return found
        return None

    def _candidates(self, path: Path) -> Iterator[tuple[Certificate, bool]]:
        name = path[-1].issuer
        if len(path) == MAX_LENGTH:
            self.faults.insert(0, f"the certificates make a chain longer than the {MAX_LENGTH} that are looked at")
            return
        for anchor in self.authorities.anchors.get(name, ()):
            yield anchor, True
        for intermediate in self.intermediates.get(name, ()):
            if all(intermediate.raw != one.raw for one in path):
                yield intermediate, False

    def _require(self, path: Path, issuer: Certificate, *, anchor: bool) -> None:
        require_in_force(issuer, self.now)
        _require_authority(issuer, sum(not one.self_issued for one in path[1:]), anchor=anchor)
        _require_purpose(issuer, self.purpose)
        certificates.verify_signature(path[-1].signed, issuer.key, f"the certificate {path[-1].label}", _INSTEAD)
        require_unrevoked(path[-1], issuer, self.authorities.lists, self.now)

    def _require_unrevoked_anchor(self, anchor: Certificate) -> None:
        """An anchor stands for itself, unless one that is trusted as well, and is above it, has revoked it."""
        for issuer in self.authorities.anchors.get(anchor.issuer, ()):
            if is_revoked(anchor, issuer, self.authorities.lists):
                raise Refused(f"the trusted certificate {anchor.label} was revoked by {issuer.label}")


def require_in_force(certificate: Issued, now: datetime) -> None:
    """Raise Refused before the validity begins and after it ends."""
    if now < certificate.not_before:
        raise Refused(f"the certificate {certificate.label} is not valid before {certificate.not_before:%Y-%m-%d}")
    if now > certificate.not_after:
        raise Refused(f"the certificate {certificate.label} expired on {certificate.not_after:%Y-%m-%d}")


def require_known_extensions(certificate: Certificate) -> None:
    """Raise Refused for a critical extension that is not known here."""
    for oid, extension in certificate.extensions.items():
        if extension.critical and oid not in _UNDERSTOOD:
            raise Refused(
                f"the certificate {certificate.label} has the critical extension {oid}, which is not known here"
            )


def basic_constraints(certificate: Certificate) -> tuple[bool, int | None]:
    """Whether it is a CA's, and the path length; without the extension it is none. Raises Refused if malformed."""
    extension = certificate.extensions.get(certificates.BASIC_CONSTRAINTS)
    if extension is None:
        return False, None
    try:
        fields = ber.whole(extension.value, ber.SEQUENCE, "the basic constraints").children()
        ca = ber.optional(fields, ber.BOOLEAN)
        length = ber.optional(fields, ber.INTEGER)
        if fields:
            raise InvalidArgument("the basic constraints have parts that none have")
        is_ca = ca is not None and ber.boolean(ca, "the basic constraints")
        return is_ca, None if length is None else ber.integer(length, "the path length")
    except InvalidArgument as error:
        raise Refused(f"the certificate {certificate.label} cannot be used: {error}") from error


def purposes(certificate: Certificate) -> frozenset[str] | None:
    """The extended key usages; None where there is no restriction. Raises Refused for a malformed one."""
    extension = certificate.extensions.get(certificates.EXTENDED_KEY_USAGE)
    if extension is None:
        return None
    try:
        listed = ber.whole(extension.value, ber.SEQUENCE, "the extended key usage").children()
        return frozenset(ber.object_identifier(one, "the extended key usage") for one in listed)
    except InvalidArgument as error:
        raise Refused(f"the certificate {certificate.label} cannot be used: {error}") from error


def is_old_root(certificate: Certificate) -> bool:
    """Whether it is of version 1, which does not say who is a CA: only an operator's trust does."""
    return certificate.version == 1 and certificate.self_issued


def _require_authority(issuer: Certificate, below: int, *, anchor: bool) -> None:
    """That it may issue a certificate below which `below` intermediates stand already."""
    require_known_extensions(issuer)
    is_ca, length = basic_constraints(issuer)
    if not is_ca and not (anchor and is_old_root(issuer)):
        raise Refused(f"the certificate {issuer.label} is no CA's, by its basic constraints")
    if length is not None and not below <= length:
        raise Refused(f"the CA {issuer.label} must not stand above {below} intermediate CAs, by its path length")
    if not may(issuer, certificates.KEY_CERT_SIGN):
        raise Refused(f"the CA {issuer.label} must not sign certificates, by its key usage")


def _require_purpose(issuer: Certificate, purpose: str) -> None:
    allowed = purposes(issuer)
    if allowed is not None and not allowed & {purpose, _ANY_PURPOSE}:
        raise Refused(f"the CA {issuer.label} must not issue such certificates, by its extended key usage")
