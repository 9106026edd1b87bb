"""A CA's certificates in PEM files: what signs, what stands between it and its root, and the roots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from authorities import issuing
from identity.bundles import X509Authority, from_pem
from operations.errors import ConfigurationError, InvalidArgument

LARGEST = 1 << 20
"""Bytes of a file that are looked at."""


_ECDSA_WITH_NULL = re.compile(rb"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03[\x01-\x04]\x05\x00")
_FORBIDDEN = (
    "its ECDSA signature algorithm has parameters, which RFC 5758 (3.2) forbids, as in certificates that tpm2-openssl "
    "signs: have it signed by another tool, or use an RSA key"
)


@dataclass(frozen=True, slots=True)
class Certificates:
    """`issuer` signs, `above` (DER) goes along with what it signed, `roots` are what verifiers know.

    `path` is the issuer, then what stands above it up to a root; DER.
    """

    issuer: x509.Certificate
    above: tuple[bytes, ...]
    roots: tuple[X509Authority, ...]
    path: tuple[bytes, ...]


def load(cert_file_path: str, bundle_file_path: str, now: float) -> Certificates:
    """Read the files, and verify the chain up to a root at that time, in unix seconds. Without a bundle the CA is
    self-signed, and its own root.

    Raises ConfigurationError, which names the file.
    """
    certificates = _certificates(cert_file_path, "cert")
    if bundle_file_path:
        roots = _certificates(bundle_file_path, "bundle")
        above = tuple(each for each in certificates if each not in roots or not _is_self_signed(each))
    elif len(certificates) == 1:
        # Without a bundle it is its own root, and so needs not come along.
        roots, above = certificates, ()
    else:
        raise ConfigurationError(
            f"{cert_file_path}: with no bundle_file_path configured only self-signed CAs are supported, "
            f"and the file has {len(certificates)} certificates"
        )
    try:
        issuer = issuing.ca_certificate(certificates[0])
        path = issuing.check_path(certificates, roots, datetime.fromtimestamp(now, UTC))
    except InvalidArgument as error:
        raise unusable(cert_file_path, error) from error
    return Certificates(issuer, above, tuple(X509Authority(root) for root in dict.fromkeys(roots)), path)


def unusable(cert_file_path: str, error: InvalidArgument) -> ConfigurationError:
    """The refusal of a CA whose files can be read."""
    return ConfigurationError(f"{cert_file_path}: unable to load upstream CA: {error}")


def read(path: str) -> bytes:
    """Raises OSError."""
    with Path(path).open("rb") as file:
        return file.read(LARGEST)


def reason(error: Exception) -> str:
    """Why a file cannot be used."""
    return error.strerror or "it cannot be read" if isinstance(error, OSError) else str(error)


def _is_self_signed(certificate: bytes) -> bool:
    return issuing.is_self_signed(issuing.parsed(certificate))


def _certificates(path: str, what: str) -> list[bytes]:
    found: list[bytes] = []
    try:
        found = from_pem(read(path))
        for certificate in found:
            issuing.parsed(certificate)
    except (OSError, InvalidArgument) as error:
        why = _FORBIDDEN if any(map(_ECDSA_WITH_NULL.search, found)) else reason(error)
        raise ConfigurationError(f"{path}: unable to load upstream CA {what}: {why}") from error
    return found
