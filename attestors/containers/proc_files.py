"""What /proc/PID/cgroup (cgroups(7)) and /proc/PID/mountinfo (proc(5)) say, taken from their bytes. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from operations.errors import Refused
from operations.quoting import quote

_SHOWN = 200
"""Bytes of a line in an error's text: a line may be as long as its file."""

# Fields of mountinfo's lines, counted from 0; any number of optional ones come between the options and the separator.
_ROOT, _FIRST_OPTIONAL = 3, 6
_SEPARATOR = b"-"

_CGROUP_TYPES = frozenset((b"cgroup", b"cgroup2"))


@dataclass(frozen=True, slots=True)
class Mount:
    """`root` is the folder within its file system that is mounted, as the kernel escapes it."""

    root: bytes
    type: bytes

    @property
    def is_cgroup(self) -> bool:
        return self.type in _CGROUP_TYPES


def cgroup_paths(content: bytes) -> Sequence[bytes]:
    """The path of each hierarchy that the process is in, in the file's order. Raises Refused for what is no such file.

    Paths are seen from the reader's cgroup namespace: those outside its root begin with `/..` (cgroup_namespaces(7)).
    """
    return [_cgroup_path(line) for line in _lines(content)]


def _cgroup_path(line: bytes) -> bytes:
    # hierarchy-ID:controller-list:path, and the path may have colons of its own.
    fields = line.split(b":", 2)
    if len(fields) < 3:
        raise Refused(
            f"unable to obtain cgroups: invalid cgroup entry, contains {len(fields)} colon separated fields but "
            f"expected at least 3: {_text(line)}"
        )
    return fields[2]


def mounts(content: bytes) -> Sequence[Mount]:
    """The mounts of a process's mount namespace. Raises Refused for what is no such file."""
    return [_mount(line) for line in _lines(content) if line]


def _mount(line: bytes) -> Mount:
    # Single spaces: what a mount calls its source may be empty, and real spaces are escaped.
    fields = line.split(b" ")
    try:
        separator = fields.index(_SEPARATOR)
    except ValueError:
        raise Refused(f"missing separator in mountinfo line: {_text(line)}") from None
    if separator < _FIRST_OPTIONAL:
        raise Refused(f"expected at least {_FIRST_OPTIONAL} fields before separator in mountinfo line: {_text(line)}")
    kind = fields[separator + 1] if separator + 1 < len(fields) else b""
    if not kind:
        raise Refused(f"missing filesystem type in mountinfo line: {_text(line)}")
    return Mount(fields[_ROOT], kind)


def _lines(content: bytes) -> Sequence[bytes]:
    # Not splitlines(): the kernel ends lines with newlines and leaves other control characters in names.
    lines = content.split(b"\n")
    return lines[:-1] if not lines[-1] else lines


def _text(line: bytes) -> str:
    return quote(line[:_SHOWN].decode(errors="replace"))
