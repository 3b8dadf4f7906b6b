"""Comparisons: always complete, made for one labeler, shown one at a time.

ready → shown → judged; back to shown when a vote is withdrawn, back to ready when another is shown. Only
never-shown ones are dropped, so a comparison that somebody has seen can always be voted on.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from dpo_studio.domain.chat import Completion, Message, SamplingParams
from dpo_studio.domain.codec import to_json
from dpo_studio.domain.preference import SampledText
from dpo_studio.errors import NotFound
from dpo_studio.files import canonical_json
from dpo_studio.store.database import new_id
from dpo_studio.store.tables import Comparison, Prompt, Response
from dpo_studio.store.texts import ids_from_text, messages_from_text, messages_to_text

ComparisonStatus = Literal["ready", "shown", "judged", "dropped"]


@dataclass(frozen=True, slots=True)
class NewResponse:
    """A finished completion and how it was drawn."""

    completion: Completion
    sampling: SamplingParams

    @classmethod
    def of(cls, completion: Completion, sampling: SamplingParams) -> "NewResponse":
        return cls(completion, sampling)


@dataclass(frozen=True, slots=True)
class NewComparison:
    """What `add_comparison` stores. Sides are drawn already."""

    id: str
    messages: tuple[Message, ...]
    labeler: str | None
    source: str
    a: NewResponse
    b: NewResponse
    prompt_id: str | None = None
    status: Literal["ready", "shown"] = "ready"


@dataclass(frozen=True, slots=True)
class ComparisonRecord:
    """A stored comparison with both texts."""

    id: str
    messages: tuple[Message, ...]
    a: SampledText
    b: SampledText
    status: ComparisonStatus
    labeler: str | None
    version_a: str
    version_b: str
    source: str
    created_at: datetime
    shown_at: datetime | None


def add_comparison(new: NewComparison, *, now: datetime, session: Session) -> None:
    """Store a complete comparison with its two responses."""
    a = _add_response(new.a, now, session)
    b = _add_response(new.b, now, session)
    # Rows are inserted in dependency order only when relationships say so; here a flush does.
    session.flush()
    session.add(
        Comparison(
            id=new.id,
            prompt_id=new.prompt_id,
            messages_json=messages_to_text(new.messages),
            labeler=new.labeler,
            status=new.status,
            source=new.source,
            a_response_id=a,
            b_response_id=b,
            version_a=new.a.completion.version,
            version_b=new.b.completion.version,
            created_at=now,
            shown_at=now if new.status == "shown" else None,
        )
    )
    if new.prompt_id is not None:
        _count_use(new.prompt_id, 1, session)
    session.flush()


def get_comparison(comparison_id: str, *, session: Session) -> ComparisonRecord | None:
    return _first(sa.and_(col(Comparison.id) == comparison_id), session)


def open_for(labeler: str, *, session: Session) -> ComparisonRecord | None:
    """The comparison that `labeler` is looking at."""
    return _first(_of(labeler, "shown"), session, newest=True)


def ready_for(labeler: str, *, session: Session) -> ComparisonRecord | None:
    """The comparison that waits longest for `labeler`."""
    return _first(_of(labeler, "ready"), session)


def count_ready(labeler: str, *, session: Session) -> int:
    return session.exec(select(sa.func.count()).select_from(Comparison).where(_of(labeler, "ready"))).one()


def mark_shown(comparison_id: str, *, now: datetime, session: Session) -> ComparisonRecord:
    """Show a comparison; whatever else its labeler was looking at goes back to ready."""
    row = session.get(Comparison, comparison_id)
    if row is None or row.status == "dropped":
        raise NotFound("This comparison does not exist any more; ask for the next one")
    if row.labeler is not None:
        put_back_shown(row.labeler, session=session)
    row.status = "shown"
    row.shown_at = now
    session.flush()
    record = get_comparison(comparison_id, session=session)
    assert record is not None
    return record


def take_ready(labeler: str, *, now: datetime, session: Session) -> ComparisonRecord | None:
    """Show the comparison that waits longest for `labeler`; None when none is ready."""
    waiting = ready_for(labeler, session=session)
    return None if waiting is None else mark_shown(waiting.id, now=now, session=session)


def put_back_shown(labeler: str, *, session: Session) -> int:
    """Return what `labeler` looks at to the queue; a vote on it is still accepted. Returns how many."""
    result = session.exec(sa.update(Comparison).where(_of(labeler, "shown")).values(status="ready"))
    return result.rowcount


def drop_superseded(live: str, *, session: Session) -> int:
    """Drop never-shown comparisons that hold an answer of another version than `live`. Returns how many."""
    stale = sa.and_(
        col(Comparison.status) == "ready",
        col(Comparison.shown_at).is_(None),
        sa.or_(col(Comparison.version_a) != live, col(Comparison.version_b) != live),
    )
    used = session.exec(select(Comparison.prompt_id).where(stale)).all()
    session.exec(sa.update(Comparison).where(stale).values(status="dropped"))
    for prompt_id in used:
        if prompt_id is not None:
            _count_use(prompt_id, -1, session)
    return len(used)


def _add_response(new: NewResponse, now: datetime, session: Session) -> str:
    response_id = new_id()
    completion = new.completion
    session.add(
        Response(
            id=response_id,
            text=completion.text,
            token_ids_json=canonical_json(completion.token_ids),
            version=completion.version,
            seed=str(completion.seed),
            sampling_json=canonical_json(to_json(new.sampling)),
            finish_reason=completion.finish_reason,
            created_at=now,
        )
    )
    return response_id


def _count_use(prompt_id: str, change: int, session: Session) -> None:
    used = col(Prompt.num_comparisons) + change
    session.exec(sa.update(Prompt).where(col(Prompt.id) == prompt_id).values(num_comparisons=used))


def _of(labeler: str, status: ComparisonStatus) -> sa.ColumnElement[bool]:
    return sa.and_(col(Comparison.labeler) == labeler, col(Comparison.status) == status)


def _first(
    where: sa.ColumnElement[bool], session: Session, *, newest: bool = False
) -> ComparisonRecord | None:
    a, b = aliased(Response), aliased(Response)
    order = col(Comparison.shown_at).desc() if newest else col(Comparison.created_at)
    found = session.exec(
        select(Comparison, a, b)
        .join(a, col(a.id) == col(Comparison.a_response_id))
        .join(b, col(b.id) == col(Comparison.b_response_id))
        .where(where)
        .order_by(order)
        .limit(1)
    ).first()
    return None if found is None else _record(*found)


def _record(row: Comparison, a: Response, b: Response) -> ComparisonRecord:
    return ComparisonRecord(
        id=row.id,
        messages=messages_from_text(row.messages_json),
        a=_sampled(a),
        b=_sampled(b),
        status=cast(ComparisonStatus, row.status),
        labeler=row.labeler,
        version_a=row.version_a,
        version_b=row.version_b,
        source=row.source,
        created_at=row.created_at,
        shown_at=row.shown_at,
    )


def _sampled(row: Response) -> SampledText:
    return SampledText(row.text, ids_from_text(row.token_ids_json), row.version)
