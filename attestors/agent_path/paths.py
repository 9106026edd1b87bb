"""Go's path package: slash-separated names."""

from __future__ import annotations

import posixpath


def base(path: str) -> str:
    """The last element."""
    if not path:
        return "."
    return posixpath.basename(path.rstrip("/")) or "/"


def folder(path: str) -> str:
    return clean(path[: path.rfind("/") + 1])


def clean(path: str) -> str:
    cleaned = posixpath.normpath(path) if path else "."
    # POSIX lets two slashes at the front stand; Go does not.
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def extension(path: str) -> str:
    """With its dot; a name that is all extension counts."""
    name = path[path.rfind("/") + 1 :]
    return name[name.rfind(".") :] if "." in name else ""


def is_absolute(path: str) -> bool:
    return path.startswith("/")
