"""What outlives a restart: the certificate with its key, in one PEM file, and the order that is under way, in another.

Both are replaced as a whole and have mode 0600, so a crash leaves the old or the new, never a certificate without its
key. All of it blocks on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from operations.documents import Malformed, decode
from operations.errors import ConfigurationError, Corrupt, PermanentlyUnusable
from operations.files import write_atomically

_FOLDER_MODE = 0o700
_LARGEST = 1 << 20


class Pending(msgspec.Struct, frozen=True):
    """An order that may be taken up again: its CA, its URL, and the key (PKCS #8) that its certificate is for.

    `began` has the unix times of the hour's orders that came to nothing, so that a server that restarts and restarts
    does not use up what a CA lets it order. Without a URL there is no order under way.
    """

    directory: str = ""
    url: str = ""
    key: bytes = b""
    began: tuple[int, ...] = ()

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """Raises Corrupt."""
        return _ec(lambda: load_der_private_key(self.key, password=None), "the pending order")


class Cache:
    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._certificate = folder / f"{name}.pem"
        self._pending = folder / f"{name}.order.json"

    @property
    def place(self) -> str:
        return str(self._certificate)

    def open(self) -> None:
        """Raises ConfigurationError where the folder cannot be had."""
        try:
            self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot make the folder {self._folder} for ACME: {error.strerror}") from error

    def certificate(self) -> tuple[bytes, ec.EllipticCurvePrivateKey] | None:
        """The chain in PEM, and its key. Raises Corrupt, PermanentlyUnusable."""
        data = _read(self._certificate)
        if data is None:
            return None
        return data, _ec(lambda: load_pem_private_key(data, password=None), str(self._certificate))

    def keep_certificate(self, chain: bytes, key: ec.EllipticCurvePrivateKey) -> None:
        """Raises PermanentlyUnusable."""
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(self._certificate, pem + chain)

    def pending(self) -> Pending:
        """Raises Corrupt, PermanentlyUnusable."""
        data = _read(self._pending)
        if data is None:
            return Pending()
        try:
            return decode(data, Pending)
        except Malformed as error:
            raise Corrupt(f"{self._pending} cannot be read: {error}") from error

    def keep_pending(self, pending: Pending) -> None:
        """Raises PermanentlyUnusable."""
        _write(self._pending, msgspec.json.encode(pending))


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PermanentlyUnusable(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise PermanentlyUnusable(f"cannot write {path}: {error.strerror}") from error


def _ec(load: Callable[[], object], what: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Corrupt(f"{what} has no key that can be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Corrupt(f"{what} has a key that is not EC")
    return key
