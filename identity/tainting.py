"""Authorities on their way out: tainted ones, which sign no more, and revoked ones, which are gone from the bundle.

Pure functions from bundle to bundle, and the question which chains a tainted authority stands above. X.509 authorities
are named by their subject key identifier in lower-case hex, JWT and WIT authorities by their key id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from identity import der
from identity.bundles import Bundle, JwtAuthority, WitAuthority, X509Authority
from operations.errors import InvalidArgument, NotFound


def subject_key_id(certificate: bytes) -> str:
    """The hex subject key identifier of a DER certificate, that of RFC 5280, 4.2.1.2 (1), where it carries none.

    Raises InvalidArgument.
    """
    try:
        found = der.certificate(certificate).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        found = x509.SubjectKeyIdentifier.from_public_key(der.authority_key(certificate))
    return found.digest.hex()


def authority_key_id(certificate: bytes) -> str:
    """The hex key identifier of a DER certificate's issuer, as the certificate has it; "" without one, or itself.

    Raises InvalidArgument.
    """
    try:
        found = der.certificate(certificate).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return ""
    return (found.value.key_identifier or b"").hex()


def taint_x509(bundle: Bundle, key_id: str) -> Bundle:
    """Mark the X.509 authority. Raises NotFound, and InvalidArgument for one that is tainted already."""
    found = [each for each in bundle.x509_authorities if subject_key_id(each.der) == key_id]
    if not found:
        raise NotFound("no ca found with provided subject key ID")
    if any(each.tainted for each in found):
        raise InvalidArgument("root CA is already tainted")
    marked = tuple(replace(each, tainted=True) if each in found else each for each in bundle.x509_authorities)
    return replace(bundle, x509_authorities=marked)


def revoke_x509(bundle: Bundle, key_id: str) -> Bundle:
    """Take the tainted X.509 authority out. Raises NotFound, and InvalidArgument for one that is not tainted."""
    found = [each for each in bundle.x509_authorities if subject_key_id(each.der) == key_id]
    if not found:
        raise NotFound("no root CA found with provided subject key ID")
    if not all(each.tainted for each in found):
        raise InvalidArgument("it is not possible to revoke an untainted root CA")
    return replace(bundle, x509_authorities=tuple(each for each in bundle.x509_authorities if each not in found))


def taint_jwt(bundle: Bundle, key_id: str) -> Bundle:
    """Mark the JWT authority. Raises NotFound, and InvalidArgument for one that is tainted already."""
    return replace(bundle, jwt_authorities=_with_tainted(bundle.jwt_authorities, key_id, "JWT"))


def revoke_jwt(bundle: Bundle, key_id: str) -> Bundle:
    """Take the tainted JWT authority out. Raises NotFound, and InvalidArgument for one that is not tainted."""
    return replace(bundle, jwt_authorities=_without_tainted(bundle.jwt_authorities, key_id, "JWT"))


def taint_wit(bundle: Bundle, key_id: str) -> Bundle:
    """Mark the WIT authority. Raises as `taint_jwt` does."""
    return replace(bundle, wit_authorities=_with_tainted(bundle.wit_authorities, key_id, "WIT"))


def revoke_wit(bundle: Bundle, key_id: str) -> Bundle:
    """Take the tainted WIT authority out. Raises as `revoke_jwt` does."""
    return replace(bundle, wit_authorities=_without_tainted(bundle.wit_authorities, key_id, "WIT"))


_K = TypeVar("_K", JwtAuthority, WitAuthority)


def _with_tainted(keys: Sequence[_K], key_id: str, title: str) -> tuple[_K, ...]:
    if any(each.tainted for each in _named(keys, key_id, title)):
        raise InvalidArgument("key is already tainted")
    return tuple(replace(each, tainted=True) if each.key_id == key_id else each for each in keys)


def _without_tainted(keys: Sequence[_K], key_id: str, title: str) -> tuple[_K, ...]:
    if not all(each.tainted for each in _named(keys, key_id, title)):
        raise InvalidArgument("it is not possible to revoke an untainted key")
    return tuple(each for each in keys if each.key_id != key_id)


def _named(keys: Sequence[_K], key_id: str, title: str) -> Sequence[_K]:
    found = [each for each in keys if each.key_id == key_id]
    if not found:
        raise NotFound(f"no {title} Key found with provided key ID")
    return found


@dataclass(frozen=True, slots=True)
class Followed:
    """A bundle after an upstream's roots: those it says are tainted now (DER), and the key ids that are gone."""

    bundle: Bundle
    tainted: tuple[bytes, ...] = ()
    revoked: tuple[str, ...] = ()


def follow(bundle: Bundle, roots: Sequence[X509Authority]) -> Followed:
    """Take over what an upstream authority says of its roots.

    New roots are added. One that is known and tainted only since is reported and stays as it is, so that its mark
    goes out after what it signed here is replaced. Known tainted ones that the upstream has no more are revoked.
    """
    known = {subject_key_id(each.der): each for each in bundle.x509_authorities}
    upstream = {subject_key_id(each.der) for each in roots}
    fresh = [key_id for each in roots if each.tainted and (key_id := subject_key_id(each.der)) in known]
    tainted = tuple(known[key_id].der for key_id in dict.fromkeys(fresh) if not known[key_id].tainted)
    revoked = tuple(key_id for key_id, each in known.items() if each.tainted and key_id not in upstream)
    kept = tuple(each for each in bundle.x509_authorities if subject_key_id(each.der) not in revoked)
    present = {each.der for each in kept}
    added = tuple(each for each in _unique(roots) if each.der not in present)
    return Followed(replace(bundle, x509_authorities=kept + added), tainted, revoked)


def _unique(roots: Sequence[X509Authority]) -> Iterable[X509Authority]:
    return {each.der: each for each in roots}.values()


def is_signed_by(chain: Sequence[bytes], authorities: Iterable[bytes]) -> bool:
    """Whether one of these authorities (DER) stands above the chain (DER, leaf first) or in it.

    A chain may end below its root, with it, or with a further certificate of the upstream: each is looked at, the top
    first, since many chains share it.
    """
    above = tuple(authorities)
    return any(_issued(certificate, authority) for certificate in reversed(chain) for authority in above)


def leads_to(chain: Sequence[bytes], authorities: Iterable[bytes]) -> bool:
    """Whether the chain (DER, leaf first) leads up to one of these authorities (DER), signature by signature.

    Times and constraints are not looked at: this is for who takes a chain, not for who trusts its subject.
    """
    above = tuple(authorities)
    for number, certificate in enumerate(chain):
        if any(_issued(certificate, authority) for authority in above):
            return True
        if number + 1 == len(chain) or not _issued(certificate, chain[number + 1]):
            return False
    return False


@lru_cache(maxsize=1024)
def _issued(certificate: bytes, authority: bytes) -> bool:
    if certificate == authority:
        return True
    try:
        child, parent = der.certificate(certificate), der.certificate(authority)
        if child.issuer != parent.subject:
            return False
        child.verify_directly_issued_by(parent)
    except (InvalidArgument, InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return False
    return True
