"""The gate: each check alone decides both ways, counts matter, and better numbers never hurt."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_studio.domain.round import ProbeSummary, RoundReport
from dpo_studio.rounds.gate import GateThresholds, judge, needed_right, sign_test

BASE_PROBE = ProbeSummary(
    num_samples=20, ended_share=0.9, looping_share=0.0, empty_share=0.0, mean_tokens=30.0, kl_per_token=0.0
)
GOOD_PROBE = dataclasses.replace(BASE_PROBE, mean_tokens=25.0, kl_per_token=0.12)
GOOD = RoundReport(
    ok=True,
    reason="",
    num_steps=52,
    num_train=100,
    num_heldout=40,
    num_truncated=0,
    num_dropped=0,
    train_seconds=17.0,
    metrics={"loss": 0.4, "heldout/logratio_per_token/chosen": -0.05},
    heldout_margins=(0.5,) * 32 + (-0.5,) * 8,
    live_margins=(),
    candidate_probe=GOOD_PROBE,
    base_probe=BASE_PROBE,
    adapter_sha256={},
)


def with_margins(right: int, wrong: int, ties: int = 0, live: tuple[float, ...] = ()) -> RoundReport:
    margins = (1.0,) * right + (-1.0,) * wrong + (0.0,) * ties
    return dataclasses.replace(GOOD, heldout_margins=margins, live_margins=live)


def with_probe(**changes: Any) -> RoundReport:
    return dataclasses.replace(GOOD, candidate_probe=dataclasses.replace(GOOD_PROBE, **changes))


def test_a_good_round_passes_and_every_check_says_so() -> None:
    verdict = judge(GOOD)
    assert verdict.passed
    assert len(verdict.reasons) == 8
    assert "Held-out accuracy is 80% of 40 held-out pairs, clearly above chance." in verdict.reasons


def test_a_failed_round_is_refused_with_its_own_reason() -> None:
    verdict = judge(dataclasses.replace(GOOD, ok=False, reason="The loss became NaN at step 12"))
    assert verdict == dataclasses.replace(verdict, passed=False, reasons=("The loss became NaN at step 12",))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_infinite_or_nan(bad: float) -> None:
    for report in (
        dataclasses.replace(GOOD, metrics={**GOOD.metrics, "loss": bad}),
        dataclasses.replace(GOOD, heldout_margins=(bad, *GOOD.heldout_margins)),
        with_probe(kl_per_token=bad),
    ):
        verdict = judge(report)
        assert not verdict.passed
        assert "must be finite" in verdict.reasons[0]


def test_the_sign_test_counts_outcomes_of_fair_coins() -> None:
    # 8 of 10: (45 + 10 + 1) / 1024
    assert sign_test(8, 2) == pytest.approx(56 / 1024)
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 5) == 1.0
    assert sign_test(5, 0) == pytest.approx(1 / 32)


def test_the_sign_test_holds_for_thousands_of_pairs() -> None:
    assert sign_test(2500, 2500) == pytest.approx(0.5, abs=0.01)
    assert sign_test(2700, 2300) < 1e-7


def test_thirty_pairs_need_nineteen_right_and_a_hundred_need_fifty_six() -> None:
    # P(at least 19 of 30) = 0.100, of 18 0.181; P(at least 56 of 100) = 0.136, of 55 0.184.
    assert needed_right(30, 0.15) == 19
    assert needed_right(100, 0.15) == 56
    assert needed_right(2, 0.15) == 3
    assert needed_right(0, 0.15) == 1
    assert needed_right(5000, 0.15) == 2538


@pytest.mark.parametrize(("right", "passed"), [(18, False), (19, True)])
def test_accuracy_passes_exactly_where_chance_becomes_unlikely(right: int, passed: bool) -> None:
    verdict = judge(with_margins(right, 30 - right))
    assert verdict.passed is passed
    if not passed:
        assert "19 of the 30 pairs without a tie must be right, and 18 are" in verdict.reasons[0]


def test_ties_are_no_evidence() -> None:
    # An untrained adapter ties everywhere.
    verdict = judge(with_margins(0, 0, ties=40))
    assert not verdict.passed
    assert "50% of 40" in verdict.reasons[0]


@pytest.mark.parametrize(("right", "passed"), [(6, True), (3, True), (2, False), (0, False)])
def test_few_pairs_only_refuse_what_is_clearly_below_chance(right: int, passed: bool) -> None:
    verdict = judge(with_margins(right, 12 - right))
    assert verdict.passed is passed
    assert ("decides only if" in " ".join(verdict.reasons)) is passed


def test_without_held_out_pairs_accuracy_is_not_checked() -> None:
    verdict = judge(with_margins(0, 0))
    assert verdict.passed
    assert any("no held-out pairs yet" in reason for reason in verdict.reasons)


def test_a_candidate_clearly_worse_than_live_is_refused_although_above_chance() -> None:
    # Live has all 40 right, the candidate 28: 12 lost, none gained, p = 2⁻¹².
    verdict = judge(with_margins(28, 12, live=(1.0,) * 40))
    assert not verdict.passed
    assert "worse beyond noise" in verdict.reasons[0]


def test_a_candidate_as_good_as_live_with_other_mistakes_passes() -> None:
    # 4 gained, 4 lost.
    live = (-1.0,) * 4 + (1.0,) * 32 + (1.0,) * 4
    assert judge(with_margins(36, 4, live=live)).passed


@pytest.mark.parametrize(
    ("healthy", "broken", "words"),
    [
        ({"ended_share": 0.65}, {"ended_share": 0.55}, "go on to the cap"),
        ({"looping_share": 0.15}, {"looping_share": 0.2}, "repeat one phrase"),
        ({"empty_share": 0.1}, {"empty_share": 0.15}, "are empty"),
        ({"mean_tokens": 10.0}, {"mean_tokens": 9.0}, "10 to 90 are asked"),
        ({"mean_tokens": 90.0}, {"mean_tokens": 91.0}, "10 to 90 are asked"),
        ({"kl_per_token": 0.6}, {"kl_per_token": 0.61}, "at most 0.60 is asked"),
    ],
)
def test_each_health_check_decides_at_its_bound(
    healthy: dict[str, float], broken: dict[str, float], words: str
) -> None:
    assert judge(with_probe(**healthy)).passed
    verdict = judge(with_probe(**broken))
    assert not verdict.passed
    assert words in verdict.reasons[0]


def test_one_unlucky_answer_of_few_is_no_failure() -> None:
    few = dataclasses.replace(GOOD_PROBE, num_samples=4, empty_share=0.25)
    assert judge(dataclasses.replace(GOOD, candidate_probe=few)).passed


def test_a_base_that_never_ends_does_not_fail_its_candidate() -> None:
    endless = dataclasses.replace(BASE_PROBE, ended_share=0.0, mean_tokens=96.0)
    report = dataclasses.replace(GOOD, base_probe=endless, candidate_probe=endless)
    assert judge(report).passed


def test_a_collapse_of_preferred_answers_is_refused_even_with_full_accuracy() -> None:
    lost = {"heldout/logratio_per_token/chosen": -1.2, "loss": 0.0}
    verdict = judge(dataclasses.replace(with_margins(40, 0), metrics=lost))
    assert not verdict.passed
    assert "got lost" in verdict.reasons[0]


def test_without_probes_health_is_not_checked() -> None:
    assert judge(dataclasses.replace(GOOD, candidate_probe=None, base_probe=None)).passed


signs = st.sampled_from([-1.0, 0.0, 1.0])


@settings(deadline=None)
@given(st.data(), st.lists(st.tuples(signs, signs), max_size=60), st.booleans())
def test_better_margins_never_turn_a_pass_into_a_failure(
    data: st.DataObject, pairs: list[tuple[float, float]], has_live: bool
) -> None:
    margins = tuple(pair[0] for pair in pairs)
    live = tuple(pair[1] for pair in pairs) if has_live else ()
    better = tuple(max(margin, data.draw(signs)) for margin in margins)
    before = judge(dataclasses.replace(GOOD, heldout_margins=margins, live_margins=live))
    after = judge(dataclasses.replace(GOOD, heldout_margins=better, live_margins=live))
    assert after.passed or not before.passed


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.floats(0, 2), st.floats(0, 2))
def test_healthier_answers_never_turn_a_pass_into_a_failure(
    ended: int, looping: int, kl: float, less: float
) -> None:
    shares = {"ended_share": ended / 20, "looping_share": looping / 20, "kl_per_token": kl}
    better = {
        "ended_share": min(20, ended + 1) / 20,
        "looping_share": max(0, looping - 1) / 20,
        "kl_per_token": kl - less,
    }
    assert judge(with_probe(**better)).passed or not judge(with_probe(**shares)).passed


def test_people_are_told_of_an_early_end() -> None:
    verdict = judge(dataclasses.replace(GOOD, metrics={**GOOD.metrics, "planned_steps": 88.0}))
    assert verdict.passed
    assert "Training ended after 52 of 88 steps, before the model drifted too far." in verdict.reasons


def test_thresholds_are_arguments() -> None:
    assert not judge(GOOD, GateThresholds(max_kl_per_token=0.1)).passed
