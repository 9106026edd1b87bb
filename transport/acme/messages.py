"""What an ACME server says (RFC 8555, 7.1), as far as it is used. Names that are not here are let be."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

from operations.errors import Refused
from operations.quoting import quote

_LONGEST_TEXT = 300
_PREFIX = "urn:ietf:params:acme:error:"
_MOST = 16

Texts = list[str]


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    terms_of_service: str = ""


class Directory(msgspec.Struct, frozen=True, rename="camel"):
    new_nonce: str
    new_account: str
    new_order: str
    meta: Meta = Meta()


class Identifier(msgspec.Struct, frozen=True):
    type: str
    value: str


class Document(msgspec.Struct, frozen=True):
    """A problem document (RFC 7807), as answers and objects have it."""

    type: str = "about:blank"
    detail: str = ""
    subproblems: list[Document] = []


class Challenge(msgspec.Struct, frozen=True):
    type: str
    url: str
    status: str = "pending"
    token: str = ""
    error: Document | None = None


class Authorization(msgspec.Struct, frozen=True):
    status: Literal["pending", "valid", "invalid", "deactivated", "expired", "revoked"]
    identifier: Identifier
    challenges: list[Challenge] = []


class Order(msgspec.Struct, frozen=True):
    status: Literal["pending", "ready", "processing", "valid", "invalid"]
    authorizations: Texts
    finalize: str
    certificate: str = ""
    error: Document | None = None


class Problem(Refused):
    """The ACME server said no. `kind` is the type without the prefix that all of ACME have (RFC 8555, 6.7)."""

    def __init__(self, doing: str, document: Document, *, retry_after: float = 0.0) -> None:
        self.kind = document.type.removeprefix(_PREFIX)
        self.retry_after = retry_after
        super().__init__(f"{doing}: the ACME server refuses: {text_of(document)}")


def text_of(document: Document) -> str:
    """One line: the type, the detail, and what it says of each identifier."""
    said = [document, *document.subproblems[:_MOST]]
    parts = [f"{each.type[:100]}: {each.detail}" if each.detail else each.type[:100] for each in said]
    text = "; ".join(parts)[:_LONGEST_TEXT]
    return text if text.isprintable() else quote(text)


def retry_after(header: str | None, now: datetime | None = None) -> float:
    """Seconds to wait (RFC 9110, 10.2.3): a number of them, or a date. 0 for none, or for what is neither."""
    if header is None:
        return 0.0
    if header.isascii() and header.isdecimal():
        return float(header[:9])
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def reasons(authorization: Authorization) -> Document:
    """Why an authorization is not valid."""
    errors: Sequence[Document] = [each.error for each in authorization.challenges if each.error is not None]
    return errors[0] if errors else Document("about:blank", f"the authorization is {authorization.status}")
