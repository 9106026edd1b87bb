"""sprig's functions of texts, checksums and encodings."""

from __future__ import annotations

import base64
import binascii
import hashlib
import uuid
import zlib

from attestors.agent_path import cases
from attestors.agent_path.cases import SPACES
from attestors.agent_path.cases import camel_case as camel_case
from attestors.agent_path.cases import lower as lower
from attestors.agent_path.cases import swap_case as swap_case
from attestors.agent_path.cases import title as title
from attestors.agent_path.cases import untitle as untitle
from attestors.agent_path.cases import upper as upper
from attestors.agent_path.values import Value, as_list, quoted, show, text_of, texts_of, to_bytes, to_text
from operations.errors import InvalidArgument

_LONGEST = 64 << 10
"""Characters that a function may make out of a few; no SPIFFE ID is nearly as long."""

_SPACES_OF_BYTES = "\t\n\v\f\r \x85\xa0"


def snake_case(text: str) -> str:
    return cases.separated(text, "_")


def kebab_case(text: str) -> str:
    return cases.separated(text, "-")


def abbrev(width: int, text: str) -> str:
    return abbrev_both(0, width, text)


def abbrev_both(left: int, width: int, text: str) -> str:
    """At most `width` bytes, with dots for what is left out; from `left` on if that is more than a few."""
    data = to_bytes(text)
    if width < 4 or (left > 0 and width < 7) or len(data) <= width:
        return text
    left = min(left, len(data))
    if len(data) - left < width - 3:
        left = len(data) - (width - 3)
    if left <= 4:
        return to_text(data[: width - 3]) + "..."
    if left + width - 3 < len(data):
        return "..." + abbrev(width - 3, to_text(data[left:]))
    return "..." + to_text(data[len(data) - (width - 3) :])


def trunc(length: int, text: str) -> str:
    """The first bytes, or with a negative length the last ones."""
    data = to_bytes(text)
    return to_text(data[:length] if length >= 0 else data[length:])


def substr(begin: int, end: int, text: str) -> str:
    data = to_bytes(text)
    if begin < 0:
        begin = 0
    elif end < 0 or end > len(data):
        end = len(data)
    if not begin <= end <= len(data):
        raise InvalidArgument(f"substr: {begin} to {end} is out of range for {len(data)} bytes")
    return to_text(data[begin:end])


def repeat(count: int, text: str) -> str:
    if count < 0:
        raise InvalidArgument("repeat: negative count")
    _require_short("repeat", count * len(text))
    return text * count


def trim(text: str) -> str:
    return text.strip(SPACES)


def trim_all(characters: str, text: str) -> str:
    return text.strip(characters)


def trim_suffix(suffix: str, text: str) -> str:
    return text.removesuffix(suffix)


def trim_prefix(prefix: str, text: str) -> str:
    return text.removeprefix(prefix)


def without_space(text: str) -> str:
    return "".join(each for each in text if each not in _SPACES_OF_BYTES)


def initials(text: str) -> str:
    """The first letters of words."""
    return "".join(
        each
        for before, each in zip(" " + text, text, strict=False)
        if before in _SPACES_OF_BYTES and each not in _SPACES_OF_BYTES
    )


def wrap(width: int, text: str) -> str:
    return _wrapped(width, "\n", text, break_words=False)


def wrap_with(width: int, newline: str, text: str) -> str:
    return _wrapped(width, newline or "\n", text, break_words=True)


def _wrapped(width: int, newline: str, text: str, *, break_words: bool) -> str:
    """Lines of at most so many bytes, cut at spaces; a longer word is cut, or has a line to itself."""
    data, width = to_bytes(text), max(width, 1)
    lines: list[bytes] = []
    while len(data) > width:
        if data.startswith(b" "):
            data = data[1:]
            continue
        space = data.rfind(b" ", 0, width + 1)
        if space < 0 and not break_words:
            space = data.find(b" ", width)
            if space < 0:
                break
        line, data = (data[:space], data[space + 1 :]) if space >= 0 else (data[:width], data[width:])
        lines.append(line)
    return to_text(to_bytes(newline).join((*lines, data)))


def contains(part: str, text: str) -> bool:
    return part in text


def has_prefix(prefix: str, text: str) -> bool:
    return text.startswith(prefix)


def has_suffix(suffix: str, text: str) -> bool:
    return text.endswith(suffix)


def quote_all(*values: Value) -> str:
    return " ".join(quoted(text_of(value)) for value in values if value is not None)


def quote_singly(*values: Value) -> str:
    return " ".join(f"'{show(value, top=False)}'" for value in values if value is not None)


def cat(*values: Value) -> str:
    return " ".join(show(value, top=False) for value in values if value is not None)


def indent(spaces: int, text: str) -> str:
    if spaces < 0:
        raise InvalidArgument("indent: negative count")
    _require_short("indent", spaces * (text.count("\n") + 1))
    pad = " " * spaces
    return pad + text.replace("\n", f"\n{pad}")


def new_line_indent(spaces: int, text: str) -> str:
    return "\n" + indent(spaces, text)


def replace(old: str, new: str, text: str) -> str:
    _require_short("replace", (text.count(old) if old else len(text) + 1) * len(new))
    return text.replace(old, new)


def plural(one: str, many: str, count: int) -> str:
    return one if count == 1 else many


def sha1_sum(text: str) -> str:
    return hashlib.sha1(to_bytes(text), usedforsecurity=False).hexdigest()


def sha256_sum(text: str) -> str:
    return hashlib.sha256(to_bytes(text)).hexdigest()


def adler32_sum(text: str) -> str:
    return str(zlib.adler32(to_bytes(text)))


def base64_encode(text: str) -> str:
    return base64.b64encode(to_bytes(text)).decode()


def base64_decode(text: str) -> str:
    try:
        return to_text(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"b64dec: {error}") from error


def base32_encode(text: str) -> str:
    return base64.b32encode(to_bytes(text)).decode()


def base32_decode(text: str) -> str:
    try:
        return to_text(base64.b32decode(text))
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"b32dec: {error}") from error


def to_string(value: Value) -> str:
    return text_of(value)


def uuid_v4() -> str:
    return str(uuid.uuid4())


def sequence(*numbers: int) -> str:
    """As seq(1): an end; a begin and an end; or a begin, a step and an end."""
    match numbers:
        case (end,):
            begin, step = 1, 1 if end >= 1 else -1
        case (begin, end):
            step = 1 if end >= begin else -1
        case (begin, step, end):
            pass
        case _:
            return ""
    if step == 0 or (end < begin) != (step < 0):
        return ""
    count = (end - begin) // step + 1
    _require_short("seq", count * 8)
    return " ".join(str(begin + place * step) for place in range(count))


def split_list(separator: str, text: str) -> Value:
    return text.split(separator) if separator else list(text)


def to_strings(value: Value) -> Value:
    return texts_of(value)


def join(separator: str, value: Value) -> str:
    return separator.join(texts_of(value))


def sort_alpha(value: Value) -> Value:
    return sorted(texts_of(value), key=to_bytes) if as_list(value) is not None else [text_of(value)]


def _require_short(name: str, length: int) -> None:
    if length > _LONGEST:
        raise InvalidArgument(f"{name}: the result would be longer than {_LONGEST} characters")
