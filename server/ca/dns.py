"""DNS names that may stand in an X509-SVID (RFC 1035 lengths, RFC 5890 letters, digits and hyphens)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from operations.errors import InvalidArgument

_MAX_NAME = 253
# Capitals and underscores are no host names' (RFC 952), but SPIRE lets them through and entries have them.
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def check_dns_name(name: str) -> None:
    """Raise InvalidArgument unless it is an ASCII name of the DNS, the first label of which may be `*`.

    SPIRE lets other ASCII characters through as well, such as spaces; no verifier would find such a name.
    """
    if not name.isascii():
        raise InvalidArgument("name must be ascii")
    stars = name.count("*")
    if stars > 1:
        raise InvalidArgument("too many wildcards")
    if stars and not name.startswith("*."):
        raise InvalidArgument("wildcard must be first label")
    host = name.removeprefix("*.")
    if not host.strip():
        raise InvalidArgument("empty or only whitespace")
    if host.endswith("."):
        raise InvalidArgument("domain ends with dot")
    if len(host) > _MAX_NAME:
        raise InvalidArgument(f"idna error: {host[:64]!r}… is longer than {_MAX_NAME} characters")
    for label in host.split("."):
        _check_label(label)


def check_wildcard_overlap(names: Sequence[str]) -> None:
    """Raise InvalidArgument if a wildcard among the names covers another of them."""
    wildcards = {name for name in names if name.startswith("*.")}
    if not wildcards:
        return
    for name in names:
        _, _, rest = name.partition(".")
        if not name.startswith("*") and f"*.{rest}" in wildcards:
            raise InvalidArgument(
                f'name "{name}" overlaps with an existing wildcard name in the list: wildcard overlap'
            )


def _check_label(label: str) -> None:
    if not _LABEL.fullmatch(label):
        raise InvalidArgument(f'idna error: invalid label "{label}"')
    if label[2:4] != "--":
        return
    # RFC 5891, 4.2.3.1: hyphens there are for A-labels, whose rest is Punycode of something that needed it.
    try:
        decoded = label[4:].encode().decode("punycode")
        honest = label.startswith("xn--") and _is_u_label(decoded) and decoded.encode("punycode") == label[4:].encode()
    except UnicodeError:
        honest = False
    if not honest:
        raise InvalidArgument(f'idna error: invalid label "{label}"')


def _is_u_label(label: str) -> bool:
    """UTS 46 in its outline: not all ASCII, in its mapped form already, no separators and no control characters."""
    mapped = unicodedata.normalize("NFKC", label.lower())
    return not label.isascii() and mapped == label and all(unicodedata.category(each)[0] not in "CZ" for each in label)
