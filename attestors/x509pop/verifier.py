"""What a node's chain proves: bytes, policy and time in, verdict or typed error out."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from attestors.x509pop.paths import verified_paths
from identity import der
from operations.errors import InvalidArgument, Refused, Unsupported

MIN_RSA_KEY_SIZE = 1024
"""Bits; Go's crypto/rsa takes no shorter keys either."""

_CURVES = (ec.SECP224R1, ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclass(frozen=True, slots=True)
class Policy:
    """`anchors` are DER. A chain may have `max_intermediates` certificates besides its leaf, and RSA keys that long."""

    anchors: tuple[bytes, ...]
    max_intermediates: int
    max_rsa_key_size: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A leaf that is trusted, if its key is proven too, and the CAs above it, each once, in the order of its paths."""

    leaf: x509.Certificate
    authorities: tuple[x509.Certificate, ...]


def verify(chain: Sequence[bytes], policy: Policy, now: datetime) -> Verdict:
    """Verify a chain of DER certificates, leaf first. `now` is aware.

    Raises InvalidArgument for what cannot be read or breaks a limit, Refused for a chain that does not verify.
    """
    if not chain:
        raise InvalidArgument("no certificate to attest")
    if len(chain) - 1 > policy.max_intermediates:
        raise InvalidArgument("too many intermediate certificates")
    leaf = _parse(chain[0], "leaf certificate", policy)
    intermediates = [
        _parse(certificate, f"intermediate certificate {number}", policy)
        for number, certificate in enumerate(chain[1:])
    ]
    anchors = [der.certificate(anchor) for anchor in policy.anchors]
    try:
        paths = verified_paths(leaf, intermediates, anchors, now)
    except Refused as error:
        raise Refused(f"certificate verification failed: {error}") from error
    above = dict.fromkeys(certificate for path in paths for certificate in path[1:])
    return Verdict(leaf, tuple(above))


def require_signing_key(leaf: x509.Certificate) -> None:
    """Raise Unsupported unless the leaf's key may sign digitally and is of a kind that can be challenged."""
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is None or not usage.digital_signature:
        raise Unsupported("certificate not intended for digital signature use")


def require_address(leaf: x509.Certificate, address: str) -> None:
    """Raise Refused unless the caller's IP address is among those of the leaf."""
    client = _normal(ipaddress.ip_address(address))
    if client not in [_normal(named) for named in _ip_addresses(leaf)]:
        raise Refused(f"client IP {client} does not match any certificate IP SAN")


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-1 in lowercase hex, as SPIRE names agents and CAs; a name, not a check."""
    return certificate.fingerprint(hashes.SHA1()).hex()  # noqa: S303 - a name


def serial_number(certificate: x509.Certificate) -> str:
    """Lowercase hex with an even number of digits."""
    digits = f"{certificate.serial_number:x}"
    return digits if len(digits) % 2 == 0 else f"0{digits}"


def common_name(certificate: x509.Certificate) -> str:
    """The last one, as Go reads it; empty when there is none."""
    names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return _as_text(names[-1]) if names else ""


def uri_names(certificate: x509.Certificate) -> list[str]:
    san = _subject_alternative_names(certificate)
    return san.get_values_for_type(x509.UniformResourceIdentifier) if san is not None else []


def selectors_of_uris(uris: Sequence[str], trust_domain: str) -> tuple[dict[str, str], list[str]]:
    """From SANs `x509pop://TRUST_DOMAIN/key/value`: the values by key, and the URIs that have no such form."""
    found: dict[str, str] = {}
    strange: list[str] = []
    for uri in uris:
        if not uri.startswith(f"x509pop://{trust_domain}/"):
            continue
        key, slash, value = unquote(_path_of(uri)).strip("/").partition("/")
        if slash:
            found[key] = value
        else:
            strange.append(uri)
    return found, strange


def selector_values(verdict: Verdict, of_uris: dict[str, str]) -> list[str]:
    """The node's selectors, without their type."""
    name = common_name(verdict.leaf)
    values = [f"subject:cn:{name}"] if name else []
    values += [f"ca:fingerprint:{fingerprint(authority)}" for authority in verdict.authorities]
    values.append(f"serialnumber:{serial_number(verdict.leaf)}")
    values += [f"san:{key}:{value}" for key, value in of_uris.items()]
    return values


def svid_path(uris: Sequence[str], prefix: str) -> str:
    """What stands behind the prefix in the path of the leaf's SPIFFE ID. Raises Refused."""
    spiffe = next((uri for uri in uris if uri.lower().startswith("spiffe:")), None)
    if spiffe is None:
        raise Refused("valid SVID x509 cert not found")
    path = _path_of(spiffe)
    if not path.startswith(prefix):
        raise Refused("x509 cert doesnt match SVID prefix")
    return path.removeprefix(prefix)


def _path_of(uri: str) -> str:
    try:
        return urlsplit(uri).path
    except ValueError:
        return ""


def _parse(certificate: bytes, what: str, policy: Policy) -> x509.Certificate:
    try:
        parsed = der.certificate(certificate)
        key = parsed.public_key()
        # Names and times are read when they are asked for; here is where a malformed one can be told.
        _ = parsed.issuer, parsed.subject, parsed.not_valid_before_utc, parsed.not_valid_after_utc, parsed.serial_number
    except (InvalidArgument, TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument(f"unable to parse {what}: {error}") from error
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size > policy.max_rsa_key_size:
            raise InvalidArgument(f"{what} key size too large")
        if key.key_size < MIN_RSA_KEY_SIZE:
            raise InvalidArgument(f"{what} key size too small: RSA keys have {MIN_RSA_KEY_SIZE} bits or more")
    if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, _CURVES):
        raise InvalidArgument(f"unable to parse {what}: unsupported elliptic curve {key.curve.name}")
    return parsed


def _subject_alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _ip_addresses(certificate: x509.Certificate) -> list[_Address]:
    san = _subject_alternative_names(certificate)
    found = san.get_values_for_type(x509.IPAddress) if san is not None else []
    return [address for address in found if isinstance(address, _Address)]


def _normal(address: _Address) -> _Address:
    """An IPv4 address on an IPv6 socket is the same address."""
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _as_text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
