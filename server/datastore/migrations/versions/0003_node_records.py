"""What node attestors remember of each node."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _bytewise(kind: sa.String) -> sa.String:
    return kind.with_variant(type(kind)(kind.length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "node_records",
        sa.Column("spiffe_id", _bytewise(sa.String(length=2048)), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("spiffe_id", name="pk_node_records"),
    )
