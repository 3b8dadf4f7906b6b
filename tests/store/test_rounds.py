"""Rounds: one active, status only forwards, final stays final."""

import math
import threading

import pytest

from dpo_studio.domain.round import RoundStatus, StepProgress, TrainingFacts, TrainSettings, Verdict
from dpo_studio.errors import Conflict, NotFound, StudioError
from dpo_studio.store import leases, rounds
from dpo_studio.store.database import Database
from dpo_studio.store.rounds import HELDOUT_ACCURACY, NEXT, SnapshotFacts, WorkerIdentity
from tests.store.makers import START, add_judged, at, run_round

S = RoundStatus


def queue(db: Database) -> int:
    with db.write() as session:
        return rounds.create_round("ann", TrainSettings(beta=0.2), now=START, session=session).number


def test_rounds_are_numbered_from_one(db: Database) -> None:
    with db.write() as session:
        assert [run_round(session, (), S.FAILED) for _ in range(3)] == [1, 2, 3]
        listed = rounds.list_rounds(session=session)
        last = rounds.last_round(session=session)
    assert [record.number for record in listed] == [3, 2, 1]
    assert last is not None and last.number == 3


def test_a_round_comes_back_as_it_was_queued(db: Database) -> None:
    number = queue(db)
    with db.read() as session:
        record = rounds.get_round(number, session=session)
        assert rounds.get_round(99, session=session) is None
    assert record is not None
    assert (record.status, record.trigger, record.settings.beta) == (S.QUEUED, "ann", 0.2)
    assert (record.metrics, record.verdict, record.worker, record.started_at) == ({}, None, None, None)


def test_a_second_active_round_is_refused_by_the_database(db: Database) -> None:
    """Twenty at once: one wins, nineteen hear why."""
    outcomes: list[str] = []
    gate = threading.Barrier(20)

    def start() -> None:
        gate.wait(20)
        try:
            queue(db)
            outcomes.append("started")
        except StudioError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["Conflict"] * 19 + ["started"]


def test_a_waiting_round_does_not_block_the_next(db: Database) -> None:
    with db.write() as session:
        run_round(session, (), S.WAITING)
        assert rounds.active_round(session=session) is None
    assert queue(db) == 2


@pytest.mark.parametrize("status", list(RoundStatus))
def test_status_moves_only_along_the_allowed_ways(db: Database, status: RoundStatus) -> None:
    """From every status: exactly the followers of NEXT are accepted."""
    ways = {
        S.QUEUED: (),
        S.RUNNING: (S.RUNNING,),
        S.GATING: (S.RUNNING, S.GATING),
        S.WAITING: (S.RUNNING, S.GATING, S.WAITING),
        S.PROMOTED: (S.RUNNING, S.GATING, S.PROMOTED),
        S.REJECTED: (S.RUNNING, S.GATING, S.REJECTED),
    }
    number = queue(db)
    with db.write() as session:
        for step in ways.get(status, (status,)):
            rounds.set_status(number, step, now=START, session=session)
    for follower in RoundStatus:
        with db.write() as session:
            if follower in NEXT.get(status, ()):
                assert rounds.set_status(number, follower, now=START, session=session).status is follower
                session.rollback()
            else:
                with pytest.raises(Conflict, match="cannot become"):
                    rounds.set_status(number, follower, now=START, session=session)


def test_times_and_reason_are_kept(db: Database) -> None:
    number = queue(db)
    with db.write() as session:
        rounds.set_status(number, S.RUNNING, now=at(1), session=session)
        record = rounds.set_status(number, S.FAILED, reason="It broke", now=at(9), session=session)
    assert (record.started_at, record.finished_at, record.reason) == (at(1), at(9), "It broke")


def test_an_unknown_round_is_not_found(db: Database) -> None:
    with db.write() as session, pytest.raises(NotFound, match="99"):
        rounds.set_status(99, S.RUNNING, now=START, session=session)


def test_a_stale_lease_cannot_move_a_round(db: Database) -> None:
    """The holder slept past its time; a newer one took over; the old one's result is refused."""
    number = queue(db)
    with db.write() as session:
        old = leases.acquire("training", "one", ttl_s=10, now=at(0), session=session)
        assert old is not None
        rounds.set_status(number, S.RUNNING, lease=old, now=at(1), session=session)
    with db.write() as session:
        new = leases.acquire("training", "two", ttl_s=10, now=at(11), session=session)
        assert new is not None and new.token == old.token + 1
    with db.write() as session:
        with pytest.raises(Conflict, match="lost"):
            rounds.set_status(number, S.GATING, lease=old, now=at(12), session=session)
        rounds.set_status(number, S.GATING, lease=new, now=at(12), session=session)


def test_a_snapshot_is_remembered_with_its_votes(db: Database) -> None:
    with db.write() as session:
        used = add_judged(session).vote_id
    number = queue(db)
    facts = SnapshotFacts("sha256:1", 10, 8, 2, 5, (used, used))
    with db.write() as session:
        rounds.record_snapshot(number, facts, session=session)
    with db.read() as session:
        record = rounds.get_round(number, session=session)
        assert rounds.pair_counts(session=session) == {number: 10}
    assert record is not None
    assert (record.dataset_sha256, record.num_train, record.num_heldout) == ("sha256:1", 8, 2)
    assert record.new_pairs == 5


def test_a_worker_is_remembered_well_enough_to_know_it_again(db: Database) -> None:
    number = queue(db)
    worker = WorkerIdentity(4711, 123.25, "boot")
    with db.write() as session:
        rounds.record_worker(number, worker, session=session)
    with db.read() as session:
        record = rounds.get_round(number, session=session)
    assert record is not None and record.worker == worker


def test_results_are_kept_even_when_the_loss_diverged(db: Database) -> None:
    number = queue(db)
    verdict = Verdict(False, ("The loss became NaN",))
    metrics = {"loss": math.nan, HELDOUT_ACCURACY: 0.75}
    with db.write() as session:
        rounds.record_result(number, metrics=metrics, verdict=verdict, version="v1", session=session)
    with db.read() as session:
        record = rounds.get_round(number, session=session)
        assert rounds.heldout_accuracies(session=session) == {number: 0.75}
    assert record is not None
    assert math.isnan(record.metrics["loss"])
    assert (record.verdict, record.version) == (verdict, "v1")


def test_how_a_round_trained_is_kept_and_outlasts_its_end(db: Database) -> None:
    number = queue(db)
    facts = TrainingFacts("Trained in the packed layout.", ("One", "two"), 1, 2, 3, 4, 5.5)
    with db.write() as session:
        rounds.record_training(number, facts, session=session)
        rounds.record_result(number, metrics={}, verdict=None, version=None, session=session)
        rounds.set_status(number, S.CANCELLED, now=START, session=session)
    with db.read() as session:
        record = rounds.get_round(number, session=session)
    assert record is not None and record.training == facts


def test_steps_come_back_in_order_and_from_anywhere(db: Database) -> None:
    number = queue(db)
    steps = [StepProgress("training", n, 4, 1.5, {"loss": n / 10}) for n in range(4)]
    with db.write() as session:
        rounds.add_steps(number, steps[:3], session=session)
        rounds.add_steps(number, steps[3:], session=session)
    with db.read() as session:
        assert rounds.list_steps(number, session=session) == steps
        assert rounds.list_steps(number, since=2, session=session) == steps[2:]
        assert rounds.list_steps(number + 1, session=session) == []


def test_a_boot_marks_what_was_running_and_nothing_else(db: Database) -> None:
    with db.write() as session:
        run_round(session, (), S.PROMOTED)
        run_round(session, (), S.WAITING)
    number = queue(db)
    with db.write() as session:
        cut_off = rounds.mark_interrupted("The studio stopped", now=at(5), session=session)
        assert rounds.mark_interrupted("again", now=at(6), session=session) == []
        waiting = rounds.rounds_with([S.WAITING], session=session)
    assert [(record.number, record.status, record.reason) for record in cut_off] == [
        (number, S.INTERRUPTED, "The studio stopped")
    ]
    assert [record.number for record in waiting] == [2]
