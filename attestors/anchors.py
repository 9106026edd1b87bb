"""Trust anchors in files: the CAs of nodes' certificates, as operators configure them."""

from __future__ import annotations

from pathlib import Path

from identity import der
from identity.bundles import from_pem

_LARGEST = 4 << 20


def read(path: str) -> list[bytes]:
    """The certificates of a PEM file, DER, each of which can be parsed. Blocks. Raises OSError, InvalidArgument."""
    with Path(path).open("rb") as file:
        certificates = from_pem(file.read(_LARGEST))
    for certificate in certificates:
        der.certificate(certificate)
    return certificates
