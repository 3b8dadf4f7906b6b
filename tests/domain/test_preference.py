"""The rule that turns votes into pairs, by cases and by properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import (
    Choice,
    JudgedComparison,
    PreferencePair,
    SampledText,
    VoteRecord,
    pairs_of,
)
from dpo_studio.errors import BadInput

A = SampledText("first", (1, 2), "v1")
B = SampledText("second", (3, 4), "v1")


def judged(*votes: tuple[Choice, str | None], a: SampledText = A, b: SampledText = B) -> JudgedComparison:
    """Votes of labelers 0, 1, …, oldest first."""
    records = tuple(VoteRecord(f"vote{n}", f"who{n}", choice, edit) for n, (choice, edit) in enumerate(votes))
    return JudgedComparison("c", (Message("user", "Hi"),), a, b, records)


def texts(comparison: JudgedComparison) -> list[tuple[str, str]]:
    return [(pair.chosen.text, pair.rejected.text) for pair in pairs_of(comparison)]


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([], []),
        ([(Choice.A, None)], [("first", "second")]),
        ([(Choice.B, None)], [("second", "first")]),
        ([(Choice.TIE, None)], []),
        ([(Choice.SKIP, None)], []),
        ([(Choice.BOTH_BAD, None)], []),
        ([(Choice.BOTH_BAD, "third")], [("third", "first"), ("third", "second")]),
        ([(Choice.A, "third")], [("first", "second"), ("third", "first")]),
        ([(Choice.B, "third")], [("second", "first"), ("third", "second")]),
        ([(Choice.TIE, "third")], []),
        # Majorities.
        ([(Choice.A, None), (Choice.B, None)], []),
        ([(Choice.A, None), (Choice.B, None), (Choice.B, None)], [("second", "first")]),
        ([(Choice.A, None), (Choice.TIE, None)], []),
        ([(Choice.A, None), (Choice.SKIP, None), (Choice.SKIP, None)], [("first", "second")]),
        ([(Choice.TIE, None), (Choice.TIE, None), (Choice.A, None)], []),
        # The newest supporter's edit counts; a loser's does not.
        ([(Choice.A, "old"), (Choice.A, "new")], [("first", "second"), ("new", "first")]),
        ([(Choice.A, "mine"), (Choice.A, None)], [("first", "second"), ("mine", "first")]),
        ([(Choice.B, "lost"), (Choice.A, None), (Choice.A, None)], [("first", "second")]),
        # An edit equal to a side adds nothing against that side.
        ([(Choice.A, "first")], [("first", "second")]),
        ([(Choice.BOTH_BAD, "first ")], [("first ", "second")]),
    ],
)
def test_votes_give_these_pairs(
    votes: list[tuple[Choice, str | None]], expected: list[tuple[str, str]]
) -> None:
    assert texts(judged(*votes)) == expected


def test_sides_of_the_same_text_teach_nothing() -> None:
    assert texts(judged((Choice.A, None), b=SampledText(" first\n", (9,), "v1"))) == []


def test_an_empty_answer_may_lose_but_not_win() -> None:
    empty = SampledText("", (2,), "v1")
    assert texts(judged((Choice.A, None), b=empty)) == [("first", "")]
    assert texts(judged((Choice.B, None), b=empty)) == []


def test_a_pair_traces_to_its_supporters_and_its_samples() -> None:
    (pair,) = pairs_of(judged((Choice.B, None), (Choice.A, None), (Choice.B, None)))
    assert (pair.pair_id, pair.vote_ids, pair.labelers) == ("c:vote", ("vote0", "vote2"), ("who0", "who2"))
    assert (pair.chosen, pair.rejected) == (B, A)


def test_an_edit_was_sampled_by_nobody() -> None:
    edit = pairs_of(judged((Choice.A, "third")))[1]
    assert edit.pair_id == "c:edit"
    assert (edit.chosen.token_ids, edit.chosen.version) == (None, "")


edits = st.none() | st.text(max_size=3)
votes_strategy = st.lists(st.tuples(st.sampled_from(list(Choice)), edits), max_size=7)


@given(votes_strategy)
def test_pairs_never_prefer_a_text_to_itself_nor_to_nothing(votes: list[tuple[Choice, str | None]]) -> None:
    pairs = pairs_of(judged(*votes))
    assert len({pair.pair_id for pair in pairs}) == len(pairs) <= 2
    for pair in pairs:
        assert pair.chosen.text.strip()
        assert pair.chosen.text.strip() != pair.rejected.text.strip()


@given(votes_strategy)
def test_swapping_the_sides_and_the_votes_swaps_nothing_else(votes: list[tuple[Choice, str | None]]) -> None:
    other = {Choice.A: Choice.B, Choice.B: Choice.A}
    mirrored = judged(*((other.get(choice, choice), edit) for choice, edit in votes), a=B, b=A)
    assert sorted(texts(judged(*votes))) == sorted(texts(mirrored))


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([Choice.A], 1.0),
        ([Choice.A, Choice.A, Choice.B], 2 / 3),
        ([Choice.B, Choice.B, Choice.B, Choice.A], 3 / 4),
        # A tie counts half for each; "both bad" and "skip" do not compare.
        ([Choice.A, Choice.A, Choice.TIE], 5 / 6),
        ([Choice.A, Choice.A, Choice.BOTH_BAD, Choice.SKIP], 1.0),
    ],
)
def test_a_pair_carries_the_share_of_its_votes(votes: list[Choice], expected: float) -> None:
    (pair,) = pairs_of(judged(*((vote, None) for vote in votes)))
    assert pair.chosen_probability == pytest.approx(expected)


def test_an_edit_is_sure_to_be_better_than_what_it_mends() -> None:
    voted, edited = pairs_of(judged((Choice.A, "mended"), (Choice.A, None), (Choice.B, None)))
    assert voted.chosen_probability == pytest.approx(2 / 3)
    assert edited.chosen_probability == 1.0


def test_a_ranking_is_certain() -> None:
    third = SampledText("third")
    assert PreferencePair("p", (), A, B, (), (), between=(third,)).responses == (A, third, B)
    with pytest.raises(BadInput, match="chosen_probability: expected 1 for a ranking"):
        PreferencePair("p", (), A, B, (), (), 0.9, between=(third,))


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(BadInput, match="chosen_probability: expected 0 to 1"):
        PreferencePair("p", (), A, B, (), (), value)
