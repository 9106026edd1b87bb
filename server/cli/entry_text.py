"""An entry as people read it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TextIO

from generated.spire.api.types import entry_pb2, spiffeid_pb2
from operations import times


def print_entry(entry: entry_pb2.Entry, file: TextIO | None = None) -> None:
    """To standard output by default."""
    for label, value in _lines(entry):
        print(f"{label:23} : {value}", file=file or sys.stdout)
    print(file=file or sys.stdout)


def id_text(spiffe_id: spiffeid_pb2.SPIFFEID) -> str:
    """Whatever the server sent; it is not checked."""
    return f"spiffe://{spiffe_id.trust_domain}{spiffe_id.path}"


def _lines(entry: entry_pb2.Entry) -> Iterator[tuple[str, object]]:
    yield "Entry ID", entry.id or "(none)"
    yield "SPIFFE ID", id_text(entry.spiffe_id) if entry.HasField("spiffe_id") else ""
    yield "Parent ID", id_text(entry.parent_id) if entry.HasField("parent_id") else ""
    yield "Revision", entry.revision_number
    yield from _if_set("Downstream", entry.downstream)
    yield "X509-SVID TTL", entry.x509_svid_ttl or "default"
    yield "JWT-SVID TTL", entry.jwt_svid_ttl or "default"
    yield from _if_set("Expiration time", entry.expires_at and times.text(entry.expires_at))
    yield from (("Selector", f"{selector.type}:{selector.value}") for selector in entry.selectors)
    yield from (("FederatesWith", trust_domain) for trust_domain in entry.federates_with)
    yield from (("DNS name", dns_name) for dns_name in entry.dns_names)
    yield from _if_set("Admin", entry.admin)
    yield from _if_set("StoreSvid", entry.store_svid)
    yield from _if_set("Hint", entry.hint)
    yield from _if_set("DisableX509SvidPrefetch", entry.additional_attributes.disable_x509_svid_prefetch)
    yield from _if_set("JwtSvidIncludeJti", entry.additional_attributes.jwt_svid_include_jti)


def _if_set(label: str, value: object) -> Iterator[tuple[str, object]]:
    if value:
        yield label, "true" if value is True else value
