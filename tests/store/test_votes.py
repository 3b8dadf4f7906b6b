"""One current vote per comparison and labeler; nothing given is ever lost."""

import sqlite3
import threading
from contextlib import closing

import pytest
from sqlalchemy.exc import IntegrityError

from dpo_studio.domain.preference import Choice
from dpo_studio.errors import BadInput, Conflict, NotFound
from dpo_studio.store import comparisons, votes
from dpo_studio.store.database import Database
from dpo_studio.store.votes import VoteInput, VoteReceipt
from tests.store.makers import START, add_comparison, add_judged, at, cast


def all_votes(db: Database) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(db.path)) as connection:
        return connection.execute(
            "SELECT choice, revision, is_current FROM vote ORDER BY revision"
        ).fetchall()


def test_a_vote_is_kept_and_names_the_versions(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session, version="v3")
        receipt = cast(session, comparison_id, Choice.B)
    assert (receipt.version_a, receipt.version_b, receipt.is_new) == ("v3", "v3", True)
    with db.read() as session:
        assert comparisons.open_for("ann", session=session) is None
        (entry,) = votes.history("ann", limit=9, offset=0, session=session)
    assert (entry.vote_id, entry.choice, entry.revision) == (receipt.vote_id, Choice.B, 1)


def test_the_same_vote_again_is_the_same_vote(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        first = cast(session, comparison_id)
    with db.write() as session:
        again = cast(session, comparison_id, now=at(60))
    assert (again.vote_id, again.is_new) == (first.vote_id, False)
    assert all_votes(db) == [("a", 1, 1)]


def test_five_at_once_are_one_vote_with_one_answer(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
    receipts: list[VoteReceipt] = []
    gate = threading.Barrier(5)

    def submit() -> None:
        gate.wait(10)
        with db.write() as session:
            receipts.append(cast(session, comparison_id))

    threads = [threading.Thread(target=submit) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({receipt.vote_id for receipt in receipts}) == 1
    assert sorted(receipt.is_new for receipt in receipts) == [False] * 4 + [True]
    assert all_votes(db) == [("a", 1, 1)]


def test_a_changed_mind_is_a_revision_and_the_old_vote_stays(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        cast(session, comparison_id, Choice.A)
        cast(session, comparison_id, Choice.TIE, now=at(1))
        cast(session, comparison_id, Choice.A, now=at(2))
    assert all_votes(db) == [("a", 1, 0), ("tie", 2, 0), ("a", 3, 1)]


@pytest.mark.parametrize(
    "other",
    [
        VoteInput("", Choice.A, strength=3),
        VoteInput("", Choice.A, reasons=("kinder",)),
        VoteInput("", Choice.A, note="because"),
        VoteInput("", Choice.A, edited="better"),
    ],
)
def test_every_part_of_a_vote_makes_a_revision(db: Database, other: VoteInput) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        cast(session, comparison_id)
        changed = VoteInput(
            comparison_id, other.choice, other.strength, other.reasons, other.note, other.edited
        )
        receipt = votes.cast_vote(changed, labeler="ann", now=at(1), session=session)
    assert receipt.is_new


def test_the_order_of_reasons_and_blanks_around_a_note_do_not_make_a_revision(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        one = VoteInput(comparison_id, Choice.A, reasons=("b", "a"), note=" n ", edited="  ")
        two = VoteInput(comparison_id, Choice.A, reasons=("a", "b", "a"), note="n")
        votes.cast_vote(one, labeler="ann", now=START, session=session)
        assert not votes.cast_vote(two, labeler="ann", now=START, session=session).is_new


def test_the_database_itself_refuses_two_current_votes(db: Database) -> None:
    """Not an `if` in the code: raw SQL fails too."""
    with db.write() as session:
        comparison_id = add_comparison(session)
        cast(session, comparison_id)
    columns = "id, comparison_id, labeler, choice, reasons_json, revision, created_at, is_current"
    with pytest.raises(IntegrityError, match="UNIQUE"), db.write() as session:
        session.connection().exec_driver_sql(
            f"INSERT INTO vote ({columns}) SELECT 'x', comparison_id, labeler, choice, reasons_json, 2, "
            "created_at, 1 FROM vote"
        )


def test_someone_elses_comparison_does_not_exist(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session, labeler="ann")
        with pytest.raises(NotFound):
            cast(session, comparison_id, labeler="bob")
        with pytest.raises(NotFound):
            cast(session, "0" * 32)


def test_a_comparison_for_anyone_takes_everybodys_vote(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session, labeler=None)
        assert cast(session, comparison_id, labeler="ann").is_new
        assert cast(session, comparison_id, labeler="bob").is_new


def test_what_was_never_shown_cannot_be_judged(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session, status="ready")
        with pytest.raises(NotFound):
            cast(session, comparison_id)


def test_a_comparison_put_back_in_another_tab_still_takes_its_vote(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        comparisons.put_back_shown("ann", session=session)
        assert cast(session, comparison_id).is_new


def test_a_withdrawn_vote_opens_its_comparison_again(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        receipt = cast(session, comparison_id)
        other = add_comparison(session, prompt="next")
        opened = votes.withdraw_vote(receipt.vote_id, labeler="ann", now=at(5), session=session)
    with db.read() as session:
        shown = comparisons.open_for("ann", session=session)
        waiting = comparisons.ready_for("ann", session=session)
        assert votes.latest_vote("ann", session=session) is None
        assert votes.counts("ann", since=START, session=session).total == 0
    assert shown is not None and shown.id == opened == comparison_id
    assert waiting is not None and waiting.id == other
    assert all_votes(db) == [("a", 1, 1)]


def test_the_same_vote_after_an_undo_is_a_new_one(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        first = cast(session, comparison_id)
        votes.withdraw_vote(first.vote_id, labeler="ann", now=at(5), session=session)
        second = cast(session, comparison_id, now=at(6))
    assert second.is_new and second.vote_id != first.vote_id
    assert all_votes(db) == [("a", 1, 0), ("a", 2, 1)]


def test_withdrawing_twice_is_withdrawing_once(db: Database) -> None:
    with db.write() as session:
        receipt = add_judged(session)
        for second in (1, 2):
            votes.withdraw_vote(receipt.vote_id, labeler="ann", now=at(second), session=session)
    with closing(sqlite3.connect(db.path)) as connection:
        (found,) = connection.execute("SELECT withdrawn_at FROM vote").fetchone()
    assert found == at(1).isoformat(timespec="microseconds")


def test_only_the_own_and_current_vote_can_be_withdrawn(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        first = cast(session, comparison_id)
        cast(session, comparison_id, Choice.B)
        with pytest.raises(NotFound):
            votes.withdraw_vote(first.vote_id, labeler="bob", now=START, session=session)
        with pytest.raises(Conflict, match="replaced"):
            votes.withdraw_vote(first.vote_id, labeler="ann", now=START, session=session)


def test_counts_and_history_are_the_labelers_own(db: Database) -> None:
    with db.write() as session:
        add_judged(session, now=at(-3600))
        newest = add_judged(session, now=at(10))
        cast(session, add_comparison(session, labeler="bob"), labeler="bob")
    with db.read() as session:
        counts = votes.counts("ann", since=START, session=session)
        page = votes.history("ann", limit=1, offset=0, session=session)
        rest = votes.history("ann", limit=9, offset=1, session=session)
    assert (counts.today, counts.total, counts.team_total) == (1, 2, 3)
    assert [entry.vote_id for entry in page] == [newest.vote_id]
    assert len(rest) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"strength": 0},
        {"strength": 6},
        {"reasons": ("x" * 65,)},
        {"reasons": ("",)},
        {"reasons": ("a",) * 17},
        {"note": "x" * 4001},
        {"edited": "x" * 32_001},
    ],
)
def test_parts_out_of_range_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="expected"):
        VoteInput("c", Choice.A, **bad)  # type: ignore[arg-type]
