"""Key files that operators have: TSS2 PEM, as tpm2_encodeobject and OpenSSL's TPM providers write it, and the pair of
files that tpm2_create writes."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from operations.errors import ConfigurationError

_PEM: Final = re.compile(rb"-----BEGIN TSS2 PRIVATE KEY-----\s(.*?)-----END TSS2 PRIVATE KEY-----", re.DOTALL)
_LOADABLE_KEY: Final = bytes.fromhex("6781050a0103")
"""The content of the object identifier 2.23.133.10.1.3."""
_SEQUENCE, _IDENTIFIER, _INTEGER, _OCTETS, _EMPTY_AUTH = 0x30, 0x06, 0x02, 0x04, 0xA0
_SIZE_LIMIT: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class KeyFile:
    """TPM2B_PUBLIC and TPM2B_PRIVATE. `parent` is a handle, None where the file does not say."""

    public: bytes
    private: bytes
    parent: int | None


def read(path: Path) -> KeyFile:
    """A TSS2 PEM file; or `<name>.priv`, whose public part is `<name>.pub` beside it. Raises ConfigurationError."""
    data = _content(path)
    pem = _PEM.search(data)
    if pem is not None:
        return _tss2(pem[1], path)
    public = path.with_suffix(".pub")
    if path.suffix != ".priv" or not public.exists():
        raise ConfigurationError(
            'key_file: neither PEM of a "TSS2 PRIVATE KEY", nor <name>.priv with <name>.pub beside it', file=str(path)
        )
    return KeyFile(_content(public), data, None)


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"key_file: it cannot be read: {error.strerror}", file=str(path)) from error
    if len(data) > _SIZE_LIMIT:
        raise ConfigurationError(f"key_file: it is larger than {_SIZE_LIMIT} bytes", file=str(path))
    return data


class _Der:
    """Elements of DER one after the other, with definite lengths below 64 KiB."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def tag(self) -> int:
        return self._data[0] if self._data else 0

    def take(self, tag: int) -> bytes:
        """The content of the next element, which must have the tag. Raises ValueError."""
        data = self._data
        if len(data) < 2 or data[0] != tag:
            raise ValueError(f"an element with tag {tag:#04x} is missing")
        size, start = data[1], 2
        if size & 0x80:
            start += size & 0x7F
            if not 0x81 <= size <= 0x82:
                raise ValueError("an element is too long")
            size = int.from_bytes(data[2:start])
        if len(data) < start + size:
            raise ValueError("it is cut short")
        self._data = data[start + size :]
        return data[start : start + size]


def _tss2(text: bytes, path: Path) -> KeyFile:
    """TPMKey: type, emptyAuth [0] OPTIONAL, policies [1] to [3] OPTIONAL, parent, pubkey, privkey."""
    try:
        key = _Der(_Der(base64.b64decode(b"".join(text.split()), validate=True)).take(_SEQUENCE))
        if key.take(_IDENTIFIER) != _LOADABLE_KEY:
            raise ValueError("it is no loadable key (2.23.133.10.1.3), but an importable or sealed one")
        if key.tag == _EMPTY_AUTH:
            key.take(_EMPTY_AUTH)
        if key.tag in range(0xA1, 0xB0):
            raise ValueError("its key has a policy, which is not supported")
        parent = int.from_bytes(key.take(_INTEGER))
        return KeyFile(public=key.take(_OCTETS), private=key.take(_OCTETS), parent=parent)
    except (ValueError, binascii.Error) as error:
        raise ConfigurationError(f"key_file: it cannot be understood: {error}", file=str(path)) from error
