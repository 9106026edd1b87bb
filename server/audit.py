"""The audit log: one line per call, or per item of a batch, that says who did what and how it ended.

Field names are SPIRE's, so that what collects them keeps working.
"""

from __future__ import annotations

from pathlib import Path

from operations.logs import Logger
from transport.peer import Peer
from transport.status import Code, RpcError

MESSAGE = "API accessed"


class Audit:
    """The audit record of one call. `add` collects fields; the other methods write a line."""

    __slots__ = ("_fields", "_log")

    def __init__(self, log: Logger, peer: Peer) -> None:
        self._log = log.bind(type="audit", **_local_caller(peer))
        self._fields: dict[str, object] = {}

    def add(self, **fields: object) -> None:
        self._fields.update(fields)

    def success(self, **fields: object) -> None:
        self._log.info(MESSAGE, **{**self._fields, "status": "success", **fields})

    def error(self, error: RpcError) -> None:
        self._log.info(MESSAGE, **{**self._fields, **_outcome(error.code, error.message)})

    def item(self, code: int, message: str, **fields: object) -> None:
        """A batch's item; the call's own fields are left out, as in SPIRE."""
        self._log.info(MESSAGE, **{**_outcome(Code(code), message), **fields})


def _outcome(code: Code, message: str) -> dict[str, object]:
    if code is Code.OK:
        return {"status": "success"}
    return {"status": "error", "status_code": code.label, "status_message": message}


def _local_caller(peer: Peer) -> dict[str, object]:
    process = peer.process
    if process is None:
        return {}
    fields: dict[str, object] = {"caller_uid": process.uid, "caller_gid": process.gid}
    try:
        fields["caller_path"] = str(Path(f"/proc/{process.pid}/exe").readlink())
    except OSError:
        # The caller may be gone, or belong to another user; uid and gid came with the connection.
        return fields
    return fields
