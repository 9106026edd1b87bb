"""What an agent keeps of its TPM: which endorsement key it is known by, and the attestation key below it.

The file is in data_dir. It holds no secret: only this TPM can load the key. A node's name comes from the endorsement
key, so what `ek = "auto"` chose once stays chosen, whatever certificates a TPM has later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from keystores.tpm.messages import Blob, Endorsed
from operations.errors import Corrupt, PermanentlyUnusable
from operations.files import write_atomically

FILE: Final = "tpm-attestation.json"
_VERSION: Final = 1
_LIMIT: Final = 1 << 20


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`setting` is the value of `ek` that led to the template. `public` and `private` are the attestation key's."""

    version: int = _VERSION
    setting: str
    template: str
    public: bytes
    private: bytes

    @classmethod
    def of(cls, setting: str, endorsed: Endorsed) -> Choice:
        return cls(
            setting=setting, template=endorsed.template, public=endorsed.key.public, private=endorsed.key.private
        )

    @property
    def key(self) -> Blob:
        return Blob(public=self.public, private=self.private)


def read(path: Path) -> Choice | None:
    """None where there is none yet. Blocks. Raises Corrupt, PermanentlyUnusable."""
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PermanentlyUnusable(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = msgspec.json.decode(data, type=Choice)
    except msgspec.MsgspecError as error:
        raise Corrupt(
            f"{path} is damaged ({error}): restore it from a backup, or move it away to have the endorsement key "
            "chosen and an attestation key made anew"
        ) from error
    if found.version != _VERSION:
        raise Corrupt(f"{path} has version {found.version}, which a later release wrote")
    return found


def write(path: Path, choice: Choice) -> None:
    """Blocks. Raises PermanentlyUnusable; the former content is in place then."""
    try:
        write_atomically(path, msgspec.json.encode(choice), mode=0o600)
    except OSError as error:
        raise PermanentlyUnusable(f"{path} cannot be written: {error.strerror}") from error
