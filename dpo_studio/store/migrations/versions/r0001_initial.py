"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_rounds()
    _create_labeling()
    _create_votes()
    _create_versions()
    _create_studio()


def _create_rounds() -> None:
    op.create_table(
        "round",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("active_slot", sa.Integer(), nullable=True),
        sa.Column("trigger", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("settings_json", sa.String(), nullable=False),
        sa.Column("dataset_sha256", sa.String(), nullable=False),
        sa.Column("num_pairs", sa.Integer(), nullable=False),
        sa.Column("num_train", sa.Integer(), nullable=False),
        sa.Column("num_heldout", sa.Integer(), nullable=False),
        sa.Column("new_pairs", sa.Integer(), nullable=False),
        sa.Column("metrics_json", sa.String(), nullable=False),
        sa.Column("verdict_json", sa.String(), nullable=True),
        sa.Column("version", sa.String(), nullable=True),
        sa.Column("worker_pid", sa.Integer(), nullable=True),
        sa.Column("worker_started", sa.Float(), nullable=True),
        sa.Column("boot_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("started_at", sa.String(32), nullable=True),
        sa.Column("finished_at", sa.String(32), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_round"),
        sa.UniqueConstraint("active_slot", name="uq_round_active_slot"),
    )
    op.create_index("ix_round_status", "round", ["status"])
    op.create_table(
        "round_step",
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("progress_json", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["round"], ["round.number"], name="fk_round_step_round"),
        sa.PrimaryKeyConstraint("round", "position", name="pk_round_step"),
    )


def _create_labeling() -> None:
    op.create_table(
        "prompt",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("messages_json", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("num_comparisons", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prompt"),
        sa.UniqueConstraint("position", name="uq_prompt_position"),
    )
    op.create_index("ix_prompt_num_comparisons_position", "prompt", ["num_comparisons", "position"])
    op.create_table(
        "response",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("token_ids_json", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("seed", sa.String(), nullable=False),
        sa.Column("sampling_json", sa.String(), nullable=False),
        sa.Column("finish_reason", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_response"),
    )
    op.create_table(
        "comparison",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("prompt_id", sa.String(), nullable=True),
        sa.Column("messages_json", sa.String(), nullable=False),
        sa.Column("labeler", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("a_response_id", sa.String(), nullable=False),
        sa.Column("b_response_id", sa.String(), nullable=False),
        sa.Column("version_a", sa.String(), nullable=False),
        sa.Column("version_b", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("shown_at", sa.String(32), nullable=True),
        sa.ForeignKeyConstraint(["a_response_id"], ["response.id"], name="fk_comparison_a_response_id"),
        sa.ForeignKeyConstraint(["b_response_id"], ["response.id"], name="fk_comparison_b_response_id"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name="fk_comparison_prompt_id"),
        sa.PrimaryKeyConstraint("id", name="pk_comparison"),
    )
    op.create_index("ix_comparison_labeler_status", "comparison", ["labeler", "status", "created_at"])
    op.create_index("ix_comparison_prompt_id", "comparison", ["prompt_id"])
    op.create_index("ix_comparison_status", "comparison", ["status"])


def _create_votes() -> None:
    op.create_table(
        "vote",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("comparison_id", sa.String(), nullable=False),
        sa.Column("labeler", sa.String(), nullable=False),
        sa.Column("choice", sa.String(), nullable=False),
        sa.Column("strength", sa.Integer(), nullable=True),
        sa.Column("reasons_json", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=True),
        sa.Column("edited", sa.String(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.Column("withdrawn_at", sa.String(32), nullable=True),
        sa.Column("excluded_at", sa.String(32), nullable=True),
        sa.Column("used_by", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparison.id"], name="fk_vote_comparison_id"),
        sa.ForeignKeyConstraint(["used_by"], ["round.number"], name="fk_vote_used_by"),
        sa.PrimaryKeyConstraint("id", name="pk_vote"),
        sa.UniqueConstraint(
            "comparison_id", "labeler", "revision", name="uq_vote_comparison_id_labeler_revision"
        ),
    )
    op.create_index("ix_vote_counted", "vote", ["labeler", "created_at", "is_current", "withdrawn_at"])
    op.create_index(
        "ix_vote_unused",
        "vote",
        ["choice", "created_at"],
        sqlite_where=sa.text("is_current = 1 AND used_by IS NULL"),
        postgresql_where=sa.text("is_current AND used_by IS NULL"),
    )
    op.create_index(
        "uq_vote_current",
        "vote",
        ["comparison_id", "labeler"],
        unique=True,
        sqlite_where=sa.text("is_current = 1"),
        postgresql_where=sa.text("is_current"),
    )
    op.create_table(
        "round_vote",
        sa.Column("vote_id", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["round"], ["round.number"], name="fk_round_vote_round"),
        sa.ForeignKeyConstraint(["vote_id"], ["vote.id"], name="fk_round_vote_vote_id"),
        sa.PrimaryKeyConstraint("vote_id", "round", name="pk_round_vote"),
    )
    op.create_index("ix_round_vote_round", "round_vote", ["round"])
    op.create_table(
        "imported_pair",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("messages_json", sa.String(), nullable=False),
        sa.Column("responses_json", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("excluded_at", sa.String(32), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_imported_pair"),
    )
    op.create_index("ix_imported_pair_created_at", "imported_pair", ["created_at"])


def _create_versions() -> None:
    op.create_table(
        "version",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(["round"], ["round.number"], name="fk_version_round"),
        sa.PrimaryKeyConstraint("name", name="pk_version"),
    )
    op.create_table(
        "live_pointer",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("serial", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.String(32), nullable=False),
        sa.Column("changed_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_live_pointer"),
    )
    op.create_table(
        "live_change",
        sa.Column("serial", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("changed_at", sa.String(32), nullable=False),
        sa.Column("changed_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name="pk_live_change"),
    )


def _create_studio() -> None:
    op.create_table(
        "lease",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_lease"),
    )
    op.create_table(
        "audit_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("details_json", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_event"),
    )
    op.create_index("ix_audit_event_at", "audit_event", ["at"])
    op.create_table(
        "studio_setting",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value_json", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_studio_setting"),
    )
