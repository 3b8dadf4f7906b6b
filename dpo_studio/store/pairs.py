"""From stored votes to judged comparisons and preference pairs.

Only current votes count: not replaced, not withdrawn, not excluded. The rule that turns votes into pairs
is `domain.preference.pairs_of`; nothing derived is stored. Votes are read in one moment; messages and
responses never change, so they may be read later, in pages, without another truth creeping in.
"""

import json
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import (
    Choice,
    JudgedComparison,
    PreferencePair,
    SampledText,
    VoteRecord,
    pairs_of,
)
from dpo_studio.store.rounds import USES_VOTES
from dpo_studio.store.tables import Comparison, ImportedPair, Response, Round, Vote
from dpo_studio.store.texts import content_id, ids_from_text, messages_from_text, messages_to_text

PAGE = 500
"""Comparisons read at once; below SQLite's limit of 999 bound values in old builds."""
_WHITESPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""What `str.strip` strips; SQLite's own trim knows only the space."""
VotesByComparison = dict[str, tuple[VoteRecord, ...]]


@dataclass(frozen=True, slots=True)
class NewImport:
    """Responses ranked best to worst, from a file."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    pair_id: str = ""
    """What the row calls itself; an export of a studio names its pairs."""


class ReadsDatabase(Protocol):
    """What paging needs of a Database."""

    def read(self) -> AbstractContextManager[Session]: ...


def iterate_pairs(
    database: ReadsDatabase,
    *,
    until: datetime | None = None,
    about: Set[str] | None = None,
    whole_rankings: bool = False,
) -> Iterator[PreferencePair]:
    """The pairs of all judged comparisons, by comparison id, then those of all imports, by import id.

    An import of more than two responses gives all of its pairs, or with `whole_rankings` itself.

    Read in many short transactions, so that nobody's vote waits for a slow consumer. The votes are those
    of the moment of the first step, given at or before `until`. `about` leaves out other conversations
    than these (as `messages_to_text` writes them).
    """
    with database.read() as session:
        vote_rows = _vote_rows(_counting(until), session)
        imports = sorted(session.exec(select(ImportedPair.id).where(col(ImportedPair.excluded_at).is_(None))))
    votes = _grouped(vote_rows)
    for ids in paged(sorted(votes)):
        with database.read() as session:
            page = _judged(ids, votes, session, about=about)
        for judged in page:
            yield from pairs_of(judged)
    for ids in paged(imports):
        with database.read() as session:
            rows = session.exec(select(ImportedPair).where(col(ImportedPair.id).in_(ids))).all()
        for row in sorted(rows, key=lambda row: row.id):
            if about is None or row.messages_json in about:
                yield from _pairs_of_import(row, whole_rankings)


def add_imports(imports: Sequence[NewImport], *, source: str, now: datetime, session: Session) -> int:
    """Store rankings; known ones are skipped. Returns how many are new."""
    rows = []
    for item in imports:
        assert len(item.responses) >= 2, "a ranking needs two responses"
        messages = messages_to_text(item.messages)
        rows.append(
            {
                "id": content_id([messages, item.responses]),
                "messages_json": messages,
                "responses_json": json.dumps(item.responses, ensure_ascii=False),
                "source": source,
                "created_at": now,
            }
        )
    before = _count_imports(session)
    if rows:
        session.connection().execute(sa.insert(ImportedPair).prefix_with("OR IGNORE"), rows)
    return _count_imports(session) - before


def count_new(*, until: datetime | None = None, session: Session) -> int:
    """Trainable pairs that no earlier round has learned from or judged useless.

    A pair is new when one of its votes was used by no round that was promoted, rejected or waits, or when
    it was imported after the last such round was created. `until` is for votes: imports have no undo.
    """
    fresh = [*_counting(until), *_may_train(), col(Vote.used_by).is_(None)]
    plain = _is_plain()
    contested = [*fresh, sa.not_(plain)]
    return (
        _count_plain([*fresh, plain], session)
        + _count_contested(contested, until, session)
        + _count_new_imports(session)
    )


def _counting(until: datetime | None) -> list[sa.ColumnElement[bool]]:
    where: list[sa.ColumnElement[bool]] = [
        sa.and_(col(Vote.is_current)),
        col(Vote.withdrawn_at).is_(None),
        col(Vote.excluded_at).is_(None),
    ]
    if until is not None:
        where.append(col(Vote.created_at) <= until)
    return where


def _vote_rows(
    where: Sequence[sa.ColumnElement[bool]], session: Session
) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    columns: tuple[Any, ...] = (Vote.comparison_id, Vote.id, Vote.labeler, Vote.choice, Vote.edited)
    query = sa.select(*columns).where(*where).order_by(col(Vote.created_at), col(Vote.id))
    return session.connection().execute(query).all()


def _grouped(rows: Sequence[sa.Row[*tuple[Any, ...]]]) -> VotesByComparison:
    grouped: dict[str, list[VoteRecord]] = {}
    for comparison_id, vote_id, labeler, choice, edited in rows:
        grouped.setdefault(comparison_id, []).append(VoteRecord(vote_id, labeler, Choice(choice), edited))
    return {comparison_id: tuple(votes) for comparison_id, votes in grouped.items()}


def _judged(
    ids: Sequence[str],
    votes: VotesByComparison,
    session: Session,
    *,
    with_context: bool = True,
    about: Set[str] | None = None,
) -> list[JudgedComparison]:
    a, b = aliased(Response), aliased(Response)
    nothing = sa.literal("[]")
    columns: tuple[Any, ...] = (
        *(Comparison.id, Comparison.messages_json if with_context else nothing),
        *(a.text, a.token_ids_json if with_context else nothing, a.version),
        *(b.text, b.token_ids_json if with_context else nothing, b.version),
    )
    rows = session.connection().execute(
        sa.select(*columns)
        .join(a, col(a.id) == col(Comparison.a_response_id))
        .join(b, col(b.id) == col(Comparison.b_response_id))
        .where(col(Comparison.id).in_(ids))
        .order_by(col(Comparison.id))
    )
    return [
        JudgedComparison(
            comparison_id=row[0],
            messages=messages_from_text(row[1]),
            a=SampledText(row[2], ids_from_text(row[3]), row[4]),
            b=SampledText(row[5], ids_from_text(row[6]), row[7]),
            votes=votes[row[0]],
        )
        for row in rows
        if about is None or row[1] in about
    ]


def _pairs_of_import(row: ImportedPair, whole_rankings: bool) -> Iterator[PreferencePair]:
    responses = [SampledText(text) for text in json.loads(row.responses_json)]
    places = range(len(responses))
    # Saying nothing cannot be trained on, and must not take the whole ranking with it: its pairs are given
    # as without rankings, and whoever encodes them leaves them out and counts them.
    ranked = [place for place in places if responses[place].text.strip()] if whole_rankings else []
    groups: list[tuple[int, ...]] = list(combinations(places, 2))
    if len(ranked) > 2:
        groups = [tuple(ranked), *(group for group in groups if not set(group) <= set(ranked))]
    for group in groups:
        best, *between, worst = group
        yield PreferencePair(
            pair_id=f"{row.id}:{'all' if between else f'{best}-{worst}'}",
            messages=messages_from_text(row.messages_json),
            chosen=responses[best],
            rejected=responses[worst],
            vote_ids=(),
            labelers=(),
            between=tuple(responses[place] for place in between),
        )


def _may_train() -> tuple[sa.ColumnElement[bool], ...]:
    """Ties and skips never train; "both are bad" says nothing trainable without an edit."""
    other = aliased(Vote)
    same = col(other.comparison_id) == col(Vote.comparison_id)
    has_edit = sa.select(sa.literal(1)).where(same, col(other.edited).is_not(None)).exists()
    speaks = col(Vote.choice).in_([Choice.A.value, Choice.B.value, Choice.BOTH_BAD.value])
    return speaks, sa.or_(col(Vote.choice) != Choice.BOTH_BAD.value, has_edit)


def _is_plain() -> sa.ColumnElement[bool]:
    """The only current vote on its comparison, for a side, without an edit: nearly all votes are."""
    other = aliased(Vote)
    same = col(other.comparison_id) == col(Vote.comparison_id)
    others = sa.select(sa.literal(1)).where(
        same, col(other.id) != col(Vote.id), sa.and_(col(other.is_current))
    )
    sides = col(Vote.choice).in_([Choice.A.value, Choice.B.value])
    return sa.and_(sides, col(Vote.edited).is_(None), ~others.exists())


def _count_plain(where: Sequence[sa.ColumnElement[bool]], session: Session) -> int:
    """`pairs_of` for plain votes, said in SQL: it is asked after every vote and must not read every text."""
    a, b = aliased(Response), aliased(Response)
    left, right = (sa.func.trim(col(side.text), _WHITESPACE) for side in (a, b))
    won = sa.case((col(Vote.choice) == Choice.A.value, left), else_=right)
    query = (
        select(sa.func.count())
        .select_from(Vote)
        .join(Comparison, col(Comparison.id) == col(Vote.comparison_id))
        .join(a, col(a.id) == col(Comparison.a_response_id))
        .join(b, col(b.id) == col(Comparison.b_response_id))
        .where(*where, left != right, won != "")
    )
    return session.exec(query).one()


def _count_contested(
    where: Sequence[sa.ColumnElement[bool]], until: datetime | None, session: Session
) -> int:
    """The same for comparisons with several votes or an edit, by the rule itself."""
    fresh = dict(session.exec(select(Vote.id, Vote.comparison_id).where(*where)).all())
    new = 0
    for ids in paged(sorted(set(fresh.values()))):
        touched = [*_counting(until), col(Vote.comparison_id).in_(ids)]
        votes = _grouped(_vote_rows(touched, session))
        for judged in _judged(ids, votes, session, with_context=False):
            new += sum(any(vote in fresh for vote in pair.vote_ids) for pair in pairs_of(judged))
    return new


def _count_imports(session: Session) -> int:
    return session.exec(select(sa.func.count()).select_from(ImportedPair)).one()


def _count_new_imports(session: Session) -> int:
    ended = col(Round.status).in_([status.value for status in USES_VOTES])
    last = session.exec(select(sa.func.max(Round.created_at)).where(ended)).one()
    where: list[sa.ColumnElement[bool]] = [col(ImportedPair.excluded_at).is_(None)]
    if last is not None:
        where.append(col(ImportedPair.created_at) > last)
    size = sa.func.json_array_length(col(ImportedPair.responses_json))
    pairs = sa.func.coalesce(sa.func.sum(size * (size - 1) / 2), 0)
    return int(session.exec(select(pairs).where(*where)).one())


def paged(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Slices of at most PAGE."""
    for start in range(0, len(ids), PAGE):
        yield ids[start : start + PAGE]
