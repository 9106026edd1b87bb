"""Who owns the files that are written for others."""

from __future__ import annotations

import grp
import os
import pwd

from operations.errors import ConfigurationError
from operations.quoting import quote


def numbers(user: str, group: str, place: str, program: str) -> tuple[int, int]:
    """The numbers of user and group; -1 for the program's own. Raises ConfigurationError, beginning with `place`."""
    try:
        uid = pwd.getpwnam(user).pw_uid if user else -1
    except KeyError:
        raise ConfigurationError(f"{place}: there is no user {quote(user)} on this machine") from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        raise ConfigurationError(f"{place}: there is no group {quote(group)} on this machine") from None
    if uid not in (-1, os.geteuid()) and os.geteuid() != 0:
        raise ConfigurationError(f"{place}: only root can give files to {quote(user)}: run {program} as root")
    return uid, gid
