"""Faults of the TPM as the worker's process tells them: which error, in which words. One line each, with a way out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tpm2_pytss import TSS2_Exception

from keystores.tpm.messages import Failed
from keystores.tpm.responses import Meaning, is_tpm, meaning

_NOT_PERMITTED: Final = "add the user that runs this to the group tss, or give it access by a udev rule"


class Fault(Exception):
    """What the worker's process answers in place of a result. `kind` names a class of keystores.errors."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        code: int = 0,
        reason: str = "",
        away: bool = False,
        authorization: bool = False,
    ) -> None:
        super().__init__(message)
        self.failed: Final = Failed(
            kind=kind, message=message, code=code, reason=reason, away=away, authorization=authorization
        )


_WORDS: Final = {
    Meaning.WAIT: ("TemporarilyUnavailable", "the TPM is busy"),
    Meaning.START: ("TemporarilyUnavailable", "the TPM was not started"),
    Meaning.FULL: (
        "TemporarilyUnavailable",
        (
            "the TPM has no room: other programs hold its objects or sessions; "
            "use a resource manager (device:/dev/tpmrm0, tabrmd), or free them by tpm2_flushcontext -t -l"
        ),
    ),
    Meaning.LOCKED: (
        "TemporarilyUnavailable",
        "the TPM is in dictionary attack lockout; wait, or reset it by tpm2_dictionarylockout --clear-lockout",
    ),
    Meaning.BROKEN: (
        "TemporarilyUnavailable",
        "the TPM is in failure mode: restart the machine; tpm2_gettestresult says more",
    ),
    Meaning.POLICY: ("Refused", "the TPM refused the use: the object's policy is not met"),
    Meaning.INTEGRITY: (
        "PermanentlyUnusable",
        (
            "the TPM does not load the blob: another TPM made it, the TPM was cleared since, its parent differs, or "
            "it is damaged"
        ),
    ),
    Meaning.UNSUPPORTED: ("Unsupported", "the TPM lacks what is asked of it"),
    Meaning.GONE: ("TemporarilyUnavailable", "the TPM does not answer as it should"),
}


def failure(error: TSS2_Exception, tcti: str) -> Fault:
    """The fault to report once nothing more can be tried."""
    code = int(error.rc)
    found = meaning(code)
    if not is_tpm(code):
        return unreachable(tcti, code, str(error))
    if found is Meaning.REFUSED:
        return refusal(error)
    kind, message = _WORDS[found]
    away = found in {Meaning.BROKEN, Meaning.GONE, Meaning.START}
    return Fault(kind, message, code=code, reason=str(error), away=away)


def refusal(error: TSS2_Exception, message: str = "the TPM refused the authorization") -> Fault:
    """A wrong authorization, which must not be tried again."""
    return Fault("Refused", message, code=int(error.rc), reason=str(error), authorization=True)


def not_there(handle: int, error: TSS2_Exception) -> Fault:
    reason = f"the TPM has no key at {handle:#010x}; tpm2_getcap handles-persistent lists them"
    return Fault("NotFound", reason, code=int(error.rc), reason=str(error))


def unreachable(tcti: str, code: int, reason: str) -> Fault:
    """No TPM behind the TCTI, or one that broke off."""
    name, _, options = tcti.partition(":")
    if name == "device":
        return _no_device(options or "/dev/tpmrm0", code, reason)
    message = f"no TPM answers at {tcti!r}: is it running, and is the TCTI right?"
    return Fault("TemporarilyUnavailable", message, code=code, reason=reason, away=True)


def _no_device(path: str, code: int, reason: str) -> Fault:
    if not Path(path).exists():
        message = (
            f"there is no TPM at {path}: is it enabled in the firmware, and is the driver loaded (ls /dev/tpm*)? "
            "tcti names another one"
        )
        return Fault("TemporarilyUnavailable", message, code=code, reason=reason, away=True)
    if not os.access(path, os.R_OK | os.W_OK):
        message = f"no permission to use the TPM at {path}: {_NOT_PERMITTED}"
        return Fault("Refused", message, code=code, reason=reason, away=True)
    message = f"the TPM at {path} does not answer; if it is /dev/tpm0, another program may hold it: use /dev/tpmrm0"
    return Fault("TemporarilyUnavailable", message, code=code, reason=reason, away=True)
