"""The tables: one class per noun, nothing but columns and constraints.

What must never happen twice is a UNIQUE constraint here, not an `if` elsewhere: one current vote per
(comparison, labeler), one active round, one version per name. Times are UTC-aware, ids are 32 hexadecimal
characters, structured values are canonical JSON text. Rows never leave the store; its functions return
frozen records.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlmodel import Field, SQLModel

NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}
"""Constraints need names so that a later migration can speak of them."""


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An aware time as ISO 8601 text of fixed width, so that text order is time order."""

    impl = sa.String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None:
            return None
        assert value.tzinfo is not None, f"times must be aware, found {value!r}"
        return value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else datetime.fromisoformat(value)


class Record(SQLModel):
    """Base of all tables; their metadata is the studio's own."""

    metadata = sa.MetaData(naming_convention=NAMING)


class Prompt(Record, table=True):
    """A conversation waiting for answers. `id` is a hash of its messages, so it exists once."""

    __tablename__ = "prompt"
    __table_args__ = (sa.Index("ix_prompt_num_comparisons_position", "num_comparisons", "position"),)

    id: str = Field(primary_key=True, max_length=32)
    messages_json: str
    source: str
    position: int = Field(unique=True)
    """Order of arrival."""
    num_comparisons: int = 0
    """Comparisons made from it and not dropped; the least used prompt comes next."""
    created_at: datetime = Field(sa_type=UtcDateTime)


class Response(Record, table=True):
    """One answer exactly as sampled."""

    __tablename__ = "response"

    id: str = Field(primary_key=True, max_length=32)
    text: str
    token_ids_json: str
    version: str
    seed: str
    """Decimal text: engines may draw seeds beyond SQLite's signed 64 bits."""
    sampling_json: str
    finish_reason: str
    created_at: datetime = Field(sa_type=UtcDateTime)


class Comparison(Record, table=True):
    """A prompt with two complete responses; which stands left was drawn on the server."""

    __tablename__ = "comparison"
    __table_args__ = (
        sa.Index("ix_comparison_labeler_status", "labeler", "status", "created_at"),
        sa.Index("ix_comparison_status", "status"),
    )

    id: str = Field(primary_key=True, max_length=32)
    prompt_id: str | None = Field(default=None, foreign_key="prompt.id", index=True)
    messages_json: str
    labeler: str | None = None
    """Whom it was made for; None: anyone."""
    status: str
    """ready → shown → judged, or ready → dropped. Dropped ones were never shown."""
    source: str
    a_response_id: str = Field(foreign_key="response.id")
    b_response_id: str = Field(foreign_key="response.id")
    version_a: str
    version_b: str
    created_at: datetime = Field(sa_type=UtcDateTime)
    shown_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Vote(Record, table=True):
    """One revision of one labeler's judgement. Only the marks below `created_at` ever change."""

    __tablename__ = "vote"
    __table_args__ = (
        sa.UniqueConstraint("comparison_id", "labeler", "revision"),
        sa.Index(
            "uq_vote_current",
            "comparison_id",
            "labeler",
            unique=True,
            sqlite_where=sa.text("is_current = 1"),
            postgresql_where=sa.text("is_current"),
        ),
        # Covers the counts of the label page: 100k votes are counted without reading a row.
        sa.Index("ix_vote_counted", "labeler", "created_at", "is_current", "withdrawn_at"),
        # SQLite uses a partial index only when the query repeats its condition word by word.
        sa.Index(
            "ix_vote_unused",
            "choice",
            "created_at",
            sqlite_where=sa.text("is_current = 1 AND used_by IS NULL"),
            postgresql_where=sa.text("is_current AND used_by IS NULL"),
        ),
    )

    id: str = Field(primary_key=True, max_length=32)
    comparison_id: str = Field(foreign_key="comparison.id")
    labeler: str
    choice: str
    strength: int | None = None
    reasons_json: str
    note: str | None = None
    edited: str | None = None
    revision: int
    """1, 2, … in the order in which the labeler changed their mind."""
    created_at: datetime = Field(sa_type=UtcDateTime)
    is_current: bool
    withdrawn_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    excluded_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    used_by: int | None = Field(default=None, foreign_key="round.number")
    """The first round that learned from it or judged it useless; derived from `round_vote`."""


class ImportedPair(Record, table=True):
    """Responses ranked best to worst by someone else. `id` is a hash of the content, so it exists once."""

    __tablename__ = "imported_pair"

    id: str = Field(primary_key=True, max_length=32)
    messages_json: str
    responses_json: str
    source: str
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)
    excluded_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Round(Record, table=True):
    """One training round."""

    __tablename__ = "round"
    __table_args__ = (sa.Index("ix_round_status", "status"),)

    number: int = Field(primary_key=True)
    status: str
    active_slot: int | None = Field(default=None, unique=True)
    """1 while a process works on the round, else NULL: the database allows one active round."""
    trigger: str
    reason: str = ""
    settings_json: str
    dataset_sha256: str = ""
    num_pairs: int = 0
    num_train: int = 0
    num_heldout: int = 0
    new_pairs: int = 0
    metrics_json: str = "{}"
    verdict_json: str | None = None
    training_json: str | None = None
    """How it trained; NULL until its worker reported, and in rounds of before schema 0002."""
    version: str | None = None
    worker_pid: int | None = None
    worker_started: float | None = None
    boot_id: str | None = None
    created_at: datetime = Field(sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class RoundVote(Record, table=True):
    """A vote that a round's snapshot used."""

    __tablename__ = "round_vote"

    vote_id: str = Field(primary_key=True, foreign_key="vote.id")
    round: int = Field(primary_key=True, foreign_key="round.number", index=True)


class RoundStep(Record, table=True):
    """One line of a round's progress."""

    __tablename__ = "round_step"

    round: int = Field(primary_key=True, foreign_key="round.number")
    position: int = Field(primary_key=True)
    """Order of arrival, from 0: steps of different phases may carry the same number."""
    progress_json: str


class Version(Record, table=True):
    """A published version. Never changed."""

    __tablename__ = "version"

    name: str = Field(primary_key=True)
    round: int = Field(foreign_key="round.number")
    created_at: datetime = Field(sa_type=UtcDateTime)


class LivePointer(Record, table=True):
    """The single row that says which version is live; absent until something was promoted."""

    __tablename__ = "live_pointer"

    id: int = Field(primary_key=True)
    version: str
    serial: int
    changed_at: datetime = Field(sa_type=UtcDateTime)
    changed_by: str


class LiveChange(Record, table=True):
    """Every move of the live pointer, in order."""

    __tablename__ = "live_change"

    serial: int = Field(primary_key=True)
    version: str
    changed_at: datetime = Field(sa_type=UtcDateTime)
    changed_by: str


class Lease(Record, table=True):
    """Who may do a thing until when. `token` grows with every holder and never goes back."""

    __tablename__ = "lease"

    name: str = Field(primary_key=True)
    owner: str
    token: int
    expires_at: datetime = Field(sa_type=UtcDateTime)


class AuditEvent(Record, table=True):
    """Who did what. Only ever appended."""

    __tablename__ = "audit_event"

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    actor: str
    action: str
    subject: str
    details_json: str


class StudioSetting(Record, table=True):
    """A setting that people change while the studio runs."""

    __tablename__ = "studio_setting"

    key: str = Field(primary_key=True)
    value_json: str
