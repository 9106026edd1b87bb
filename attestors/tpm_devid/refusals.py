"""A note of a DevID's password that the TPM refused: guesses count towards the lockout of the whole TPM.

An agent that is refused tries again and again, and so does systemd after its end; a password is tried once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Final

import msgspec

from keystores.errors import Refused
from operations.files import write_atomically

NAME: Final = "tpm-devid.password-refused"


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    salt: bytes
    digest: bytes


class Refusals:
    def __init__(self, data_dir: str | None) -> None:
        """Without a folder the note is kept for the life of this process."""
        self._path: Final = None if data_dir is None else Path(data_dir) / NAME
        self._note: _Note | None = None

    def check(self, private: bytes, password: bytes) -> None:
        """Raise Refused for a key and password that were refused before. Blocks on the disk."""
        note = self._note or self._read()
        if note is not None and hmac.compare_digest(_digest(note.salt, private, password), note.digest):
            raise Refused(
                "the TPM refused devid_password for this key; it was tried once and is not tried again, lest the whole "
                "TPM lock: correct it"
            )

    def remember(self, private: bytes, password: bytes) -> None:
        """As far as the disk allows. Blocks on it."""
        salt = secrets.token_bytes(16)
        self._note = _Note(salt=salt, digest=_digest(salt, private, password))
        if self._path is not None:
            try:
                write_atomically(self._path, msgspec.json.encode(self._note), mode=0o600)
            except OSError:
                # This process tries no second time either way.
                return

    def _read(self) -> _Note | None:
        if self._path is None:
            return None
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Note)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise Refused(
                f"{self._path}, the note of a refused password, cannot be read: check devid_password, then remove it"
            ) from error


def _digest(salt: bytes, private: bytes, password: bytes) -> bytes:
    """Slow, since passwords are short."""
    return hashlib.scrypt(password + b"\0" + private, salt=salt, n=2**14, r=8, p=1, dklen=32)
