"""From votes to pairs: current, counted, traceable; what is new is counted once."""

import pytest

from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import RoundStatus
from dpo_studio.store import pairs, votes
from dpo_studio.store.database import Database
from dpo_studio.store.pairs import NewImport
from tests.store.makers import START, add_comparison, add_judged, at, cast, run_round, said


def chosen(db: Database) -> list[str]:
    return [pair.chosen.text for pair in pairs.iterate_pairs(db)]


def count(db: Database) -> int:
    with db.read() as session:
        return pairs.count_new(session=session)


def add_import(db: Database, *responses: str, prompt: str = "Hello?", second: float = 0) -> int:
    with db.write() as session:
        new = [NewImport(said(prompt), responses)]
        return pairs.add_imports(new, source="test", now=at(second), session=session)


def test_a_vote_makes_a_pair_that_traces_to_everything(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session, version="v4")
        receipt = cast(session, comparison_id, Choice.B)
    (pair,) = pairs.iterate_pairs(db)
    assert (pair.chosen.text, pair.rejected.text) == ("bad", "good")
    assert (pair.chosen.version, pair.chosen.token_ids) == ("v4", (7, 8, 2))
    assert (pair.messages, pair.vote_ids, pair.labelers) == (said("Hello?"), (receipt.vote_id,), ("ann",))
    assert pair.pair_id.startswith(comparison_id)


def test_only_current_votes_count(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        cast(session, comparison_id, Choice.A)
        receipt = cast(session, comparison_id, Choice.B, now=at(1))
    assert chosen(db) == ["bad"]
    with db.write() as session:
        votes.withdraw_vote(receipt.vote_id, labeler="ann", now=at(2), session=session)
    assert chosen(db) == []
    assert count(db) == 0


def test_a_whole_ranking_is_one_and_otherwise_all_of_its_pairs(db: Database) -> None:
    with db.write() as session:
        add_judged(session)
    add_import(db, "best", "good", "fair", "poor")
    add_import(db, "yes", "no", prompt="Two?")
    assert len(list(pairs.iterate_pairs(db))) == 1 + 6 + 1
    voted, *imported = pairs.iterate_pairs(db, whole_rankings=True)
    assert not voted.between and voted.vote_ids
    found = {tuple(text.text for text in pair.responses): pair.pair_id for pair in imported}
    assert set(found) == {("best", "good", "fair", "poor"), ("yes", "no")}
    assert found["best", "good", "fair", "poor"].endswith(":all")
    assert found["yes", "no"].endswith(":0-1"), "a ranking of two is the pair that it always was"


def test_an_empty_worst_answer_does_not_take_its_ranking_with_it(db: Database) -> None:
    add_import(db, "best", "good", "fair", "")
    found = list(pairs.iterate_pairs(db, whole_rankings=True))
    assert [[text.text for text in pair.responses] for pair in found] == [
        ["best", "good", "fair"],
        ["best", ""],
        ["good", ""],
        ["fair", ""],
    ]


def test_a_vote_after_the_cut_off_is_left_out(db: Database) -> None:
    with db.write() as session:
        add_judged(session, now=at(0))
        add_judged(session, now=at(10))
    assert len(list(pairs.iterate_pairs(db, until=at(10)))) == 2
    assert len(list(pairs.iterate_pairs(db, until=at(9.999999)))) == 1
    with db.read() as session:
        assert pairs.count_new(until=at(5), session=session) == 1


def test_excluding_a_labeler_removes_exactly_theirs_and_back(db: Database) -> None:
    with db.write() as session:
        add_judged(session)
        cast(session, add_comparison(session, labeler="bob", a="bob's"), labeler="bob")
        shared = add_comparison(session, labeler=None, a="shared")
        cast(session, shared, Choice.B, labeler="ann")
        cast(session, shared, Choice.A, labeler="bob")
    before = list(pairs.iterate_pairs(db))
    assert len(before) == 2
    with db.write() as session:
        assert votes.exclude_labeler("bob", now=at(1), session=session) == 2
    assert sorted(chosen(db)) == ["bad", "good"]
    with db.write() as session:
        assert votes.include_labeler("bob", session=session) == 2
    assert list(pairs.iterate_pairs(db)) == before


@pytest.mark.integration
def test_more_comparisons_than_a_page_come_out_complete_and_in_order(db: Database) -> None:
    with db.write() as session:
        for number in range(pairs.PAGE + 20):
            cast(session, add_comparison(session, a=f"answer {number}"))
    found = list(pairs.iterate_pairs(db))
    assert len({pair.chosen.text for pair in found}) == len(found) == pairs.PAGE + 20
    assert [pair.pair_id for pair in found] == sorted(pair.pair_id for pair in found)


def test_an_export_under_way_does_not_see_later_votes_and_blocks_nobody(db: Database) -> None:
    with db.write() as session:
        for _ in range(3):
            add_judged(session)
    exporting = pairs.iterate_pairs(db)
    first = next(exporting)
    with db.write() as session:
        add_judged(session)
    assert len([first, *exporting]) == 3


@pytest.mark.parametrize("status", [RoundStatus.PROMOTED, RoundStatus.REJECTED, RoundStatus.WAITING])
def test_a_round_that_learned_from_votes_uses_them_up(db: Database, status: RoundStatus) -> None:
    with db.write() as session:
        old = add_judged(session)
        run_round(session, (old.vote_id,), status)
    assert count(db) == 0
    with db.write() as session:
        add_judged(session)
    assert count(db) == 1
    assert len(chosen(db)) == 2


@pytest.mark.parametrize("status", [RoundStatus.FAILED, RoundStatus.CANCELLED, RoundStatus.INTERRUPTED])
def test_a_round_that_did_not_finish_leaves_them_new(db: Database, status: RoundStatus) -> None:
    with db.write() as session:
        old = add_judged(session)
        run_round(session, (old.vote_id,), status)
    assert count(db) == 1


def test_a_revised_vote_is_new_again(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
        first = cast(session, comparison_id)
        run_round(session, (first.vote_id,), RoundStatus.PROMOTED)
        cast(session, comparison_id, Choice.B, now=at(1))
    assert count(db) == 1


def test_a_minority_vote_is_not_new_for_ever(db: Database) -> None:
    """Only the winning side's votes are in a snapshot; the rest must not look like news."""
    with db.write() as session:
        comparison_id = add_comparison(session, labeler=None)
        winners = [cast(session, comparison_id, Choice.A, labeler=who).vote_id for who in ("ann", "bob")]
        cast(session, comparison_id, Choice.B, labeler="carl")
        run_round(session, tuple(winners), RoundStatus.PROMOTED)
    assert count(db) == 0


@pytest.mark.parametrize(
    ("choice", "edited", "expected"),
    [
        (Choice.TIE, None, 0),
        (Choice.SKIP, None, 0),
        (Choice.BOTH_BAD, None, 0),
        (Choice.BOTH_BAD, "better", 2),
        (Choice.A, "better", 2),
        (Choice.B, None, 1),
    ],
)
def test_only_trainable_pairs_are_counted(
    db: Database, choice: Choice, edited: str | None, expected: int
) -> None:
    with db.write() as session:
        cast(session, add_comparison(session), choice, edited=edited)
    assert count(db) == len(chosen(db)) == expected


def test_a_ranking_gives_every_pair_better_over_worse(db: Database) -> None:
    add_import(db, "best", "good", "worst")
    found = list(pairs.iterate_pairs(db))
    assert [(pair.chosen.text, pair.rejected.text) for pair in found] == [
        ("best", "good"),
        ("best", "worst"),
        ("good", "worst"),
    ]
    assert found[0].chosen.token_ids is None and found[0].vote_ids == ()
    assert count(db) == 3


def test_the_same_import_is_stored_once_and_has_the_same_id_everywhere(db: Database) -> None:
    assert (add_import(db, "yes", "no"), add_import(db, "yes", "no")) == (1, 0)
    assert add_import(db, "no", "yes") == 1
    ids = [pair.pair_id for pair in pairs.iterate_pairs(db)]
    assert len(ids) == 2 and all(len(pair_id) == 32 + len(":0-1") for pair_id in ids)


def test_an_import_is_new_until_a_round_after_it(db: Database) -> None:
    add_import(db, "yes", "no", second=1)
    with db.write() as session:
        run_round(session, (), RoundStatus.FAILED, now=at(2))
    assert count(db) == 1
    with db.write() as session:
        run_round(session, (), RoundStatus.REJECTED, now=at(3))
    assert count(db) == 0
    add_import(db, "left", "right", second=4)
    assert count(db) == 1


def test_nothing_voted_is_nothing_to_train_on(db: Database) -> None:
    with db.write() as session:
        add_comparison(session, now=START)
    assert chosen(db) == [] and count(db) == 0


@pytest.mark.parametrize(
    ("a", "b", "choice"),
    [
        ("same", " same\n", Choice.A),
        ("same", "\u00a0same\u3000\t", Choice.B),
        ("", "no", Choice.A),
        ("  ", "no", Choice.A),
        ("yes", "", Choice.A),
        ("yes", "Yes", Choice.B),
        ("x\u200b", "x", Choice.A),
    ],
)
def test_the_count_in_sql_agrees_with_the_rule_on_odd_texts(
    db: Database, a: str, b: str, choice: Choice
) -> None:
    with db.write() as session:
        cast(session, add_comparison(session, a=a, b=b), choice)
    assert count(db) == len(chosen(db))


def test_a_contested_comparison_is_counted_by_its_majority(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session, labeler=None)
        for who, choice in (("ann", Choice.A), ("bob", Choice.B)):
            cast(session, comparison_id, choice, labeler=who)
    assert count(db) == 0
    with db.write() as session:
        cast(session, comparison_id, Choice.B, labeler="carl")
    assert count(db) == 1
