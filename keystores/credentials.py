"""Where systemd puts the secrets of a unit (systemd.exec(5), LoadCredential=)."""

from __future__ import annotations

import os
from pathlib import Path

from operations.errors import ConfigurationError


def path(setting: str, name: str) -> Path:
    """The file of the credential that a setting names; whether it is there shows when it is read.

    Raises ConfigurationError.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigurationError(f"{setting}: systemd passed no credentials; add LoadCredential={name}:… to the unit")
    if not name or "/" in name or name in {".", ".."}:
        raise ConfigurationError(f"{setting}: {name!r} is no name of a systemd credential")
    return Path(folder) / name
