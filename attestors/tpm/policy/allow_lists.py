"""Lists of files and their digests, as the tools print them that operators have.

sha256sum           HEX  PATH         also sha1sum … sha512sum; keylime's plain allow-lists
IMA's own list      10 HEX ima-ng sha256:HEX PATH      securityfs, ascii_runtime_measurements
keylime             {"digests": {"PATH": ["HEX"]}}     a runtime policy; only its digests are read
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from attestors.tpm.ima import aggregate
from attestors.tpm.pcrs import BANKS
from attestors.tpm.policy.values import file_digest
from operations import documents
from operations.errors import ConfigurationError, InvalidArgument
from operations.quoting import quote

FILE_LIMIT: Final = 64 << 20
"""Bytes."""
ENTRY_LIMIT: Final = 1_000_000
Allowed: TypeAlias = dict[str, dict[str, tuple[bytes, ...]]]
"""Digests by algorithm and path."""

_SUM = re.compile(r"(\\?)((?:[a-z][a-z0-9:-]*:)?[0-9a-fA-F]+) [ *](.+)", re.ASCII)
_MEASURED = re.compile(r"\d+ [0-9a-f]+ ima\S* (\S+:[0-9a-f]+) (.+)", re.ASCII)
_ESCAPES: Final = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


class _RuntimePolicy(msgspec.Struct, frozen=True):
    digests: Mapping[str, tuple[str, ...]]


def add(allowed: Allowed, path: str, text: str) -> None:
    """Allow a file to have that digest, besides those that it may have already. Raises InvalidArgument.

    Spaces become what the kernel measures for them (ima_write_template_field_data).
    """
    algorithm, digest = file_digest(text)
    path = path.replace(" ", "_")
    paths = allowed.setdefault(algorithm, {})
    known = paths.get(path, ())
    if digest not in known:
        paths[path] = (*known, digest)


def load(path: Path, allowed: Allowed) -> bytes:
    """Add what the file has, and return its content. Blocks. Raises ConfigurationError with file and line."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read the list of allowed files: {error.strerror}", file=str(path)) from error
    if len(data) > FILE_LIMIT:
        raise ConfigurationError(f"longer than {FILE_LIMIT >> 20} MiB: no list of files is", file=str(path))
    text = data.decode("utf-8", "backslashreplace")  # paths need not be UTF-8; ImaEntry.path has them so
    if text.lstrip().startswith("{"):
        _load_runtime_policy(path, data, allowed)
    else:
        _load_lines(path, text, allowed)
    return data


def _load_runtime_policy(path: Path, data: bytes, allowed: Allowed) -> None:
    try:
        found = documents.decode(data, _RuntimePolicy).digests
        for name, digests in found.items():
            for digest in digests:
                add(allowed, name, digest)
    except InvalidArgument as error:
        raise ConfigurationError(f"no runtime policy of keylime: {error}", file=str(path)) from error


def _load_lines(path: Path, text: str, allowed: Allowed) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        if number > ENTRY_LIMIT:
            raise ConfigurationError(f"more than {ENTRY_LIMIT} lines", file=str(path), line=number)
        if not line.strip() or line.startswith("#"):
            continue
        try:
            for name, digest in _parsed(line.removesuffix("\r")):
                add(allowed, name, digest)
        except InvalidArgument as error:
            raise ConfigurationError(str(error), file=str(path), line=number) from error


def _parsed(line: str) -> Iterator[tuple[str, str]]:
    if found := _SUM.fullmatch(line):
        escaped, digest, name = found.groups()
        # sha256sum begins a line with a backslash when the name has what would break it.
        yield re.sub(r"\\[\\nr]", lambda each: _ESCAPES[each[0]], name) if escaped else name, digest
    elif found := _MEASURED.fullmatch(line):
        digest, name = found.groups()
        if name != aggregate.NAME:
            yield name, digest
    else:
        raise InvalidArgument(f"{quote(line[:80])} is neither a line of sha256sum (HEX  PATH) nor one of IMA's list")


def line(algorithm: str, digest: bytes, path: str) -> str:
    """As sha256sum writes it; with the algorithm before it where the length does not tell."""
    name = digest.hex() if algorithm in BANKS else f"{algorithm}:{digest.hex()}"
    if not any(char in path for char in _ESCAPES.values()):
        return f"{name}  {path}"
    for escape, char in _ESCAPES.items():
        path = path.replace(char, escape)
    return f"\\{name}  {path}"
