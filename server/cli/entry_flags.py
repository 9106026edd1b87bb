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

    def __init__(self, flags: FlagSet, *, entry_id: str, parent_id: str) -> None:
        """`entry_id` and `parent_id` describe the two flags whose meaning differs between the commands."""
        lifetime = "Lifetime of {} in seconds; 0 means the server's default_{}_svid_ttl"
        self.entry_id = flags.string("entryID", "", entry_id)
        self.parent_id = flags.string("parentID", "", parent_id)
        self.spiffe_id = flags.string("spiffeID", "", "SPIFFE ID to issue, e.g. spiffe://example.org/web; required")
        self.x509_svid_ttl = flags.integer("x509SVIDTTL", 0, lifetime.format("X509-SVIDs", "x509"))
        self.jwt_svid_ttl = flags.integer("jwtSVIDTTL", 0, lifetime.format("JWT-SVIDs", "jwt"))
        self.data = flags.string(
            "data",
            "",
            'JSON file with whole entries, {"entries": [{...}, {...}]}; - reads standard input. The flags that '
            "describe one entry are then ignored",
        )
        self.selectors = flags.strings(
            "selector", "Selector as type:value, e.g. unix:uid:1000. Repeatable, and all must match; at least one"
        )
        self.federates_with = flags.strings(
            "federatesWith", "Trust domain whose bundle is handed out too, e.g. spiffe://other.test; repeatable"
        )
        self.admin = flags.boolean("admin", "Let the holder of the SVID use the server's admin APIs over TCP")
        self.store_svid = flags.boolean("storeSVID", "Let an SVIDStore plugin of the agent keep the SVID")
        self.downstream = flags.boolean(
            "downstream", "The workload is another server, which may get a CA from this one"
        )
        self.entry_expiry = flags.integer(
            "entryExpiry", 0, "When the server drops the entry, in seconds since 1970 (Unix time); 0 means never"
        )
        self.dns_names = flags.strings("dns", "DNS name to put into X509-SVIDs, e.g. web.example.org; repeatable")
        self.hint = flags.string("hint", "", "Word by which a workload tells its identities apart, e.g. internal")
        self.disable_x509_svid_prefetch = flags.boolean(
            "disableX509SVIDPrefetch", "Agents get the X509-SVID when a workload first asks, not in advance"
        )
        self.jwt_svid_include_jti = flags.boolean(
            "jwtSVIDIncludeJTI",
            "Give each JWT-SVID a jti claim of its own. Agents then ask the server for every token and cache none",
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
