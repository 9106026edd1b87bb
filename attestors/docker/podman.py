"""Which processes are in Podman's containers, and whose Podman is to be asked about them. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable

from operations.errors import InvalidArgument

# As libpod names a container's cgroup: a scope of systemd, or a folder.
_PODMAN = re.compile(rb"libpod-|/libpod/")
_USERS_SLICE = re.compile(rb"/user-(\d+)\.slice/")
_LAST_UID = 2**32 - 1
_LONGEST_UID = len(str(_LAST_UID))


def check_template(template: str) -> None:
    """Raises InvalidArgument unless the template has one place for a user's id, `%d`, and `%%` for other percents."""
    rest = template.replace("%%", "")
    if rest.count("%d") != 1 or rest.count("%") != 1:
        raise InvalidArgument(
            "invalid podman_socket_path_template: write exactly one %d, for the user's id, and %% for a percent sign"
        )


def socket(paths: Iterable[bytes], rootful: str, template: str) -> str:
    """The socket of the Podman that runs the process with these cgroups; empty if none does.

    A container in a user's slice is of that user's own Podman, any other of root's.
    """
    for path in paths:
        if _PODMAN.search(path):
            user = _user(path)
            return rootful if user is None else _filled(template, user)
    return ""


def _user(path: bytes) -> int | None:
    found = _USERS_SLICE.search(path)
    if found is None or len(found.group(1)) > _LONGEST_UID:
        return None
    uid = int(found.group(1))
    return uid if uid <= _LAST_UID else None


def _filled(template: str, uid: int) -> str:
    return "%".join(part.replace("%d", str(uid)) for part in template.split("%%"))
