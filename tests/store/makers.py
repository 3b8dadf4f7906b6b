"""Short ways to put believable rows into a store."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlmodel import Session

from dpo_studio.domain.chat import Completion, Message, SamplingParams
from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import RoundStatus, TrainSettings
from dpo_studio.store import comparisons, rounds, votes
from dpo_studio.store.comparisons import NewComparison, NewResponse
from dpo_studio.store.database import Database, new_id
from dpo_studio.store.rounds import SnapshotFacts
from dpo_studio.store.votes import VoteInput, VoteReceipt

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """So many seconds after the start of every test's story."""
    return START + timedelta(seconds=seconds)


def said(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def response(text: str, version: str = "base") -> NewResponse:
    completion = Completion(text, (7, 8, 2), version, 2**63 + 1, "stop", 4)
    return NewResponse.of(completion, SamplingParams(seed=1))


def add_comparison(
    session: Session,
    *,
    labeler: str | None = "ann",
    status: str = "shown",
    version: str = "base",
    a: str = "good",
    b: str = "bad",
    prompt: str = "Hello?",
    prompt_id: str | None = None,
    now: datetime = START,
) -> str:
    """Store a comparison; returns its id."""
    assert status in ("ready", "shown")
    new = NewComparison(
        id=new_id(),
        messages=said(prompt),
        labeler=labeler,
        source="queue",
        a=response(a, version),
        b=response(b, version),
        prompt_id=prompt_id,
        status="shown" if status == "shown" else "ready",
    )
    comparisons.add_comparison(new, now=now, session=session)
    return new.id


def cast(
    session: Session,
    comparison_id: str,
    choice: Choice = Choice.A,
    *,
    labeler: str = "ann",
    now: datetime = START,
    edited: str | None = None,
) -> VoteReceipt:
    vote = VoteInput(comparison_id, choice, edited=edited)
    return votes.cast_vote(vote, labeler=labeler, now=now, session=session)


def add_judged(session: Session, choice: Choice = Choice.A, *, now: datetime = START) -> VoteReceipt:
    """A comparison of its own with one vote."""
    return cast(session, add_comparison(session, now=now), choice, now=now)


def run_round(
    session: Session, vote_ids: tuple[str, ...], last: RoundStatus, *, now: datetime = START
) -> int:
    """A round over these votes, taken along the shortest way to `last`."""
    number = rounds.create_round("test", TrainSettings(), now=now, session=session).number
    facts = SnapshotFacts("sha256:0", len(vote_ids), len(vote_ids), 0, len(vote_ids), vote_ids)
    rounds.record_snapshot(number, facts, session=session)
    way = {
        RoundStatus.PROMOTED: (RoundStatus.RUNNING, RoundStatus.GATING),
        RoundStatus.REJECTED: (RoundStatus.RUNNING, RoundStatus.GATING),
        RoundStatus.WAITING: (RoundStatus.RUNNING, RoundStatus.GATING),
    }.get(last, (RoundStatus.RUNNING,))
    for status in (*way, last):
        rounds.set_status(number, status, now=now, session=session)
    return number


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work(pipe)` in a forked process; returns (pid, readable end of the pipe).

    Forked and not started afresh: a new interpreter would spend its whole life importing.
    """
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(readable)
            work(writable)
            code = 0
        finally:
            os._exit(code)
    os.close(writable)
    return pid, readable


def opened(path: Path) -> Database:
    database = Database(path)
    database.open()
    return database
