"""Rounds: their record, their steps, which votes they used. The database allows one active round.

Status moves only along `NEXT`; a final status stays. A caller that holds the training lease passes it,
and loses against a newer holder in the same transaction.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.domain.round import RoundStatus, StepProgress, TrainingFacts, TrainSettings, Verdict
from dpo_studio.errors import Conflict, NotFound
from dpo_studio.files import canonical_json
from dpo_studio.store import leases
from dpo_studio.store.leases import LeaseHold
from dpo_studio.store.tables import Round, RoundStep, RoundVote, Vote

S = RoundStatus
USES_VOTES = frozenset({S.PROMOTED, S.REJECTED, S.WAITING})
"""A round that came this far has used up the novelty of its votes; a failed one has not."""
NEXT: Mapping[RoundStatus, frozenset[RoundStatus]] = {
    S.QUEUED: frozenset({S.RUNNING, S.FAILED, S.CANCELLED, S.INTERRUPTED}),
    # Back to queued: cut off, and to be gone on with.
    S.RUNNING: frozenset({S.QUEUED, S.GATING, S.FAILED, S.CANCELLED, S.INTERRUPTED}),
    S.GATING: frozenset({S.QUEUED, S.PROMOTED, S.WAITING, S.REJECTED, S.FAILED, S.CANCELLED, S.INTERRUPTED}),
    S.WAITING: frozenset({S.PROMOTED, S.REJECTED, S.FAILED}),
}
HELDOUT_ACCURACY = "heldout/rewards/accuracies"
"""Metric key of the candidate's preference accuracy on held-out pairs."""


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """What a round was trained on."""

    dataset_sha256: str
    num_pairs: int
    num_train: int
    num_heldout: int
    new_pairs: int
    vote_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Enough to know a process again: a pid alone may be someone else's by now."""

    pid: int
    started: float
    boot_id: str


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round's row."""

    number: int
    status: RoundStatus
    trigger: str
    reason: str
    settings: TrainSettings
    dataset_sha256: str
    num_pairs: int
    num_train: int
    num_heldout: int
    new_pairs: int
    metrics: dict[str, float]
    verdict: Verdict | None
    training: TrainingFacts | None
    version: str | None
    worker: WorkerIdentity | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def create_round(trigger: str, settings: TrainSettings, *, now: datetime, session: Session) -> RoundRecord:
    """Queue the next round. Raises Conflict while another is queued, running or at the gate."""
    last = session.exec(select(sa.func.max(Round.number))).one()
    row = Round(
        number=(last or 0) + 1,
        status=RoundStatus.QUEUED.value,
        active_slot=1,
        trigger=trigger,
        settings_json=canonical_json(to_json(settings)),
        created_at=now,
    )
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict("Another round is under way; wait for it or cancel it") from error
    return _record(row)


def set_status(
    number: int,
    status: RoundStatus,
    *,
    now: datetime,
    session: Session,
    reason: str = "",
    lease: LeaseHold | None = None,
) -> RoundRecord:
    """Move a round on. Raises Conflict when its status or a lost `lease` forbids it."""
    if lease is not None:
        leases.require(lease, now=now, session=session)
    row = _row(number, session)
    found = RoundStatus(row.status)
    if status not in NEXT.get(found, frozenset()):
        raise Conflict(f"Round {number} is {found}; it cannot become {status}")
    row.status = status.value
    row.active_slot = 1 if status.is_active else None
    row.reason = reason or row.reason
    if status is RoundStatus.RUNNING:
        row.started_at = row.started_at or now
    if status not in NEXT:
        row.finished_at = now
    session.flush()
    if status in USES_VOTES:
        _mark_used(number, session)
    return _record(row)


def record_snapshot(number: int, facts: SnapshotFacts, *, session: Session) -> None:
    """Remember what the round is trained on and whose votes that took."""
    row = _row(number, session)
    row.dataset_sha256 = facts.dataset_sha256
    row.num_pairs = facts.num_pairs
    row.num_train = facts.num_train
    row.num_heldout = facts.num_heldout
    row.new_pairs = facts.new_pairs
    session.flush()
    rows = [{"round": number, "vote_id": vote_id} for vote_id in sorted(set(facts.vote_ids))]
    if rows:
        session.connection().execute(sa.insert(RoundVote), rows)


def record_worker(number: int, worker: WorkerIdentity, *, session: Session) -> None:
    """Remember which process trains."""
    row = _row(number, session)
    row.worker_pid, row.worker_started, row.boot_id = worker.pid, worker.started, worker.boot_id


def record_training(number: int, facts: TrainingFacts, *, session: Session) -> None:
    """Remember how the round trained."""
    _row(number, session).training_json = canonical_json(to_json(facts))


def record_result(
    number: int,
    *,
    metrics: Mapping[str, float],
    verdict: Verdict | None,
    version: str | None,
    session: Session,
) -> None:
    """Remember what came out."""
    row = _row(number, session)
    # NaN is kept: a diverged loss is what people need to see.
    row.metrics_json = json.dumps(dict(metrics), sort_keys=True)
    row.verdict_json = None if verdict is None else canonical_json(to_json(verdict))
    row.version = version


def add_steps(number: int, steps: Sequence[StepProgress], *, session: Session) -> None:
    """Append progress lines."""
    found = session.exec(select(sa.func.max(RoundStep.position)).where(RoundStep.round == number)).one()
    first = 0 if found is None else found + 1
    for position, step in enumerate(steps, start=first):
        text = json.dumps(to_json(step), sort_keys=True)
        session.add(RoundStep(round=number, position=position, progress_json=text))


def list_steps(number: int, *, since: int = 0, session: Session) -> list[StepProgress]:
    """Progress lines from position `since` (0 is the first) on."""
    rows = session.exec(
        select(RoundStep)
        .where(RoundStep.round == number, RoundStep.position >= since)
        .order_by(col(RoundStep.position))
    )
    return [from_json(StepProgress, json.loads(row.progress_json)) for row in rows]


def drop_steps(number: int, *, after: int, session: Session) -> None:
    """Forget the progress lines beyond step `after`: training was cut off and takes those steps anew."""
    for row in session.exec(select(RoundStep).where(RoundStep.round == number)):
        if from_json(StepProgress, json.loads(row.progress_json)).step > after:
            session.delete(row)


def get_round(number: int, *, session: Session) -> RoundRecord | None:
    row = session.get(Round, number)
    return None if row is None else _record(row)


def list_rounds(*, session: Session) -> list[RoundRecord]:
    """All rounds, newest first."""
    return [_record(row) for row in session.exec(select(Round).order_by(col(Round.number).desc()))]


def active_round(*, session: Session) -> RoundRecord | None:
    """The round that is queued, running or at the gate."""
    row = session.exec(select(Round).where(col(Round.active_slot).is_not(None))).first()
    return None if row is None else _record(row)


def last_round(*, session: Session) -> RoundRecord | None:
    row = session.exec(select(Round).order_by(col(Round.number).desc()).limit(1)).first()
    return None if row is None else _record(row)


def rounds_with(statuses: Iterable[RoundStatus], *, session: Session) -> list[RoundRecord]:
    """Rounds in one of these statuses, newest first."""
    wanted = [status.value for status in statuses]
    query = select(Round).where(col(Round.status).in_(wanted)).order_by(col(Round.number).desc())
    return [_record(row) for row in session.exec(query)]


def mark_interrupted(reason: str, *, now: datetime, session: Session) -> list[RoundRecord]:
    """At boot: no process works on any round, so every active one was cut off."""
    active = rounds_with([status for status in RoundStatus if status.is_active], session=session)
    return [
        set_status(record.number, RoundStatus.INTERRUPTED, reason=reason, now=now, session=session)
        for record in active
    ]


def heldout_accuracies(*, session: Session) -> dict[int, float]:
    """Round → the candidate's held-out preference accuracy, where it was measured."""
    rows = session.exec(select(Round.number, Round.metrics_json)).all()
    metrics = {number: json.loads(text) for number, text in rows}
    return {number: found[HELDOUT_ACCURACY] for number, found in metrics.items() if HELDOUT_ACCURACY in found}


def pair_counts(*, session: Session) -> dict[int, int]:
    """Round → how many pairs its snapshot held."""
    return dict(session.exec(select(Round.number, Round.num_pairs)).all())


def _mark_used(number: int, session: Session) -> None:
    theirs = sa.select(col(RoundVote.vote_id)).where(col(RoundVote.round) == number)
    first = sa.update(Vote).where(col(Vote.id).in_(theirs), col(Vote.used_by).is_(None))
    session.connection().execute(first.values(used_by=number))


def _row(number: int, session: Session) -> Round:
    row = session.get(Round, number)
    if row is None:
        raise NotFound(f"round: expected an existing round, found {number}")
    return row


def _record(row: Round) -> RoundRecord:
    worker = None
    if row.worker_pid is not None:
        worker = WorkerIdentity(row.worker_pid, row.worker_started or 0.0, row.boot_id or "")
    training = row.training_json
    return RoundRecord(
        number=row.number,
        status=RoundStatus(row.status),
        trigger=row.trigger,
        reason=row.reason,
        settings=from_json(TrainSettings, json.loads(row.settings_json)),
        dataset_sha256=row.dataset_sha256,
        num_pairs=row.num_pairs,
        num_train=row.num_train,
        num_heldout=row.num_heldout,
        new_pairs=row.new_pairs,
        metrics=json.loads(row.metrics_json),
        verdict=None if row.verdict_json is None else from_json(Verdict, json.loads(row.verdict_json)),
        training=None if training is None else from_json(TrainingFacts, json.loads(training)),
        version=row.version,
        worker=worker,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
