"""The tables. A change here needs a migration in migrations/versions; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Page tokens are these numbers, so one must never be given twice: hence AUTOINCREMENT on SQLite.
_SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")


def _bytewise(kind: String) -> String:
    """Texts are compared and ordered by their bytes, whatever the database's own collation; SQLite does so anyway."""
    return kind.with_variant(type(kind)(kind.length, collation="C"), "postgresql")


# SPIFFE IDs are at most 2048 bytes (SPIFFE-ID standard, section 2.3), trust domain names 255.
_SPIFFE_ID = _bytewise(String(2048))
_TRUST_DOMAIN = _bytewise(String(255))
_NAME = _bytewise(String(255))
_TEXT = _bytewise(Text())

PREFIX = 256
"""Characters of a selector's value that are in PostgreSQL's indexes, which hold at most 2700 bytes for a row."""
_PREFIX_OF_VALUE = text(f"substr(value, 1, {PREFIX})")

bundles = Table(
    "bundles",
    metadata,
    Column("trust_domain", _TRUST_DOMAIN, primary_key=True),
    # A serialised spire.api.types.Bundle.
    Column("data", LargeBinary, nullable=False),
)

entries = Table(
    "entries",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("id", _NAME, nullable=False),
    Column("spiffe_id", _SPIFFE_ID, nullable=False),
    Column("parent_id", _SPIFFE_ID, nullable=False),
    Column("x509_svid_ttl", Integer, nullable=False),
    Column("jwt_svid_ttl", Integer, nullable=False),
    Column("hint", _bytewise(String(1024)), nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("downstream", Boolean, nullable=False),
    Column("store_svid", Boolean, nullable=False),
    Column("jwt_svid_include_jti", Boolean, nullable=False),
    Column("disable_x509_svid_prefetch", Boolean, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revision_number", BigInteger, nullable=False),
    UniqueConstraint("id"),
    Index("ix_entries_parent_id_spiffe_id", "parent_id", "spiffe_id").ddl_if(dialect="sqlite"),
    Index("ix_entries_parent_id", "parent_id").ddl_if(dialect="postgresql"),
    Index("ix_entries_spiffe_id", "spiffe_id"),
    Index("ix_entries_hint", "hint"),
    Index("ix_entries_expires_at", "expires_at"),
    sqlite_autoincrement=True,
)

entry_selectors = Table(
    "entry_selectors",
    metadata,
    Column("entry", _SEQUENCE, ForeignKey("entries.seq", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("type", _NAME, nullable=False),
    Column("value", _TEXT, nullable=False),
    Index("ix_entry_selectors_type_value", "type", "value", "entry").ddl_if(dialect="sqlite"),
    Index("ix_entry_selectors_type_prefix", "type", _PREFIX_OF_VALUE, "entry").ddl_if(dialect="postgresql"),
)

entry_dns_names = Table(
    "entry_dns_names",
    metadata,
    Column("entry", _SEQUENCE, ForeignKey("entries.seq", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", _NAME, nullable=False),
)

entry_federations = Table(
    "entry_federations",
    metadata,
    Column("entry", _SEQUENCE, ForeignKey("entries.seq", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("trust_domain", _TRUST_DOMAIN, ForeignKey("bundles.trust_domain"), nullable=False),
    Index("ix_entry_federations_trust_domain", "trust_domain", "entry"),
)

# No foreign key to `bundles`: a relationship comes before the bundle that is fetched over it, and outlives it.
federation_relationships = Table(
    "federation_relationships",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("trust_domain", _TRUST_DOMAIN, nullable=False),
    Column("bundle_endpoint_url", _bytewise(String(2048)), nullable=False),
    Column("bundle_endpoint_profile", _bytewise(String(32)), nullable=False),
    # Empty unless the profile is https_spiffe.
    Column("endpoint_spiffe_id", _SPIFFE_ID, nullable=False),
    UniqueConstraint("trust_domain"),
    sqlite_autoincrement=True,
)

nodes = Table(
    "nodes",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("spiffe_id", _SPIFFE_ID, nullable=False),
    Column("attestation_type", _NAME, nullable=False),
    Column("serial_number", _NAME, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("new_serial_number", _NAME, nullable=False),
    Column("new_expires_at", BigInteger, nullable=False),
    Column("can_reattest", Boolean, nullable=False),
    Column("agent_version", _NAME, nullable=False),
    UniqueConstraint("spiffe_id"),
    Index("ix_nodes_expires_at", "expires_at"),
    sqlite_autoincrement=True,
)

# Not tied to `nodes`: an attestation sets the selectors before the node exists.
node_selectors = Table(
    "node_selectors",
    metadata,
    Column("spiffe_id", _SPIFFE_ID, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("type", _NAME, nullable=False),
    Column("value", _TEXT, nullable=False),
    Index("ix_node_selectors_type_value", "type", "value", "spiffe_id").ddl_if(dialect="sqlite"),
    Index("ix_node_selectors_type_prefix", "type", _PREFIX_OF_VALUE).ddl_if(dialect="postgresql"),
)

# What a node attestor remembers of a node, opaque here: written with an admission, gone with the node.
node_records = Table(
    "node_records",
    metadata,
    Column("spiffe_id", _SPIFFE_ID, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("token", _NAME, primary_key=True),
    Column("expires_at", BigInteger, nullable=False),
    Index("ix_join_tokens_expires_at", "expires_at"),
)

# One row for each server that shares the database.
ca_journals = Table(
    "ca_journals",
    metadata,
    Column("server", _NAME, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
