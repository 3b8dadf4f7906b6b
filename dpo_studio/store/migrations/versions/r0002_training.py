"""A round keeps how it trained. Rounds from before know nothing of it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # In place: no row is copied, and none that refers to it is touched.
    op.add_column("round", sa.Column("training_json", sa.String(), nullable=True))
