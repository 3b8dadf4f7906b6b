"""Intervals of shares: known values, and answers to one prompt that are alike count for less."""

import pytest

from benchmarks.intervals import clustered_interval, wilson


def test_wilson_is_the_published_interval() -> None:
    # Newcombe 1998, table I: 81 of 263.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_wilson_of_a_full_house_ends_at_one_and_starts_below() -> None:
    low, high = wilson(1.0, 100)
    assert high == 1.0
    assert low == pytest.approx(100 / (100 + 1.959964**2))


def test_one_answer_a_prompt_is_wilsons_interval() -> None:
    answers = [[True]] * 30 + [[False]] * 70
    assert clustered_interval(answers) == pytest.approx(wilson(0.3, 100), abs=1e-9)


def test_twins_count_once() -> None:
    """Two answers that are always alike say no more than one."""
    twins = [[True, True]] * 30 + [[False, False]] * 70
    assert clustered_interval(twins) == pytest.approx(wilson(0.3, 100), abs=1e-3)


def test_independent_answers_count_each() -> None:
    # Means of 1, ½ and 0 as often as two fair coins give them.
    coins = [[True, True]] * 250 + [[True, False]] * 500 + [[False, False]] * 250
    assert clustered_interval(coins) == pytest.approx(wilson(0.5, 2000), abs=1e-4)
