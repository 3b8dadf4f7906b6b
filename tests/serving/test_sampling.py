"""Drawing tokens: exact distributions, exact nuclei, one stream of randomness per row."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_studio.serving.sampling import RowSampling, sample_tokens
from dpo_studio.serving.sequence import sample_stream

LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


def row(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0) -> RowSampling:
    return RowSampling(temperature, top_p, top_k, random.Random(seed).random)


def draws(sampling: RowSampling, num_draws: int = 4000) -> Counter[int | None]:
    return Counter(sample_tokens(LOGITS.expand(num_draws, -1), [sampling] * num_draws))


def test_frequencies_follow_the_softmax() -> None:
    counts = draws(row())
    for token, probability in enumerate([0.5, 0.25, 0.15, 0.1]):
        # Five standard deviations: a false alarm once in two million runs.
        spread = 5 * math.sqrt(4000 * probability * (1 - probability))
        assert abs(counts[token] - 4000 * probability) < spread


def test_temperature_sharpens_by_its_closed_form() -> None:
    counts = draws(row(temperature=0.5))
    squares = [p * p for p in (0.5, 0.25, 0.15, 0.1)]
    assert counts[0] / 4000 == pytest.approx(squares[0] / sum(squares), abs=0.04)


def test_top_p_keeps_the_smallest_set_with_that_mass_and_its_proportions() -> None:
    counts = draws(row(top_p=0.7))
    assert set(counts) == {0, 1}
    assert counts[0] / 4000 == pytest.approx(2 / 3, abs=0.04)


def test_top_p_below_the_largest_probability_is_greedy() -> None:
    assert set(draws(row(top_p=0.2), 200)) == {0}


def test_top_k_keeps_k_tokens() -> None:
    assert set(draws(row(top_k=3))) == {0, 1, 2}


def test_temperature_zero_takes_the_largest_and_draws_nothing() -> None:
    def refuse() -> float:
        raise AssertionError("a greedy row drew a random number")

    assert sample_tokens(LOGITS.unsqueeze(0), [RowSampling(0.0, 0.5, 2, refuse)]) == [0]


def test_a_tiny_temperature_is_finite_and_greedy() -> None:
    assert sample_tokens(LOGITS.unsqueeze(0) * 100, [row(temperature=1e-9)]) == [0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_row_is_none_and_its_neighbour_is_not(broken: float) -> None:
    logits = torch.stack([LOGITS, LOGITS.clone().fill_(broken)])
    first, second = sample_tokens(logits, [row(temperature=0), row()])
    assert (first, second) == (0, None)


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0]])
    counts = Counter(sample_tokens(logits.expand(500, -1), [row()] * 500))
    assert set(counts) == {0, 2}


def test_the_largest_random_number_stays_inside_the_vocabulary() -> None:
    edge = RowSampling(1.0, 1.0, 0, lambda: 1.0 - 2**-53)
    (token,) = sample_tokens(torch.tensor([[0.0, 0.0, float("-inf")]]), [edge])
    assert token in (0, 1)


@given(
    st.lists(st.tuples(st.integers(0, 99), st.floats(0.3, 1.0), st.integers(0, 5)), min_size=1, max_size=6)
)
@settings(deadline=None, max_examples=50)
def test_a_row_draws_the_same_alone_and_in_company(rows: list[tuple[int, float, int]]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(len(rows), 40)

    def sampling(i: int) -> RowSampling:
        seed, top_p, top_k = rows[i]
        return RowSampling(1.0, top_p, top_k, sample_stream(seed, i).random)

    together = sample_tokens(logits, [sampling(i) for i in range(len(rows))])
    alone = [sample_tokens(logits[i : i + 1], [sampling(i)])[0] for i in range(len(rows))]
    assert together == alone


def test_streams_differ_by_sample_and_repeat_by_seed() -> None:
    assert sample_stream(1, 0).random() == sample_stream(1, 0).random()
    assert len({sample_stream(seed, index).random() for seed in (1, 11) for index in (0, 1)}) == 4
