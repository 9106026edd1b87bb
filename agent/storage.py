"""What an agent keeps over a restart: its SVID and the bundle, in `data_dir`/agent-data.json.

The file is JSON, certificates in base64 DER, written as a whole and durably; the private key stays in the key
manager.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from operations import files
from operations.errors import Corrupt

_NAME = "agent-data.json"
_LARGEST = 16 << 20


@dataclass(frozen=True, slots=True)
class StoredState:
    """`svid` is a chain, leaf first, and `bundle` the trust domain's X.509 authorities, all DER; empty when unknown."""

    svid: tuple[bytes, ...] = ()
    reattestable: bool = False
    bundle: tuple[bytes, ...] = ()


class Storage:
    """The file and its last known content. Not for use by two agents at once.

    Methods that change it block on the disk, may be called in any thread, and raise OSError.
    """

    def __init__(self, path: Path, state: StoredState) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.state = state

    @classmethod
    def open(cls, data_dir: str) -> Storage:
        """Read the state; an absent file is an empty state. Raises Corrupt for a file that cannot be understood."""
        path = Path(data_dir) / _NAME
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST)
        except FileNotFoundError:
            return cls(path, StoredState())
        except OSError as error:
            raise Corrupt(f"cannot read {path}: {error.strerror}") from error
        try:
            return cls(path, _decode(content))
        except ValueError as error:
            raise Corrupt(
                f"{path} is damaged ({error}); restore it, or move it away to let the agent attest anew"
            ) from error

    def store_svid(self, chain: tuple[bytes, ...], *, reattestable: bool) -> None:
        self._write(lambda state: replace(state, svid=chain, reattestable=reattestable))

    def store_bundle(self, authorities: tuple[bytes, ...]) -> None:
        self._write(lambda state: replace(state, bundle=authorities))

    def delete_svid(self) -> None:
        self._write(lambda state: replace(state, svid=(), reattestable=False))

    def _write(self, change: Callable[[StoredState], StoredState]) -> None:
        with self._lock:
            state = change(self.state)
            if state == self.state:
                return
            files.write_atomically(self._path, _encode(state))
            self.state = state


def _encode(state: StoredState) -> bytes:
    document = {
        "svid": [base64.b64encode(der).decode("ascii") for der in state.svid],
        "reattestable": state.reattestable,
        "bundle": [base64.b64encode(der).decode("ascii") for der in state.bundle],
    }
    return json.dumps(document).encode("ascii")


def _decode(content: bytes) -> StoredState:
    """Raises ValueError."""
    document: object = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - one class for all that is wrong with the file
    fields = cast("dict[str, object]", document)
    return StoredState(
        svid=_certificates(fields.get("svid")),
        reattestable=fields.get("reattestable") is True,
        bundle=_certificates(fields.get("bundle")),
    )


def _certificates(value: object) -> tuple[bytes, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError("a list of certificates was expected")  # noqa: TRY004 - as above
    chain: list[bytes] = []
    for text in cast("list[object]", value):
        if not isinstance(text, str):
            raise ValueError("a certificate in base64 was expected")  # noqa: TRY004 - as above
        try:
            chain.append(base64.b64decode(text, validate=True))
        except binascii.Error as error:
            raise ValueError("a certificate is not base64") from error
    return tuple(chain)
