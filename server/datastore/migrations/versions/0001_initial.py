"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# What of a value fits into an index of PostgreSQL.
_PREFIX_OF_VALUE = sa.text("substr(value, 1, 256)")


def _bytewise(kind: sa.String) -> sa.String:
    return kind.with_variant(type(kind)(kind.length, collation="C"), "postgresql")


def upgrade() -> None:
    on_sqlite = op.get_context().dialect.name == "sqlite"
    op.create_table(
        "bundles",
        sa.Column("trust_domain", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("trust_domain", name="pk_bundles"),
    )
    op.create_table(
        "ca_journals",
        sa.Column("server", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("server", name="pk_ca_journals"),
    )
    op.create_table(
        "entries",
        sa.Column("seq", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("spiffe_id", _bytewise(sa.String(length=2048)), nullable=False),
        sa.Column("parent_id", _bytewise(sa.String(length=2048)), nullable=False),
        sa.Column("x509_svid_ttl", sa.Integer(), nullable=False),
        sa.Column("jwt_svid_ttl", sa.Integer(), nullable=False),
        sa.Column("hint", _bytewise(sa.String(length=1024)), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("downstream", sa.Boolean(), nullable=False),
        sa.Column("store_svid", sa.Boolean(), nullable=False),
        sa.Column("jwt_svid_include_jti", sa.Boolean(), nullable=False),
        sa.Column("disable_x509_svid_prefetch", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revision_number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_entries"),
        sa.UniqueConstraint("id", name="uq_entries_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_entries_expires_at", "entries", ["expires_at"])
    op.create_index("ix_entries_hint", "entries", ["hint"])
    if on_sqlite:
        op.create_index("ix_entries_parent_id_spiffe_id", "entries", ["parent_id", "spiffe_id"])
    else:
        op.create_index("ix_entries_parent_id", "entries", ["parent_id"])
    op.create_index("ix_entries_spiffe_id", "entries", ["spiffe_id"])
    op.create_table(
        "join_tokens",
        sa.Column("token", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("token", name="pk_join_tokens"),
    )
    op.create_index("ix_join_tokens_expires_at", "join_tokens", ["expires_at"])
    op.create_table(
        "node_selectors",
        sa.Column("spiffe_id", _bytewise(sa.String(length=2048)), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("value", _bytewise(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("spiffe_id", "position", name="pk_node_selectors"),
    )
    if on_sqlite:
        op.create_index("ix_node_selectors_type_value", "node_selectors", ["type", "value", "spiffe_id"])
    else:
        op.create_index("ix_node_selectors_type_prefix", "node_selectors", ["type", _PREFIX_OF_VALUE])
    op.create_table(
        "nodes",
        sa.Column("seq", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("spiffe_id", _bytewise(sa.String(length=2048)), nullable=False),
        sa.Column("attestation_type", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("serial_number", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("new_serial_number", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("new_expires_at", sa.BigInteger(), nullable=False),
        sa.Column("can_reattest", sa.Boolean(), nullable=False),
        sa.Column("agent_version", _bytewise(sa.String(length=255)), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_nodes"),
        sa.UniqueConstraint("spiffe_id", name="uq_nodes_spiffe_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_nodes_expires_at", "nodes", ["expires_at"])
    op.create_table(
        "entry_dns_names",
        sa.Column("entry", _SEQUENCE, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", _bytewise(sa.String(length=255)), nullable=False),
        sa.ForeignKeyConstraint(["entry"], ["entries.seq"], name="fk_entry_dns_names_entry", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("entry", "position", name="pk_entry_dns_names"),
    )
    op.create_table(
        "entry_federations",
        sa.Column("entry", _SEQUENCE, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("trust_domain", _bytewise(sa.String(length=255)), nullable=False),
        sa.ForeignKeyConstraint(["entry"], ["entries.seq"], name="fk_entry_federations_entry", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["trust_domain"], ["bundles.trust_domain"], name="fk_entry_federations_trust_domain"),
        sa.PrimaryKeyConstraint("entry", "position", name="pk_entry_federations"),
    )
    op.create_index("ix_entry_federations_trust_domain", "entry_federations", ["trust_domain", "entry"])
    op.create_table(
        "entry_selectors",
        sa.Column("entry", _SEQUENCE, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("value", _bytewise(sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(["entry"], ["entries.seq"], name="fk_entry_selectors_entry", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("entry", "position", name="pk_entry_selectors"),
    )
    if on_sqlite:
        op.create_index("ix_entry_selectors_type_value", "entry_selectors", ["type", "value", "entry"])
    else:
        op.create_index("ix_entry_selectors_type_prefix", "entry_selectors", ["type", _PREFIX_OF_VALUE, "entry"])
