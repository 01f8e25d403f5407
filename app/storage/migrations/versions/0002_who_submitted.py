"""Jobs know which key submitted them, so that one key can't fill the queue."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("submitted_by", sa.String(40)))
