"""Lines with public keys, as in authorized_keys (sshd(8)) and in the files that ssh-keygen writes."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from attestors.sshpop import keys
from operations.errors import InvalidArgument

_OPTIONS = re.compile(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+')


@dataclass(frozen=True, slots=True)
class Line:
    """A key or certificate as SSH writes it, and the options before it."""

    blob: bytes
    options: str = ""


def first(text: str) -> Line:
    """The first line that has a key; empty ones and comments are passed over. Raises InvalidArgument."""
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("#"):
            return _parse(line)
    raise InvalidArgument("ssh: no key found")


def every(text: str) -> list[str]:
    """The lines that are to have keys."""
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def _parse(line: str) -> Line:
    if (blob := _key(line)) is not None:
        return Line(blob)
    options = _OPTIONS.match(line)
    blob = _key(line[options.end() :]) if options else None
    if blob is None or options is None:
        raise InvalidArgument("ssh: no key found: give its type and its base64, as in a .pub file")
    return Line(blob, options[0])


def _key(text: str) -> bytes | None:
    """The key of a text that begins with one: its type, then base64 that says the same type."""
    words = text.split(maxsplit=2)
    if len(words) < 2:
        return None
    try:
        blob = base64.b64decode(words[1], validate=True)
        return blob if keys.kind_of(blob) == words[0] else None
    except (binascii.Error, ValueError, InvalidArgument):
        return None
