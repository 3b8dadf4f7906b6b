"""Losses against numbers worked out by hand, and against the identities that define them."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.losses import (
    dpo_losses,
    hinge_losses,
    ipo_losses,
    margins,
    plackett_luce_losses,
    preference_losses,
    robust_losses,
    sft_losses,
)
from dpo_studio.errors import BadInput

LN2 = math.log(2)
# The first call into torch may take longer than Hypothesis allows.
relaxed = settings(deadline=None)
nats = st.floats(-50, 50)
betas = st.floats(0.01, 2)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient_of(losses: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    at = at.requires_grad_()
    (gradient,) = torch.autograd.grad(losses(at).sum(), at)
    return gradient


def test_policy_equal_to_reference_gives_ln2_whatever_the_smoothing() -> None:
    for smoothing in (0.0, 0.1, 0.49):
        assert dpo_losses(tensor(0.0), beta=0.1, label_smoothing=smoothing).item() == pytest.approx(LN2)


def test_policy_equal_to_reference_gives_the_squared_target_under_ipo() -> None:
    # β = 0.1 asks for a margin of 1/(2·0.1) = 5 nats; a margin of 0 misses it by 5.
    assert ipo_losses(tensor(0.0), beta=0.1).item() == pytest.approx(25.0)
    assert ipo_losses(tensor(5.0), beta=0.1).item() == pytest.approx(0.0)


def test_dpo_at_a_margin_of_ten_nats() -> None:
    # β·h = 0.1·10 = 1; −log σ(1) = log(1 + e⁻¹) = 0.31326168…
    assert dpo_losses(tensor(10.0), beta=0.1).item() == pytest.approx(0.3132616875182228, abs=1e-15)


def test_dpo_gradient_is_beta_times_the_weight_of_a_wrong_ranking() -> None:
    # ∂L/∂r_chosen = −β·σ(−βh) = −∂L/∂r_rejected (Rafailov et al., section 4).
    gradient = gradient_of(
        lambda ratios: preference_losses(ratios, TrainSettings(beta=0.3)), tensor(3.0, -2.0).view(1, 2)
    )
    expected = 0.3 / (1 + math.exp(0.3 * 5))
    assert gradient[0].tolist() == pytest.approx([-expected, expected], abs=1e-17)


def test_ipo_gradient_is_twice_the_distance_to_the_target() -> None:
    gradient = gradient_of(lambda h: ipo_losses(h, beta=0.25), tensor(7.0))
    assert gradient.item() == pytest.approx(2 * (7 - 2))


@relaxed
@given(nats, betas, st.floats(0, 0.49))
def test_smoothing_is_the_expected_loss_over_flipped_labels(h: float, beta: float, share: float) -> None:
    kept, flipped = dpo_losses(tensor(h), beta=beta), dpo_losses(tensor(-h), beta=beta)
    smoothed = dpo_losses(tensor(h), beta=beta, label_smoothing=share)
    torch.testing.assert_close(smoothed, (1 - share) * kept + share * flipped)


def test_smoothing_puts_the_minimum_where_the_assumed_flips_are() -> None:
    # Minimised at σ(βh) = 1 − ε, so h = log((1−ε)/ε)/β; with ε = 0 there is no minimum.
    best = tensor(math.log(9.0) / 0.1)
    gradient = gradient_of(lambda h: dpo_losses(h, beta=0.1, label_smoothing=0.1), best)
    assert gradient.item() == pytest.approx(0.0, abs=1e-15)


@relaxed
@given(nats, nats, betas)
def test_swapping_the_labels_mirrors_the_gradient_weight(chosen: float, rejected: float, beta: float) -> None:
    def gradient(first: float, second: float) -> float:
        ratios = tensor(first, second).view(1, 2)
        return (
            float(gradient_of(lambda r: preference_losses(r, TrainSettings(beta=beta)), ratios)[0, 0]) / beta
        )

    # σ(−βh) + σ(βh) = 1
    assert gradient(chosen, rejected) + gradient(rejected, chosen) == pytest.approx(-1.0)


def soft(h: float, p: float, **changes: Any) -> float:
    """The loss of one pair with margin `h` of which a share `p` of labelers prefers the chosen response."""
    ratios = tensor(h, 0.0).view(1, 2)
    return preference_losses(ratios, TrainSettings(**changes), chosen_probability=tensor(p)).item()


def test_a_soft_label_by_hand() -> None:
    # Votes 3:1 at βh = 1: log(1 + e⁻¹) for the three, log(1 + e) = that + 1 for the one.
    assert soft(10.0, 0.75, beta=0.1) == pytest.approx(0.3132616875182228 + 0.25 * 1.0)
    # ipo, target 1/(2·0.1) = 5: ¾·(10 − 5)² + ¼·(−10 − 5)².
    assert soft(10.0, 0.75, loss="ipo", beta=0.1) == pytest.approx(0.75 * 25 + 0.25 * 225)
    # hinge at βh = ½: ¾·½ + ¼·3/2.
    assert soft(5.0, 0.75, loss="hinge", beta=0.1) == pytest.approx(0.75)


@relaxed
@given(nats, betas, st.floats(0, 0.49))
def test_a_soft_label_is_conservative_dpo_of_its_own_doubt(h: float, beta: float, doubt: float) -> None:
    expected = dpo_losses(tensor(h), beta=beta, label_smoothing=doubt).item()
    assert soft(h, 1 - doubt, beta=beta) == pytest.approx(expected, rel=1e-12)


@relaxed
@given(nats, betas, st.floats(0, 1))
def test_a_soft_label_shrinks_the_target_of_ipo(h: float, beta: float, p: float) -> None:
    share = 2 * p - 1
    expected = (h - share / (2 * beta)) ** 2 + (1 - share**2) / (4 * beta**2)
    assert soft(h, p, loss="ipo", beta=beta) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@relaxed
@given(nats, betas, st.floats(0, 0.45))
def test_robust_with_the_doubt_it_assumes_is_plain_dpo(h: float, beta: float, doubt: float) -> None:
    found = soft(h, 1 - doubt, loss="robust", beta=beta, label_smoothing=doubt)
    assert found == pytest.approx(dpo_losses(tensor(h), beta=beta).item(), rel=1e-9, abs=1e-9)


@relaxed
@given(nats, betas, st.floats(0, 1), st.sampled_from(["sigmoid", "ipo", "hinge", "robust"]))
def test_a_soft_label_is_the_mean_over_its_votes_and_turns_with_its_sides(
    h: float, beta: float, p: float, loss: Any
) -> None:
    smoothing = 0.1 if loss == "robust" else 0.0
    options = {"loss": loss, "beta": beta, "label_smoothing": smoothing}
    votes = p * soft(h, 1.0, **options) + (1 - p) * soft(-h, 1.0, **options)
    assert soft(h, p, **options) == pytest.approx(votes, rel=1e-12, abs=1e-12)
    assert soft(-h, 1 - p, **options) == pytest.approx(votes, rel=1e-9, abs=1e-9)


def test_a_soft_label_puts_the_minimum_where_the_labelers_are() -> None:
    """σ(βh) = p: at votes 3:1 and β = 0.1, h = 10·log 3."""
    gradient = gradient_of(
        lambda ratios: preference_losses(ratios, TrainSettings(beta=0.1), chosen_probability=tensor(0.75)),
        tensor(10 * math.log(3), 0.0).view(1, 2),
    )
    assert gradient.abs().max().item() == pytest.approx(0.0, abs=1e-16)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "robust"])
def test_certainty_is_the_same_loss_to_the_bit(loss: Any) -> None:
    ratios, settings_ = tensor(3.0, -2.0, 7.0, 40.0).view(2, 2), TrainSettings(loss=loss)
    certain = preference_losses(ratios, settings_, chosen_probability=tensor(1.0, 1.0))
    assert torch.equal(certain, preference_losses(ratios, settings_))


def test_lengths_turn_with_the_sides() -> None:
    """Per-token means 6/3 and −4/2: h = 4; the other side's is −4, and not that of swapped lengths."""
    settings_ = TrainSettings(loss="ipo", beta=0.25, length_normalised=True)
    found = preference_losses(
        tensor(6.0, -4.0).view(1, 2), settings_, tensor(3.0, 2.0).view(1, 2), tensor(0.5)
    )
    assert found.item() == pytest.approx(0.5 * (4 - 2) ** 2 + 0.5 * (-4 - 2) ** 2)


@relaxed
@given(nats, betas, st.floats(0, 0.49))
def test_the_robust_loss_is_unbiased(h: float, beta: float, share: float) -> None:
    """Its expectation over labels flipped with that probability is the loss of the true labels."""
    kept, flipped = (robust_losses(tensor(x), beta=beta, label_smoothing=share) for x in (h, -h))
    torch.testing.assert_close(
        (1 - share) * kept + share * flipped, dpo_losses(tensor(h), beta=beta), atol=1e-8, rtol=1e-8
    )


def test_the_hinge_ends_where_the_reward_margin_is_one() -> None:
    assert hinge_losses(tensor(0.0, 5.0, 10.0, 20.0, -10.0), beta=0.1).tolist() == [1.0, 0.5, 0.0, 0.0, 2.0]


def test_length_normalised_ipo_compares_means_over_tokens() -> None:
    # Means 6/3 = 2 and −4/2 = −2: h = 4, and the target at β = 0.25 is 2.
    settings_ = TrainSettings(loss="ipo", beta=0.25, length_normalised=True)
    found = preference_losses(tensor(6.0, -4.0).view(1, 2), settings_, tensor(3.0, 2.0).view(1, 2))
    assert found.item() == pytest.approx(4.0)


def test_length_normalisation_without_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="lengths"):
        preference_losses(torch.zeros(1, 2), TrainSettings(length_normalised=True))


@relaxed
@given(nats, nats, betas)
def test_plackett_luce_over_two_responses_is_dpo(chosen: float, rejected: float, beta: float) -> None:
    log_ratios = torch.tensor([[chosen, rejected]], dtype=torch.float64)
    torch.testing.assert_close(
        plackett_luce_losses(log_ratios, beta=beta), dpo_losses(margins(log_ratios), beta=beta)
    )


def test_plackett_luce_probabilities_of_all_orders_sum_to_one() -> None:
    rewards = [0.7, -1.2, 2.5]
    losses = [
        plackett_luce_losses(torch.tensor([order], dtype=torch.float64), beta=1.0).item()
        for order in itertools.permutations(rewards)
    ]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1.0, abs=1e-14)


def test_plackett_luce_of_three_by_enumeration() -> None:
    # Choose the best of {1, 0, −1}, then of {0, −1}: e/(e+1+e⁻¹) · 1/(1+e⁻¹)
    e = math.e
    expected = -math.log(e / (e + 1 + 1 / e) * 1 / (1 + 1 / e))
    loss = plackett_luce_losses(torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64), beta=1.0)
    assert loss.item() == pytest.approx(expected, abs=1e-15)


@relaxed
@given(st.lists(nats, min_size=2, max_size=5), nats)
def test_plackett_luce_ignores_a_constant_of_the_prompt(log_ratios: list[float], shift: float) -> None:
    plain = torch.tensor([log_ratios], dtype=torch.float64)
    torch.testing.assert_close(
        plackett_luce_losses(plain + shift, beta=0.1), plackett_luce_losses(plain, beta=0.1)
    )


def test_rankings_of_different_lengths_stand_in_one_tensor() -> None:
    """What fills the columns that a shorter ranking lacks changes neither losses nor gradients."""
    values = torch.tensor([[1.0, 0.5, -2.0, 3.0], [0.3, -0.1, 9.0, -9.0], [0.2, 0.1, 0.4, 50.0]]).double()
    lengths = torch.tensor([[5, 5, 5, 5], [2, 2, 0, 0], [1, 2, 3, 0]])
    expected = [
        plackett_luce_losses(values[row : row + 1, :count], beta=0.7).item()
        for row, count in enumerate((4, 2, 3))
    ]
    found = plackett_luce_losses(values, beta=0.7, lengths=lengths)
    assert found.tolist() == pytest.approx(expected, abs=1e-15)
    slope = gradient_of(lambda at: plackett_luce_losses(at, beta=0.7, lengths=lengths), values)
    assert bool((slope[lengths == 0] == 0).all()) and bool((slope[lengths > 0] != 0).all())


def test_the_plackett_luce_gradient_is_beta_times_the_chances_less_the_place() -> None:
    """∂L/∂r_j = β·(Σ over the places k up to j of the chance of j at place k − 1), without the last place."""
    r, beta = (0.4, -0.2, 0.9), 0.5
    first = [math.exp(beta * value) for value in r]
    second = first[1:]
    expected = [
        beta * (first[0] / sum(first) - 1),
        beta * (first[1] / sum(first) + second[0] / sum(second) - 1),
        beta * (first[2] / sum(first) + second[1] / sum(second)),
    ]
    slope = gradient_of(lambda at: plackett_luce_losses(at, beta=beta), tensor(*r).view(1, 3))
    assert slope[0].tolist() == pytest.approx(expected, abs=1e-15)


@relaxed
@given(nats, nats, betas, st.floats(0, 1))
def test_a_soft_label_of_a_pair_among_rankings_is_that_of_dpo(
    chosen: float, rejected: float, beta: float, p: float
) -> None:
    settings_ = TrainSettings(loss="plackett_luce", beta=beta)
    log_ratios = torch.tensor([[chosen, rejected, 0.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    lengths, certainty = torch.tensor([[3, 4, 0], [1, 1, 1]]), torch.tensor([p, 1.0], dtype=torch.float64)
    found = preference_losses(log_ratios, settings_, lengths, certainty)
    plain = TrainSettings(beta=beta)
    expected = preference_losses(log_ratios[:1, :2], plain, lengths[:1, :2], certainty[:1])
    torch.testing.assert_close(found[:1], expected)
    torch.testing.assert_close(found[1:], plackett_luce_losses(log_ratios[1:], beta=beta))


def test_length_normalised_rankings_compare_means_over_tokens() -> None:
    settings_ = TrainSettings(loss="plackett_luce", beta=0.5, length_normalised=True)
    log_ratios = torch.tensor([[6.0, 2.0, 3.0], [4.0, 2.0, 0.0]], dtype=torch.float64)
    lengths = torch.tensor([[3, 2, 1], [2, 2, 0]])
    expected = [
        plackett_luce_losses(tensor(2.0, 1.0, 3.0).view(1, 3), beta=0.5).item(),
        plackett_luce_losses(tensor(2.0, 1.0).view(1, 2), beta=0.5).item(),
    ]
    assert preference_losses(log_ratios, settings_, lengths).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "robust"])
def test_a_loss_of_pairs_refuses_a_ranking(loss: Any) -> None:
    with pytest.raises(ValueError, match="expected the shape"):
        preference_losses(torch.zeros(1, 3), TrainSettings(loss=loss), torch.ones(1, 3))


def test_sft_is_the_mean_over_tokens() -> None:
    assert sft_losses(tensor(-6.0, -6.0), tensor(2.0, 3.0)).tolist() == [3.0, 2.0]


def test_far_margins_stay_finite() -> None:
    for h in (-1e6, 1e6):
        assert torch.isfinite(dpo_losses(tensor(h), beta=1.0, label_smoothing=0.1)).all()
        assert torch.isfinite(plackett_luce_losses(tensor(h, 0.0).view(1, 2), beta=1.0)).all()


@pytest.mark.parametrize("loss", ["ipo", "hinge", "plackett_luce"])
def test_smoothing_where_it_means_nothing_is_refused_rather_than_ignored(loss: Any) -> None:
    with pytest.raises(BadInput, match="label_smoothing"):
        preference_losses(torch.zeros(1, 2), TrainSettings(loss=loss, label_smoothing=0.1))


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 1)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected the shape"):
        margins(torch.zeros(shape))
