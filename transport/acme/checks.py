"""Whether a certificate is what was ordered, before anybody sees it."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from operations.errors import Refused
from transport.acme.challenge import private_bytes
from transport.acme.settings import normal
from transport.tls import InProcessIdentity

SKEW = timedelta(minutes=5)
"""How far the CA's clock may be ahead."""
MOST_CERTIFICATES = 10


def judged(pem: bytes, key: ec.EllipticCurvePrivateKey, name: str, now: datetime) -> InProcessIdentity:
    """The chain with its key. Raises Refused for one that cannot be shown for `name` at `now`."""
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise Refused(f"the certificate cannot be read: {error}") from error
    if len(chain) > MOST_CERTIFICATES:
        raise Refused(f"the certificate comes with {len(chain) - 1} others; {MOST_CERTIFICATES} are the most in all")
    leaf = chain[0]
    if _public(leaf.public_key()) != _public(key.public_key()):
        raise Refused("the certificate is for another key than the one it was ordered for")
    names = _names(leaf)
    if name not in names:
        raise Refused(f"the certificate is for {', '.join(names[:5]) or 'no name'}, not for {name}")
    if leaf.not_valid_before_utc > now + SKEW:
        raise Refused(f"the certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
    if leaf.not_valid_after_utc <= now:
        raise Refused(f"the certificate has expired, at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    return InProcessIdentity(tuple(each.public_bytes(Encoding.DER) for each in chain), private_bytes(key))


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [normal(each) for each in found.get_values_for_type(x509.DNSName)]


def _public(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
