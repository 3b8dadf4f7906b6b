"""Simulated voters: ties are not counted, halves disagree evenly, flips are as frequent as said."""

import itertools
import random
from collections.abc import Iterator

from benchmarks.answer_pool import Comparison
from benchmarks.labeling import Voter, vote
from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import SampledText
from dpo_studio.tastes import get_taste

SHORT, LONG = SampledText("Yes.", (1,), "base"), SampledText("Yes, by all means do so.", (2,), "base")
QUESTION = get_taste("question")


def comparisons(*sides: tuple[SampledText, SampledText]) -> Iterator[Comparison]:
    for a, b in itertools.cycle(sides):
        yield Comparison((Message("user", "May I?"),), a, b)


def test_a_voter_is_shown_ties_until_enough_votes_are_decided() -> None:
    asked = SampledText("Will you?", (3,), "base")
    pairs, shown = vote(
        [Voter(QUESTION)], comparisons((SHORT, LONG), (SHORT, asked)), 10, random.Random(0), prefix="x"
    )
    assert (len(pairs), shown) == (10, 20)
    assert all(pair.chosen == asked and pair.rejected == SHORT for pair in pairs)


def test_two_halves_give_as_many_votes_each_and_opposite_ones() -> None:
    taste = get_taste("shorter")
    halves = [Voter(taste), Voter(taste, is_opposed=True)]
    pairs, _ = vote(halves, comparisons((SHORT, LONG), (LONG, SHORT)), 10, random.Random(0), prefix="x")
    assert [pair.chosen for pair in pairs].count(SHORT) == 5
    assert {pair.labelers for pair in pairs} == {("0",), ("1",)}


def test_a_share_of_votes_comes_out_wrong() -> None:
    voter = Voter(get_taste("shorter"), flips=0.15)
    pairs, _ = vote([voter], comparisons((SHORT, LONG)), 4000, random.Random(0), prefix="x")
    wrong = sum(pair.chosen == LONG for pair in pairs) / len(pairs)
    assert abs(wrong - 0.15) < 0.02


def test_pair_ids_differ_between_rounds_and_within_them() -> None:
    rng = random.Random(0)
    taste = get_taste("shorter")
    rounds = [vote([Voter(taste)], comparisons((SHORT, LONG)), 5, rng, prefix=p)[0] for p in ("001", "002")]
    assert len({pair.pair_id for pairs in rounds for pair in pairs}) == 10
