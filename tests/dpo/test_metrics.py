"""Metrics against numbers worked out by hand, and added up over parts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_studio.dpo.metrics import metrics_of, preference_metrics, preference_sums

POLICY = torch.tensor([[-10.0, -20.0], [-32.0, -30.0], [-5.0, -9.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-12.0, -16.0], [-30.0, -36.0], [-6.0, -9.0]], dtype=torch.float64)
LENGTHS = torch.tensor([[4.0, 8.0], [20.0, 10.0], [2.0, 3.0]], dtype=torch.float64)


def test_by_hand() -> None:
    # Log-ratios (2, −4), (−2, 6), (1, 0).
    found = preference_metrics(POLICY, REFERENCE, LENGTHS, beta=0.5)
    expected = {
        "rewards/chosen": 0.5 * (2 - 2 + 1) / 3,
        "rewards/rejected": 0.5 * (-4 + 6 + 0) / 3,
        "rewards/margins": 0.5 * (6 - 8 + 1) / 3,
        "rewards/accuracies": 2 / 3,
        "logps/chosen": -47 / 3,
        "logps/rejected": -59 / 3,
        "logratio_per_token/chosen": (2 / 4 - 2 / 20 + 1 / 2) / 3,
        "logratio_per_token/rejected": (-4 / 8 + 6 / 10 + 0) / 3,
        "logratio_negative/chosen": 1 / 3,
        "lengths/gap": (-4 + 10 - 1) / 3,
        "rewards/length_correlation": found["rewards/length_correlation"],
    }
    assert found == pytest.approx(expected)


def test_a_ranking_is_told_by_its_best_and_worst_and_the_order_of_all() -> None:
    # Log-ratios (3, 5, −1) of three responses, two of three pairs in order; (1, 2) of two, in the wrong one.
    policy = torch.tensor([[-7.0, -5.0, -11.0], [-4.0, -3.0, 0.0]], dtype=torch.float64)
    reference = torch.tensor([[-10.0, -10.0, -10.0], [-5.0, -5.0, 0.0]], dtype=torch.float64)
    lengths = torch.tensor([[4.0, 5.0, 2.0], [5.0, 3.0, 0.0]], dtype=torch.float64)
    found = preference_metrics(policy, reference, lengths, beta=0.5)
    rewards = torch.tensor([1.5, 2.5, -0.5, 0.5, 1.0], dtype=torch.float64)
    there = torch.tensor([4.0, 5.0, 2.0, 5.0, 3.0], dtype=torch.float64)
    assert found == pytest.approx(
        {
            "rewards/chosen": (1.5 + 0.5) / 2,
            "rewards/rejected": (-0.5 + 1.0) / 2,
            "rewards/margins": (2.0 - 0.5) / 2,
            "rewards/accuracies": (2 / 3 + 0) / 2,
            "logps/chosen": (-7 - 4) / 2,
            "logps/rejected": (-11 - 3) / 2,
            "logratio_per_token/chosen": (3 / 4 + 1 / 5) / 2,
            "logratio_per_token/rejected": (-1 / 2 + 2 / 3) / 2,
            "logratio_negative/chosen": 0.0,
            "lengths/gap": (2 + 2) / 2,
            "rewards/length_correlation": torch.corrcoef(torch.stack([rewards, there]))[0, 1].item(),
        }
    )


def test_the_correlation_is_pearsons_over_all_responses() -> None:
    found = preference_metrics(POLICY, REFERENCE, LENGTHS, beta=0.5)["rewards/length_correlation"]
    rewards = 0.5 * (POLICY - REFERENCE).flatten()
    expected = torch.corrcoef(torch.stack([rewards, LENGTHS.flatten()]))[0, 1].item()
    assert found == pytest.approx(expected, abs=1e-12)
    assert abs(found) > 0.01


@pytest.mark.parametrize("sign", [1, -1])
def test_a_policy_that_is_paid_for_length_alone_shows_it(sign: int) -> None:
    policy = REFERENCE + sign * 0.3 * LENGTHS
    found = preference_metrics(policy, REFERENCE, LENGTHS, beta=0.1)
    assert found["rewards/length_correlation"] == pytest.approx(sign)


@pytest.mark.parametrize(
    ("policy", "lengths"),
    [(REFERENCE, LENGTHS), (REFERENCE + 0.1, LENGTHS), (POLICY, torch.full_like(LENGTHS, 7))],
)
def test_what_does_not_vary_correlates_with_nothing(policy: torch.Tensor, lengths: torch.Tensor) -> None:
    """An untrained policy, the same reward everywhere (up to rounding), responses of one length."""
    found = preference_metrics(policy, REFERENCE, lengths, beta=0.1)
    assert found["rewards/length_correlation"] == 0.0


@settings(deadline=None)
@given(st.integers(0, 3))
def test_parts_add_up_to_the_whole(cut: int) -> None:
    parts = [
        preference_sums(POLICY[part], REFERENCE[part], LENGTHS[part], beta=0.5)
        for part in (slice(0, cut), slice(cut, 3))
    ]
    sums = {name: float(parts[0][name] + parts[1][name]) for name in parts[0]}
    whole = preference_metrics(POLICY, REFERENCE, LENGTHS, beta=0.5)
    assert metrics_of(sums, 3) == pytest.approx(whole, abs=1e-12)


def test_a_chosen_response_that_became_less_likely_is_counted_and_a_tie_is_not() -> None:
    policy = REFERENCE + torch.tensor([[-1e-9, 0.0], [0.0, 0.0], [1e-9, 0.0]])
    found = preference_metrics(policy, REFERENCE, LENGTHS, beta=0.1)
    assert found["logratio_negative/chosen"] == pytest.approx(1 / 3)
