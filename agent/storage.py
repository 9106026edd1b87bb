"""What an agent keeps over a restart: its SVID, the bundle, and how far a bootstrap has come, in agent-data.json.

The file is in `data_dir`, and written as a whole and durably. It is SPIRE's, so that either agent can take over from
the other: JSON, certificates as PEM in base64, times as Go writes them. The private key stays in the key manager.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import cast

from identity.bundles import from_pem, to_pem
from operations import files
from operations.errors import Corrupt, InvalidArgument

_NAME = "agent-data.json"
_LARGEST = 16 << 20
_NO_TIME = "0001-01-01T00:00:00Z"


class Use(IntEnum):
    """What the trust bundle's source is asked for: a first contact, or one after the server's keys were replaced."""

    UNSPECIFIED = 0
    BOOTSTRAP = 1
    REBOOTSTRAP = 2


@dataclass(frozen=True, slots=True)
class Bootstrapping:
    """How far it has come: since when, in Unix seconds (0: none is under way), and how often the source was asked."""

    use: Use = Use.UNSPECIFIED
    started: float = 0.0
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class StoredState:
    """`svid` is a chain, leaf first, and `bundle` the trust domain's X.509 authorities, all DER; empty when unknown.

    `generation` is that of the newest store of the workloads' SVIDs (agent.store); an older one is not believed.
    """

    svid: tuple[bytes, ...] = ()
    reattestable: bool = False
    bundle: tuple[bytes, ...] = ()
    bootstrapping: Bootstrapping = Bootstrapping()
    generation: int = 0


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

    def store_bootstrapping(self, bootstrapping: Bootstrapping) -> None:
        self._write(lambda state: replace(state, bootstrapping=bootstrapping))

    def store_generation(self, generation: int) -> None:
        self._write(lambda state: replace(state, generation=generation))

    def distrust(self, bootstrapping: Bootstrapping) -> None:
        """Forget SVID and bundle at once: the next start asks the trust bundle's source."""
        self._write(lambda state: replace(state, svid=(), reattestable=False, bundle=(), bootstrapping=bootstrapping))

    def _write(self, change: Callable[[StoredState], StoredState]) -> None:
        with self._lock:
            state = change(self.state)
            if state == self.state:
                return
            files.write_atomically(self._path, _encode(state))
            self.state = state


def _encode(state: StoredState) -> bytes:
    bootstrapping = state.bootstrapping
    document = {
        "svid": [_pem(der) for der in state.svid],
        "bundle": [_pem(der) for der in state.bundle],
        "reattestable": state.reattestable,
        "bootstrap_use": int(bootstrapping.use),
        "bootstrap_start_time": rfc3339(bootstrapping.started) if bootstrapping.started else _NO_TIME,
        "connection_attempts": bootstrapping.attempts,
        "store_generation": state.generation,
    }
    return json.dumps(document).encode("ascii")


def rfc3339(moment: float) -> str:
    """Unix seconds as RFC 3339 has them, in UTC, without fractions."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _pem(der: bytes) -> str:
    return base64.b64encode(to_pem([der]).encode("ascii")).decode("ascii")


def _decode(content: bytes) -> StoredState:
    """Raises ValueError."""
    document: object = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - one class for all that is wrong with the file
    fields = cast("dict[str, object]", document)
    use = _number(fields, "bootstrap_use")
    return StoredState(
        svid=_certificates(fields.get("svid")),
        reattestable=fields.get("reattestable") is True,
        bundle=_certificates(fields.get("bundle")),
        bootstrapping=Bootstrapping(
            use=Use(use) if use in tuple(Use) else Use.UNSPECIFIED,
            started=_moment(fields.get("bootstrap_start_time")),
            attempts=_number(fields, "connection_attempts"),
        ),
        generation=_number(fields, "store_generation"),
    )


def _number(fields: dict[str, object], key: str) -> int:
    value = fields.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _moment(value: object) -> float:
    """Unix seconds; 0 for none, which Go writes as the year 1."""
    if not isinstance(value, str) or value == _NO_TIME:
        return 0.0
    try:
        return max(0.0, datetime.fromisoformat(value).timestamp())
    except (ValueError, OverflowError) as error:
        raise ValueError("bootstrap_start_time is no time") from error


def _certificates(value: object) -> tuple[bytes, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError("a list of certificates was expected")  # noqa: TRY004 - as above
    return tuple(_certificate(text) for text in cast("list[object]", value))


def _certificate(text: object) -> bytes:
    """PEM in base64. Agents of ours wrote DER in base64 once."""
    if not isinstance(text, str):
        raise ValueError("a certificate in base64 was expected")  # noqa: TRY004 - as above
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("a certificate is not base64") from error
    if not content.startswith(b"-----BEGIN "):
        return content
    try:
        [der] = from_pem(content)
    except (InvalidArgument, ValueError) as error:
        raise ValueError("a certificate is not PEM") from error
    return der
