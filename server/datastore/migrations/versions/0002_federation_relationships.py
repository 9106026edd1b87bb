"""Where the bundles of other trust domains are fetched from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _bytewise(kind: sa.String) -> sa.String:
    return kind.with_variant(type(kind)(kind.length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "federation_relationships",
        sa.Column("seq", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("trust_domain", _bytewise(sa.String(length=255)), nullable=False),
        sa.Column("bundle_endpoint_url", _bytewise(sa.String(length=2048)), nullable=False),
        sa.Column("bundle_endpoint_profile", _bytewise(sa.String(length=32)), nullable=False),
        sa.Column("endpoint_spiffe_id", _bytewise(sa.String(length=2048)), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_federation_relationships"),
        sa.UniqueConstraint("trust_domain", name="uq_federation_relationships_trust_domain"),
        sqlite_autoincrement=True,
    )
