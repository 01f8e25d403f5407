"""Jobs know the request that submitted them, which their log lines name."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.String(128)))
