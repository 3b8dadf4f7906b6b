"""The layout: only response tokens are scored, each at the position before it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_studio.dpo.batches import (
    TokenPair,
    TokenSequence,
    pad_pairs,
    pad_sequences,
    plan_micro_batches,
    response_lengths,
)
from tests.dpo.models import CPU


def test_a_token_is_predicted_at_the_position_before_it() -> None:
    # Row 0: 1 2 | 3 4 ; row 1: 5 | 6 and two of padding. Width 4.
    batch = pad_sequences([TokenSequence((1, 2), (3, 4)), TokenSequence((5,), (6,))], CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch.predict_at.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [3, 4, 6]
    assert batch.lengths == (2, 1)


def test_pairs_lie_chosen_first() -> None:
    batch = pad_pairs([TokenPair((1,), (2,), (3, 4)), TokenPair((5,), (6, 7), (8,))], CPU)
    assert batch.input_ids.tolist() == [[1, 2, 0], [1, 3, 4], [5, 6, 7], [5, 8, 0]]
    assert batch.lengths == (1, 2, 2, 1)


def test_a_ranking_lies_best_to_worst() -> None:
    ranking = TokenPair((1,), (2,), (3, 4), between=((5, 6, 7), (8,)))
    batch = pad_pairs([ranking, TokenPair((9,), (2,), (3,))], CPU)
    assert batch.input_ids[:4].tolist() == [[1, 2, 0, 0], [1, 5, 6, 7], [1, 8, 0, 0], [1, 3, 4, 0]]
    assert batch.lengths == (1, 3, 1, 2, 1, 1)
    assert len(ranking) == 4


def test_lengths_are_zero_where_there_is_no_response() -> None:
    pairs = [TokenPair((1,), (2,), (3, 4)), TokenPair((1,), (2,), (3, 4), between=((5, 6, 7),))]
    assert response_lengths(pairs).tolist() == [[1, 2, 0], [1, 3, 2]]
    assert response_lengths([]).shape == (0, 2)


@pytest.mark.parametrize("empty", [TokenSequence((), (1,)), TokenSequence((1,), ())])
def test_nothing_to_score_or_to_score_from_is_refused(empty: TokenSequence) -> None:
    with pytest.raises(ValueError, match="sequence 1"):
        pad_sequences([TokenSequence((1,), (2,)), empty], CPU)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), st.integers(2, 16)), max_size=40), st.integers(1, 400))
def test_micro_batches_hold_every_item_once_and_keep_to_the_budget(
    sizes: list[tuple[int, int]], budget: int
) -> None:
    widths, rows = [width for width, _ in sizes], [count for _, count in sizes]
    groups = plan_micro_batches(widths, rows, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    for group in groups:
        padded = sum(rows[index] for index in group) * max(widths[index] for index in group)
        assert padded <= budget or len(group) == 1


def test_micro_batches_begin_with_the_largest() -> None:
    assert plan_micro_batches([3, 9, 5], [2, 2, 2], 20) == [[1], [2, 0]]
