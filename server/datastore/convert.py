"""Records as messages of the SPIRE API. What comes in from outside is checked by server.rpc."""

from __future__ import annotations

from generated.spire.api.types import entry_pb2, spiffeid_pb2
from server.datastore.records import Entry


def entry_to_proto(entry: Entry) -> entry_pb2.Entry:
    """The entry as types.Entry. What the store holds was checked before, so IDs are only split, not checked again."""
    # Field by field, because the constructor takes twice as long, and an index converts every entry at start.
    message = entry_pb2.Entry()
    message.id = entry.id
    _split(entry.spiffe_id, message.spiffe_id)
    _split(entry.parent_id, message.parent_id)
    for selector in entry.selectors:
        message.selectors.add(type=selector.type, value=selector.value)
    message.x509_svid_ttl = entry.x509_svid_ttl
    message.federates_with.extend(entry.federates_with)
    message.admin = entry.admin
    message.downstream = entry.downstream
    message.expires_at = entry.expires_at
    message.dns_names.extend(entry.dns_names)
    message.revision_number = entry.revision_number
    message.store_svid = entry.store_svid
    message.jwt_svid_ttl = entry.jwt_svid_ttl
    message.hint = entry.hint
    message.created_at = entry.created_at
    # As in SPIRE, this message is present only when it says something.
    if entry.jwt_svid_include_jti or entry.disable_x509_svid_prefetch:
        message.additional_attributes.jwt_svid_include_jti = entry.jwt_svid_include_jti
        message.additional_attributes.disable_x509_svid_prefetch = entry.disable_x509_svid_prefetch
    return message


def _split(spiffe_id: str, message: spiffeid_pb2.SPIFFEID) -> None:
    name, slash, path = spiffe_id.removeprefix("spiffe://").partition("/")
    message.trust_domain = name
    message.path = slash + path
