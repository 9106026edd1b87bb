"""Whether a host certificate holds: what OpenSSH asks of a server's, and the name that it stands for. Pure."""

from __future__ import annotations

import base64
from collections.abc import Collection
from hashlib import sha256

from attestors.sshpop import keys
from attestors.sshpop.certificate import FOREVER, HOST, Certificate
from operations.errors import Refused
from operations.quoting import quote


def verify(certificate: Certificate, authorities: Collection[bytes], now: int) -> None:
    """Raise Refused unless one of the authorities (keys as SSH writes them) certifies a host now (unix seconds).

    The name is the first principal. A host's certificate knows no critical option (sshkey.c, check_host_cert), so that
    each of them ends it.
    """
    name = text(certificate.principals[0])
    if certificate.type != HOST:
        raise Refused(f"ssh: certificate presented as a host key has type {certificate.type}")
    if certificate.signature_key.blob not in authorities:
        raise Refused(f"ssh: no authorities for hostname: {name}:22")
    if certificate.critical_options:
        option = text(min(certificate.critical_options))
        raise Refused(f"ssh: unsupported critical option {quote(option)} in certificate")
    if now < certificate.valid_after:
        raise Refused("ssh: cert is not yet valid")
    if now >= certificate.valid_before and certificate.valid_before != FOREVER:
        raise Refused("ssh: cert has expired")
    _require_signed(certificate)


def _require_signed(certificate: Certificate) -> None:
    if certificate.signature.format == keys.SHA1:
        raise Refused("ssh: certificate is signed with SHA-1: sign it with ssh-keygen -t rsa-sha2-512")
    try:
        # The touch of who held the CA's key, when this was signed, says nothing about the host.
        keys.verify(certificate.signature_key, certificate.signed, certificate.signature, presence=False)
    except Refused as error:
        raise Refused("ssh: certificate signature does not verify") from error


def hostname(certificate: Certificate, domain: str) -> str:
    """The first principal, without the domain it must be in if there is one. Raises Refused."""
    name = text(certificate.principals[0])
    if domain and not name.endswith(f".{domain}"):
        raise Refused(f"cert principal is not in domain {quote(f'.{domain}')}")
    return name.removesuffix(f".{domain}") if domain else name


def fingerprint(certificate: Certificate) -> str:
    """SHA-256 over all of it, base64url without padding."""
    return base64.urlsafe_b64encode(sha256(certificate.raw).digest()).rstrip(b"=").decode()


def text(data: bytes) -> str:
    """What is not UTF-8 stays as surrogates (PEP 383), which no SPIFFE ID has."""
    return data.decode("utf-8", "surrogateescape")
