"""What a certificate or token of this trust domain must and must not say, whoever had a hand in it.

For what composers changed and what an upstream authority signed: pure, bytes and time in, Refused out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeGuard, cast

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from identity import der
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, Refused

_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)
_CA_USAGES = {"key_cert_sign", "crl_sign", "digital_signature"}
_SVID_USAGES = {"digital_signature", "key_encipherment", "key_agreement"}


def check_x509_ca(certificate: bytes, trust_domain: TrustDomain, now: datetime) -> None:
    """An X.509 authority (X509-SVID 4): a CA for signing certificates, named by the trust domain if at all.

    `certificate` is DER, `now` aware. Raises Refused.
    """
    parsed = _parsed(certificate, "X509 CA")
    constraints = _basic_constraints(parsed)
    if constraints is None:
        raise Refused("invalid X509 CA: basic constraints are not valid")
    if not constraints.ca:
        raise Refused("invalid X509 CA: cA constraint is not set")
    usages = _key_usages(parsed)
    if "key_cert_sign" not in usages:
        raise Refused("invalid X509 CA: keyCertSign key usage must be set")
    if usages - _CA_USAGES:
        raise Refused("invalid X509 CA: only keyCertSign, cRLSign, or digitalSignature key usage can be set")
    uris = _uris(parsed)
    # A signing certificate should itself be an SVID (X509-SVID 3.1), but need not.
    if uris and uris != [trust_domain.id]:
        raise Refused(f'invalid X509 CA: expected URI SAN "{trust_domain.id}" but got {uris}')
    _check_times(parsed, now, "X509 CA")


def check_x509_svid(certificate: bytes, spiffe_id: SpiffeId, now: datetime) -> None:
    """A leaf (X509-SVID 4) for exactly this SPIFFE ID. `certificate` is DER, `now` aware. Raises Refused."""
    parsed = _parsed(certificate, "X509-SVID")
    constraints = _basic_constraints(parsed)
    if constraints is None:
        raise Refused("invalid X509-SVID: basic constraints are not valid")
    if constraints.ca:
        raise Refused("invalid X509-SVID: cA constraint must not be set")
    usages = _key_usages(parsed)
    if "digital_signature" not in usages:
        raise Refused("invalid X509-SVID: digitalSignature key usage must be set")
    if usages - _SVID_USAGES:
        raise Refused(
            "invalid X509-SVID: only digitalSignature, keyEncipherment, and keyAgreement key usage can be set"
        )
    _check_extended_usage(parsed)
    uris = _uris(parsed)
    if not uris:
        raise Refused("invalid X509-SVID: missing URI SAN")
    if uris != [str(spiffe_id)]:
        raise Refused(f'invalid X509-SVID: expected URI SAN "{spiffe_id}" but got {uris}')
    _check_times(parsed, now, "X509-SVID")


def check_jwt_claims(claims: Mapping[str, Any], spiffe_id: SpiffeId, now: float) -> None:
    """The claims of a JWT-SVID (JWT-SVID 3) for exactly this SPIFFE ID. `now` is unix seconds. Raises Refused."""
    if claims.get("sub") != str(spiffe_id):
        raise Refused(f'invalid JWT-SVID "sub" claim: expected "{spiffe_id}" but got {claims.get("sub")!r}')
    expires_at = claims.get("exp")
    if not _is_time(expires_at):
        raise Refused('invalid JWT-SVID "exp" claim: required but missing')
    if expires_at <= now:
        raise Refused('invalid JWT-SVID "exp" claim: already expired')
    issued_at, begins = claims.get("iat"), claims.get("nbf")
    if not _is_time(issued_at):
        raise Refused('invalid JWT-SVID "iat" claim: required but missing')
    if begins is not None and not (_is_time(begins) and begins <= now):
        raise Refused('invalid JWT-SVID "nbf" claim: not yet valid')
    audience = claims.get("aud")
    if not isinstance(audience, str | list | tuple) or not audience:
        raise Refused('invalid JWT-SVID "aud" claim: required but missing')
    values = [audience] if isinstance(audience, str) else cast("Sequence[object]", audience)
    if not all(isinstance(value, str) and value for value in values):
        raise Refused('invalid JWT-SVID "aud" claim: contains empty value')


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parsed(certificate: bytes, what: str) -> x509.Certificate:
    try:
        return der.certificate(certificate)
    except InvalidArgument as error:
        raise Refused(f"invalid {what}: {error}") from error


def _basic_constraints(parsed: x509.Certificate) -> x509.BasicConstraints | None:
    try:
        return parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None


def _key_usages(parsed: x509.Certificate) -> set[str]:
    try:
        usage = parsed.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return set()
    return {name for name in _USAGES if getattr(usage, name)}


def _check_extended_usage(parsed: x509.Certificate) -> None:
    try:
        usages = set(parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return
    wanted = {"serverAuth": ExtendedKeyUsageOID.SERVER_AUTH, "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH}
    missing = [name for name, oid in wanted.items() if oid not in usages]
    if len(missing) == len(wanted):
        raise Refused("invalid X509-SVID: missing both serverAuth and clientAuth extended key usage")
    if missing:
        raise Refused(f"invalid X509-SVID: missing {missing[0]} extended key usage")


def _uris(parsed: x509.Certificate) -> list[str]:
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _check_times(parsed: x509.Certificate, now: datetime, what: str) -> None:
    if now < parsed.not_valid_before_utc:
        raise Refused(f"invalid {what}: not yet valid until {_rfc3339(parsed.not_valid_before_utc)}")
    if now > parsed.not_valid_after_utc:
        raise Refused(f"invalid {what}: already expired as of {_rfc3339(parsed.not_valid_after_utc)}")


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
