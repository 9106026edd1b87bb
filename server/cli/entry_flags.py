"""The flags that describe an entry, shared by `entry create` and `entry update`."""

from __future__ import annotations

from generated.spire.api.types import entry_pb2
from identity.spiffeid import TrustDomain, server_id
from operations.errors import InvalidArgument
from operations.flags import FlagSet
from server.cli import values

Entry = entry_pb2.Entry


class EntryFlags:
    """`to_entry` gives the entry and raises InvalidArgument for what is missing or malformed."""

    def __init__(self, flags: FlagSet, entry_id_usage: str) -> None:
        ttl = "The lifetime, in seconds, for {}-SVIDs issued based on this registration entry."
        when_set = "A boolean value that, when set, "
        self.entry_id = flags.string("entryID", "", entry_id_usage)
        self.parent_id = flags.string("parentID", "", "The SPIFFE ID of this record's parent")
        self.spiffe_id = flags.string("spiffeID", "", "The SPIFFE ID that this record represents")
        self.x509_svid_ttl = flags.integer("x509SVIDTTL", 0, ttl.format("x509"))
        self.jwt_svid_ttl = flags.integer("jwtSVIDTTL", 0, ttl.format("JWT"))
        self.data = flags.string(
            "data",
            "",
            "Path to a file containing registration JSON (optional). If set to '-', read the JSON from stdin.",
        )
        self.selectors = flags.strings("selector", "A colon-delimited type:value selector. Can be used more than once")
        self.federates_with = flags.strings(
            "federatesWith", "SPIFFE ID of a trust domain to federate with. Can be used more than once"
        )
        self.admin = flags.boolean(
            "admin", "If set, the SPIFFE ID in this entry will be granted access to the SPIRE Server's management APIs"
        )
        self.store_svid = flags.boolean(
            "storeSVID",
            f"{when_set}indicates that the resulting issued SVID from this entry must be stored through an SVIDStore "
            "plugin",
        )
        self.downstream = flags.boolean(
            "downstream", f"{when_set}indicates that the entry describes a downstream SPIRE server"
        )
        self.entry_expiry = flags.integer(
            "entryExpiry", 0, "An expiry, from epoch in seconds, for the resulting registration entry to be pruned"
        )
        self.dns_names = flags.strings(
            "dns",
            "A DNS name that will be included in SVIDs issued based on this entry, where appropriate. Can be used more "
            "than once",
        )
        self.hint = flags.string("hint", "", "The entry hint, used to disambiguate entries with the same SPIFFE ID")
        self.disable_x509_svid_prefetch = flags.boolean(
            "disableX509SVIDPrefetch", f"{when_set}disables prefetching X509 SVID for this entry"
        )
        self.jwt_svid_include_jti = flags.boolean(
            "jwtSVIDIncludeJTI",
            f"{when_set}includes a unique 'jti' claim in JWT-SVIDs issued for this entry and bypasses the agent "
            "JWT-SVID cache",
        )

    def require(self, *, parent: str | None) -> None:
        """Raises InvalidArgument for what is not there; `parent` is the complaint about a missing parent, if any."""
        if not self.selectors.value:
            raise InvalidArgument("at least one selector is required")
        if parent and not self.parent_id.value:
            raise InvalidArgument(parent)
        if not self.spiffe_id.value:
            raise InvalidArgument("a SPIFFE ID is required")
        if self.x509_svid_ttl.value < 0:
            raise InvalidArgument("a positive x509-SVID TTL is required")
        if self.jwt_svid_ttl.value < 0:
            raise InvalidArgument("a positive JWT-SVID TTL is required")

    def to_entry(self, *, of_node: bool = False) -> Entry:
        """The entry; `of_node` makes the server its parent."""
        entry = Entry(
            id=self.entry_id.value,
            spiffe_id=values.spiffe_id(self.spiffe_id.value),
            downstream=self.downstream.value,
            expires_at=self.entry_expiry.value,
            dns_names=self.dns_names.value,
            store_svid=self.store_svid.value,
            hint=self.hint.value,
            admin=self.admin.value,
            federates_with=self.federates_with.value,
        )
        if of_node:
            entry.parent_id.CopyFrom(server_id(TrustDomain(entry.spiffe_id.trust_domain)).to_proto())
        else:
            entry.parent_id.CopyFrom(values.spiffe_id(self.parent_id.value))
        entry.x509_svid_ttl = values.int32(self.x509_svid_ttl.value, "X509 SVID TTL")
        entry.jwt_svid_ttl = values.int32(self.jwt_svid_ttl.value, "JWT SVID TTL")
        entry.selectors.extend(values.selector(text) for text in self.selectors.value)
        if self.disable_x509_svid_prefetch.value:
            entry.additional_attributes.disable_x509_svid_prefetch = True
        if self.jwt_svid_include_jti.value:
            entry.additional_attributes.jwt_svid_include_jti = True
        return entry
