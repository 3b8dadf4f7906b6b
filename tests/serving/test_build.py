"""How many rows a cache budget buys."""

from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.serving.build import fit_rows


def test_a_large_budget_gives_all_rows_at_full_length() -> None:
    assert fit_rows(100, 10**9, max_rows=16, max_length=4096) == (16, 4096)


def test_a_smaller_budget_first_costs_rows() -> None:
    assert fit_rows(100, 100 * 4096 * 6, max_rows=16, max_length=4096) == (6, 4096)


def test_a_tight_budget_then_costs_length() -> None:
    assert fit_rows(100, 100 * 4096 * 2, max_rows=16, max_length=4096) == (4, 2048)


def test_below_the_least_it_tries_anyway() -> None:
    assert fit_rows(100, 0, max_rows=16, max_length=4096) == (4, 512)


@given(st.integers(1, 10**6), st.integers(0, 10**12), st.integers(1, 64), st.integers(16, 8192))
def test_the_limits_are_never_exceeded(token_bytes: int, budget: int, max_rows: int, max_length: int) -> None:
    rows, length = fit_rows(token_bytes, budget, max_rows=max_rows, max_length=max_length)
    assert 1 <= rows <= max_rows and 1 <= length <= max_length
    assert rows * length * token_bytes <= budget or length <= 512
