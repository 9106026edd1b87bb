"""Which TPM this machine has, and how to connect to it."""

from __future__ import annotations

import re
from pathlib import Path

from keystores.tpm import configuration as settings
from operations.errors import ConfigurationError

FOLDER = Path("/dev")
SOCKET = "socket:"
"""Begins the connection to a TPM, as swtpm serves it, at a Unix socket; every other is a TCTI string."""

_NAMES = (re.compile(r"tpmrm\d+"), re.compile(r"tpm\d+"))
"""Behind the kernel's resource manager first."""


def detect(folder: Path = FOLDER) -> str:
    """The path of the one TPM. Raises ConfigurationError where there is none, or a choice."""
    try:
        files = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise ConfigurationError(f"tpm autodetection failed: {folder}: {error.strerror}") from error
    for name in _NAMES:
        found = [file for file in files if name.fullmatch(file)]
        if len(found) > 1:
            raise ConfigurationError(
                f"tpm autodetection failed: more than one possible TPM device was found: {', '.join(found)}; set "
                "tpm_device_path to one of them"
            )
        if found:
            return str(folder / found[0])
    raise ConfigurationError(
        f"tpm autodetection failed: not found: {folder} has no tpmrm0 and no tpm0: is the TPM enabled in the firmware? "
        "tpm_device_path names another one"
    )


def connection(path: str) -> str:
    """How to connect to a device or a Unix socket. Blocks on the disk."""
    return f"{SOCKET}{path}" if Path(path).is_socket() else f"device:{path}"


def named(tcti: str) -> str:
    """The connection that an operator names by a TCTI string or a path; that to the machine's one TPM if by nothing.

    Raises ConfigurationError for what is none. Blocks on the disk.
    """
    if not tcti:
        return connection(detect())
    return connection(tcti) if tcti.startswith("/") else settings.tcti(tcti)
