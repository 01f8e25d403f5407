"""Jobs know what they were foretold to take of memory, and why they wait."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("memory", sa.JSON))
    op.add_column("jobs", sa.Column("wait_reason", sa.String(400)))
