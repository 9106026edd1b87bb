"""PEM, the text form of DER (RFC 7468)."""

from __future__ import annotations

import base64

_LINE = 64


def block(label: str, der: bytes) -> str:
    """One block with its lines, such as a CERTIFICATE (RFC 7468, 5)."""
    content = base64.b64encode(der).decode()
    lines = (content[start : start + _LINE] for start in range(0, len(content), _LINE))
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def private_key(pkcs8: bytes) -> str:
    """A private key, given as DER PKCS #8 (RFC 7468, 10)."""
    return block("PRIVATE KEY", pkcs8)
