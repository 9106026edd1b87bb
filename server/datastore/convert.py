"""Records as messages of the SPIRE API. What comes in from outside is checked by server.rpc."""

from __future__ import annotations

from generated.spire.api.types import entry_pb2, selector_pb2, spiffeid_pb2
from server.datastore.records import Entry


def entry_to_proto(entry: Entry) -> entry_pb2.Entry:
    """The entry as types.Entry. What the store holds was checked before, so IDs are only split, not checked again."""
    message = entry_pb2.Entry(
        id=entry.id,
        spiffe_id=_split(entry.spiffe_id),
        parent_id=_split(entry.parent_id),
        selectors=[selector_pb2.Selector(type=each.type, value=each.value) for each in entry.selectors],
        x509_svid_ttl=entry.x509_svid_ttl,
        federates_with=entry.federates_with,
        admin=entry.admin,
        downstream=entry.downstream,
        expires_at=entry.expires_at,
        dns_names=entry.dns_names,
        revision_number=entry.revision_number,
        store_svid=entry.store_svid,
        jwt_svid_ttl=entry.jwt_svid_ttl,
        hint=entry.hint,
        created_at=entry.created_at,
    )
    # As in SPIRE, the message is present only when it says something.
    if entry.jwt_svid_include_jti or entry.disable_x509_svid_prefetch:
        message.additional_attributes.jwt_svid_include_jti = entry.jwt_svid_include_jti
        message.additional_attributes.disable_x509_svid_prefetch = entry.disable_x509_svid_prefetch
    return message


def _split(spiffe_id: str) -> spiffeid_pb2.SPIFFEID:
    name, slash, path = spiffe_id.removeprefix("spiffe://").partition("/")
    return spiffeid_pb2.SPIFFEID(trust_domain=name, path=slash + path)
