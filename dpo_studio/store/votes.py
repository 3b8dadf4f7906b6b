"""Votes: given once, revised by a new revision, withdrawn or excluded by a mark, never deleted.

The same vote sent again is the same vote. UNIQUE constraints in the table decide, the code here only
finds the right sentence.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlmodel import Session, col, select

from dpo_studio.domain.chat import MAX_PROMPT_CHARS, clean_text
from dpo_studio.domain.preference import Choice
from dpo_studio.errors import BadInput, Conflict, NotFound
from dpo_studio.files import canonical_json
from dpo_studio.store.comparisons import put_back_shown
from dpo_studio.store.database import new_id
from dpo_studio.store.tables import Comparison, Vote

MAX_STRENGTH = 5
MAX_REASONS = 16
MAX_REASON_CHARS = 64
MAX_NOTE_CHARS = 4_000


@dataclass(frozen=True, slots=True)
class VoteInput:
    """A judgement as a labeler sends it. Raises BadInput when a part does not fit."""

    comparison_id: str
    choice: Choice
    strength: int | None = None
    """1 (slightly) to 5 (far better)."""
    reasons: tuple[str, ...] = ()
    note: str | None = None
    edited: str | None = None
    """A better answer."""

    def __post_init__(self) -> None:
        if self.strength is not None and not 1 <= self.strength <= MAX_STRENGTH:
            raise BadInput(f"strength: expected 1 to {MAX_STRENGTH}, found {self.strength}")
        if len(self.reasons) > MAX_REASONS or any(not 0 < len(r) <= MAX_REASON_CHARS for r in self.reasons):
            raise BadInput(
                f"reasons: expected at most {MAX_REASONS} of 1 to {MAX_REASON_CHARS} characters each"
            )
        _within("note", self.note, MAX_NOTE_CHARS)
        _within("edited", self.edited, MAX_PROMPT_CHARS)


@dataclass(frozen=True, slots=True)
class VoteReceipt:
    """What the labeler gets back once the transaction is durable."""

    vote_id: str
    comparison_id: str
    choice: Choice
    version_a: str
    version_b: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class VoteEntry:
    """One current vote in a labeler's history."""

    vote_id: str
    comparison_id: str
    choice: Choice
    strength: int | None
    reasons_json: str
    note: str | None
    edited: str | None
    revision: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class VoteCounts:
    """Current votes of one labeler since a moment and ever, and of everyone ever. Skips count."""

    today: int
    total: int
    team_total: int


def cast_vote(vote: VoteInput, *, labeler: str, now: datetime, session: Session) -> VoteReceipt:
    """Store a vote on a comparison that was shown to `labeler`.

    The same payload as the current vote changes nothing; another one becomes a new revision and the old
    one is kept. Raises NotFound for a comparison that is someone else's or was never shown.
    """
    comparison = session.get(Comparison, vote.comparison_id)
    current = _current(vote.comparison_id, labeler, session)
    if comparison is None or not _may_judge(comparison, labeler, current):
        raise NotFound("This comparison does not exist or is not yours; ask for the next one")
    payload = _payload(vote)
    if current is not None and current.withdrawn_at is None and _is_same(current, payload):
        return _receipt(current, comparison, is_new=False)
    row = Vote(
        id=new_id(),
        comparison_id=vote.comparison_id,
        labeler=labeler,
        revision=1 if current is None else current.revision + 1,
        created_at=now,
        is_current=True,
        choice=payload.choice,
        strength=payload.strength,
        reasons_json=payload.reasons_json,
        note=payload.note,
        edited=payload.edited,
    )
    if current is not None:
        current.is_current = False
        # Before the insert, or two current revisions would meet in the unique index.
        session.flush()
    session.add(row)
    comparison.status = "judged"
    session.flush()
    return _receipt(row, comparison, is_new=True)


def withdraw_vote(vote_id: str, *, labeler: str, now: datetime, session: Session) -> str:
    """Mark a vote withdrawn and show its comparison again; returns the comparison's id.

    Withdrawing twice is withdrawing once. Raises NotFound for someone else's vote, Conflict for one that
    a later revision has replaced.
    """
    row = session.get(Vote, vote_id)
    if row is None or row.labeler != labeler:
        raise NotFound("This vote does not exist or is not yours")
    if not row.is_current:
        raise Conflict("This vote was replaced by a later one; undo the later one")
    row.withdrawn_at = row.withdrawn_at or now
    session.flush()
    put_back_shown(labeler, session=session)
    comparison = session.get_one(Comparison, row.comparison_id)
    comparison.status = "shown"
    comparison.shown_at = now
    session.flush()
    return row.comparison_id


def latest_vote(labeler: str, *, session: Session) -> VoteEntry | None:
    """The newest vote that `labeler` could undo."""
    entries = history(labeler, limit=1, offset=0, session=session)
    return entries[0] if entries else None


def history(labeler: str, *, limit: int, offset: int, session: Session) -> list[VoteEntry]:
    """Current votes of a labeler, newest first."""
    rows = session.exec(
        select(Vote)
        .where(Vote.labeler == labeler, _counted())
        .order_by(col(Vote.created_at).desc(), col(Vote.id))
        .limit(limit)
        .offset(offset)
    )
    return [_entry(row) for row in rows]


def counts(labeler: str, *, since: datetime, session: Session) -> VoteCounts:
    """How much was judged; `since` is the start of the labeler's day."""
    # Grouped, so that one covering index answers both totals.
    query = select(Vote.labeler, sa.func.count()).where(_counted()).group_by(col(Vote.labeler))
    totals = dict(session.exec(query).all())
    today = select(sa.func.count()).where(_counted(), Vote.labeler == labeler, col(Vote.created_at) >= since)
    return VoteCounts(session.exec(today).one(), totals.get(labeler, 0), sum(totals.values()))


def exclude_labeler(labeler: str, *, now: datetime, session: Session) -> int:
    """Keep all votes given so far out of training; returns how many. `include_labeler` takes it back."""
    where = sa.and_(col(Vote.labeler) == labeler, col(Vote.excluded_at).is_(None))
    return session.exec(sa.update(Vote).where(where).values(excluded_at=now)).rowcount


def include_labeler(labeler: str, *, session: Session) -> int:
    """Undo `exclude_labeler` exactly; returns how many votes count again."""
    where = sa.and_(col(Vote.labeler) == labeler, col(Vote.excluded_at).is_not(None))
    return session.exec(sa.update(Vote).where(where).values(excluded_at=None)).rowcount


def _may_judge(comparison: Comparison, labeler: str, current: Vote | None) -> bool:
    is_theirs = comparison.labeler in (None, labeler) and comparison.shown_at is not None
    return is_theirs or current is not None


def _within(name: str, text: str | None, most: int) -> None:
    if text is not None and len(text) > most:
        raise BadInput(f"{name}: expected at most {most} characters, found {len(text)}; shorten it")


class _Payload(NamedTuple):
    """What makes two votes of one labeler on one comparison the same vote, as it lies in columns."""

    choice: str
    strength: int | None
    reasons_json: str
    note: str | None
    edited: str | None


def _payload(vote: VoteInput) -> _Payload:
    reasons = canonical_json(sorted(set(vote.reasons)))
    return _Payload(vote.choice.value, vote.strength, reasons, _text(vote.note), _text(vote.edited))


def _text(text: str | None) -> str | None:
    """Cleaned text, or None for nothing but blanks."""
    return (clean_text(text).strip() or None) if text else None


def _is_same(row: Vote, payload: _Payload) -> bool:
    return payload == _Payload(row.choice, row.strength, row.reasons_json, row.note, row.edited)


def _current(comparison_id: str, labeler: str, session: Session) -> Vote | None:
    where = (Vote.comparison_id == comparison_id, Vote.labeler == labeler, col(Vote.is_current))
    return session.exec(select(Vote).where(*where)).first()


def _counted() -> sa.ColumnElement[bool]:
    return sa.and_(col(Vote.is_current), col(Vote.withdrawn_at).is_(None))


def _receipt(row: Vote, comparison: Comparison, *, is_new: bool) -> VoteReceipt:
    return VoteReceipt(
        row.id, comparison.id, Choice(row.choice), comparison.version_a, comparison.version_b, is_new
    )


def _entry(row: Vote) -> VoteEntry:
    return VoteEntry(
        vote_id=row.id,
        comparison_id=row.comparison_id,
        choice=Choice(row.choice),
        strength=row.strength,
        reasons_json=row.reasons_json,
        note=row.note,
        edited=row.edited,
        revision=row.revision,
        created_at=row.created_at,
    )
