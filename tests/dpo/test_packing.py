"""Packing: every pair once, hardly a token more than there is, and every token where it belongs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_studio.dpo.batches import Batch, TokenPair, TokenSequence
from dpo_studio.dpo.layouts import PREFIX_SHARED
from dpo_studio.dpo.packing import pack_pairs, pack_sequences, plan_bins, share_prefixes
from tests.dpo.models import CPU, random_rankings

sizes = st.lists(st.integers(1, 400), max_size=40)
# Tokens of a prompt and of two to five responses to it.
shapes = st.lists(st.lists(st.integers(1, 40), min_size=3, max_size=6), min_size=1, max_size=8)
relaxed = settings(deadline=None)


@given(sizes, st.integers(1, 500))
def test_every_item_stands_in_exactly_one_bin(sizes: list[int], max_tokens: int) -> None:
    bins = plan_bins(sizes, max_tokens)
    assert sorted(index for group in bins for index in group) == list(range(len(sizes)))


@given(sizes, st.integers(1, 500))
def test_no_bin_is_over_the_budget_unless_one_item_is(sizes: list[int], max_tokens: int) -> None:
    for group in plan_bins(sizes, max_tokens):
        assert len(group) == 1 or sum(sizes[index] for index in group) <= max_tokens


@given(sizes, st.integers(1, 500))
def test_no_two_bins_could_be_one(sizes: list[int], max_tokens: int) -> None:
    totals = sorted(sum(sizes[index] for index in group) for group in plan_bins(sizes, max_tokens))
    assert len(totals) < 2 or totals[0] + totals[1] > max_tokens


def test_bins_are_filled_by_first_fit_decreasing() -> None:
    assert plan_bins([3, 7, 5, 2, 8], 10) == [[4, 3], [1, 0], [2]]


@relaxed
@given(shapes, st.integers(1, 300))
def test_hardly_a_token_is_processed_that_is_not_there(shapes: list[list[int]], max_tokens: int) -> None:
    pairs = random_rankings(shapes)
    groups = PREFIX_SHARED.plan([PREFIX_SHARED.size(pair) for pair in pairs], max_tokens)
    batches = [share_prefixes([pairs[index] for index in group], CPU) for group in groups]
    processed = sum(batch.input_ids.numel() for batch in batches)
    assert processed / sum(map(sum, shapes)) <= 1.02


@relaxed
@given(shapes)
def test_following_the_segments_back_gives_every_sequence(shapes: list[list[int]]) -> None:
    pairs = random_rankings(shapes)
    sequences = [sequence for pair in pairs for sequence in pair.sequences]
    for batch in (share_prefixes(pairs, CPU), pack_pairs(pairs, CPU)):
        assert _read(batch) == sequences


def _read(batch: Batch) -> list[TokenSequence]:
    """Sequences as attention and positions define them, not as they were written."""
    assert batch.segments is not None and batch.position_ids is not None
    ids, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    assert [segment.start for segment in batch.segments.segments[1:]] == [
        segment.end for segment in batch.segments.segments[:-1]
    ]
    assert batch.segments.num_tokens == len(ids)
    found = []
    lengths = list(batch.lengths)
    for at, targets in zip(
        torch.split(batch.predict_at, lengths), torch.split(batch.targets, lengths), strict=True
    ):
        # The text seen by the last predicting position, and the token that it predicts.
        last = int(at[-1])
        segment = next(s for s in batch.segments.segments if s.start <= last < s.end)
        seen = [
            *range(segment.prefix_start, segment.prefix_start + segment.prefix_length),
            *range(segment.start, last + 1),
        ]
        if len(at) == 1 and segment.prefix_length:
            raise AssertionError("a first token is predicted from the prompt")
        assert [positions[index] for index in seen] == list(range(len(seen)))
        text = [*(ids[index] for index in seen), int(targets[-1])]
        num_prompt = len(text) - len(targets)
        assert [*at.tolist()] == seen[num_prompt - 1 :]
        found.append(TokenSequence(tuple(text[:num_prompt]), tuple(text[num_prompt:])))
        assert found[-1].response == tuple(targets.tolist())
    return found


def test_the_prompt_is_stored_once() -> None:
    batch = share_prefixes([TokenPair((1, 2, 3), (4, 5), (6,)), TokenPair((7,), (8,), (9, 10))], CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 1, 2]]
    # Both first tokens from the prompt's last position; the last token of a response predicts nothing.
    assert batch.predict_at.tolist() == [2, 3, 2, 6, 6, 8]
    assert batch.targets.tolist() == [4, 5, 6, 8, 9, 10]
    assert batch.lengths == (2, 1, 1, 2)


def test_every_response_of_a_ranking_follows_the_one_prompt() -> None:
    ranking = TokenPair((1, 2), (3,), (4, 5), between=((6, 7), (8,)))
    batch = share_prefixes([ranking, TokenPair((9,), (3,), (4,))], CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 6, 7, 8, 4, 5, 9, 3, 4]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3, 2, 2, 3, 0, 1, 1]]
    assert batch.lengths == (1, 2, 1, 2, 1, 1)
    for laid_out in (batch, pack_pairs([ranking, TokenPair((9,), (3,), (4,))], CPU)):
        assert _read(laid_out)[:4] == list(ranking.sequences)


def test_a_packed_pair_repeats_its_prompt() -> None:
    batch = pack_pairs([TokenPair((1, 2), (3,), (4, 5))], CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 2, 4, 5]]
    assert batch.predict_at.tolist() == [1, 4, 5]
    assert torch.equal(batch.targets, torch.tensor([3, 4, 5]))


@pytest.mark.parametrize("pair", [((), (1,), (2,)), ((1,), (), (2,)), ((1,), (2,), ())])
def test_an_empty_part_is_refused(pair: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="pair 0: expected"):
        share_prefixes([TokenPair(*pair)], CPU)
    with pytest.raises(ValueError, match="sequence 0: expected"):
        pack_sequences([TokenSequence((), (1,))], CPU)
