"""Tainted authorities: what they signed is renewed at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from identity import der
from operations.errors import InvalidArgument


def is_signed_by(chain: Sequence[bytes], authorities: Iterable[bytes]) -> bool:
    """Whether the chain (DER, leaf first) ends under one of these authorities."""
    try:
        top = der.certificate(chain[-1])
        return any(_issued(top, der.certificate(authority)) for authority in authorities)
    except InvalidArgument:
        return False


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        if certificate.issuer != authority.subject:
            return False
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True
