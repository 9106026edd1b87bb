"""Platform certificates as files: attribute certificates that a machine's maker delivers beside it, DER or PEM."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from operations.errors import ConfigurationError

LIMIT: Final = 8
_SIZE: Final = 128 << 10
"""Bytes of all: a payload has room for no more."""
_PEM: Final = re.compile(
    rb"-----BEGIN (?:ATTRIBUTE |)CERTIFICATE-----\s(.*?)-----END (?:ATTRIBUTE |)CERTIFICATE-----", re.DOTALL
)
_ADVICE: Final = "give a file or folder of attribute certificates, each in DER or PEM"


def read(path: str) -> tuple[bytes, ...]:
    """The certificates (DER) in a file or in each file of a folder, none for an empty path.

    Blocks. Raises ConfigurationError.
    """
    if not path:
        return ()
    found = [certificate for file in _files(Path(path)) for certificate in _certificates(file)]
    if sum(map(len, found)) > _SIZE:
        raise ConfigurationError(f"platform_certificate_path: {path} has more than {_SIZE >> 10} KiB; {_ADVICE}")
    if not found or len(found) > LIMIT:
        raise ConfigurationError(
            f"platform_certificate_path: {path} has {len(found)} certificates; {_ADVICE}, 1 to {LIMIT}"
        )
    return tuple(found)


def _files(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError as error:
        raise ConfigurationError(f"platform_certificate_path: {path}: {error.strerror}") from error


def _certificates(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            data = file.read(_SIZE + 1)
    except OSError as error:
        raise ConfigurationError(f"platform_certificate_path: {path}: {error.strerror}") from error
    if len(data) > _SIZE:
        raise ConfigurationError(f"platform_certificate_path: {path} is larger than {_SIZE >> 10} KiB; {_ADVICE}")
    if data[:1] == b"\x30":
        yield data
        return
    texts = _PEM.findall(data)
    if not texts:
        raise ConfigurationError(f"platform_certificate_path: {path} is no certificate; {_ADVICE}")
    for text in texts:
        try:
            yield base64.b64decode(b"".join(text.split()), validate=True)
        except binascii.Error as error:
            raise ConfigurationError(f"platform_certificate_path: {path} is damaged PEM; {_ADVICE}") from error
