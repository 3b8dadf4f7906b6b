"""May this candidate go live? A pure decision on the worker's report, with a sentence for every check.

Accuracy is judged by exact tests, so that a few pairs decide little and many decide much: above chance by
a one-sided sign test, and not worse than the live version by a one-sided sign test on the pairs on which
they disagree (McNemar's exact test). Below `min_heldout` pairs, accuracy only counts against a candidate
that is clearly below chance. Health is judged against the base model's answers to the same prompts: a base
that never ends within the cap does not fail its candidate. Improving any number never turns a pass into
a failure.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dpo_studio.domain.round import ProbeSummary, RoundReport, Verdict


@dataclass(frozen=True, slots=True)
class GateThresholds:
    """What is asked of a candidate."""

    chance_significance: float = 0.15
    """How often a candidate that learned nothing may pass for one above chance. At 0.15, 30 pairs must give
    19 right (63 %) and 100 pairs 56; stricter levels turn away most good candidates of few pairs."""
    worse_significance: float = 0.05
    """How often a candidate as good as live may be taken for a worse one; also for "below chance"."""
    min_heldout: int = 30
    max_ended_drop: float = 0.3
    """Share of answers that may stop ending by themselves, compared with base."""
    max_looping_rise: float = 0.15
    max_empty_rise: float = 0.1
    min_length_ratio: float = 0.33
    max_length_ratio: float = 3.0
    max_kl_per_token: float = 0.6
    """Nats. On the starter 0.1 to 0.3 were healthy rounds, 0.69 a broken one."""
    min_chosen_logratio: float = -1.0
    """Mean over held-out pairs of log π/π_ref of the chosen response, nats per token: below, the answers that
    people prefer have become unlikely (likelihood displacement)."""


@dataclass(frozen=True, slots=True)
class _Check:
    passed: bool
    sentence: str


def judge(report: RoundReport, thresholds: GateThresholds | None = None) -> Verdict:
    """The gate's decision. Reasons hold one sentence for each check, failed ones first."""
    asked = thresholds or GateThresholds()
    if not report.ok:
        return Verdict(False, (report.reason,))
    checks = [_finite(report)]
    if checks[0].passed:
        checks += [
            *_accuracy(report, asked),
            *_likelihood(report, asked),
            *_health(report, asked),
            *_early_end(report),
        ]
    checks.sort(key=lambda check: check.passed)
    return Verdict(all(check.passed for check in checks), tuple(check.sentence for check in checks))


def _finite(report: RoundReport) -> _Check:
    probes = [probe for probe in (report.candidate_probe, report.base_probe) if probe is not None]
    numbers = {
        **report.metrics,
        **{f"held-out margin {i + 1}": value for i, value in enumerate(report.heldout_margins)},
        **{f"live margin {i + 1}": value for i, value in enumerate(report.live_margins)},
        **{f"KL of probe {i + 1}": probe.kl_per_token for i, probe in enumerate(probes)},
    }
    broken = [name for name, value in numbers.items() if not math.isfinite(value)]
    if broken:
        return _Check(False, f"{broken[0]} is {numbers[broken[0]]}, and every number must be finite.")
    return _Check(True, "Every number is finite.")


def _accuracy(report: RoundReport, asked: GateThresholds) -> Iterator[_Check]:
    margins = report.heldout_margins
    if not margins:
        yield _Check(True, "There are no held-out pairs yet, so accuracy is not checked.")
        return
    right, wrong = _signs(margins)
    count = right + wrong
    accuracy = (right + (len(margins) - count) / 2) / len(margins)
    found = f"Held-out accuracy is {_percent(accuracy)} of {_pairs(len(margins))}"
    if len(margins) < asked.min_heldout:
        if sign_test(wrong, right) > asked.worse_significance:
            yield _Check(
                True, f"{found}; with so few it is shown but decides only if it is clearly below chance."
            )
        else:
            yield _Check(False, f"{found}, which is clearly below chance.")
        return
    if sign_test(right, wrong) <= asked.chance_significance:
        yield _Check(True, f"{found}, clearly above chance.")
    else:
        needed = needed_right(count, asked.chance_significance)
        yield _Check(
            False,
            f"{found}; to be clearly above chance {needed} of the {count} pairs without a tie must be right,"
            f" and {right} are.",
        )
    yield from _not_worse_than_live(margins, report.live_margins, asked)


def _not_worse_than_live(
    candidate: Sequence[float], live: Sequence[float], asked: GateThresholds
) -> Iterator[_Check]:
    # Live is base: all its margins are ties, and the test against chance has said it all.
    if not live:
        return
    gained, lost = _signs([_score(new) - _score(old) for new, old in zip(candidate, live, strict=True)])
    found = f"Against the live version it is better on {_pairs(gained)} and worse on {lost}"
    if sign_test(lost, gained) > asked.worse_significance:
        yield _Check(True, f"{found}, which is not worse beyond noise.")
    else:
        yield _Check(False, f"{found}, which is worse beyond noise.")


def _likelihood(report: RoundReport, asked: GateThresholds) -> Iterator[_Check]:
    name = "logratio_per_token/chosen"
    found = report.metrics.get(f"heldout/{name}", report.metrics.get(name))
    if found is None:
        return
    sentence = f"Preferred answers changed their log-probability by {found:+.2f} nats a token"
    least = f"{asked.min_chosen_logratio:+.2f}"
    if found >= asked.min_chosen_logratio:
        yield _Check(True, f"{sentence}, not below {least}.")
    else:
        yield _Check(False, f"{sentence}, and at least {least} is asked: the answers people prefer got lost.")


def _health(report: RoundReport, asked: GateThresholds) -> Iterator[_Check]:
    candidate, base = report.candidate_probe, report.base_probe
    if candidate is None or base is None:
        yield _Check(True, "There are no probe prompts, so sampled answers are not checked.")
        return
    for what, found, usual, rise in (
        ("go on to the cap", 1 - candidate.ended_share, 1 - base.ended_share, asked.max_ended_drop),
        ("repeat one phrase", candidate.looping_share, base.looping_share, asked.max_looping_rise),
        ("are empty", candidate.empty_share, base.empty_share, asked.max_empty_rise),
    ):
        yield _share(what, found, usual, rise, candidate.num_samples)
    yield _length(candidate, base, asked)
    yield _drift(candidate, asked)


def _share(what: str, found: float, base: float, allowed_rise: float, count: int) -> _Check:
    """`found` may exceed `base` by the allowed rise, and by one of `count` answers in any case."""
    most = base + max(allowed_rise, 1 / count)
    sentence = f"{_percent(found)} of {count} sampled answers {what} (base: {_percent(base)})"
    # Shares are counts divided by counts: compare with room for rounding.
    if found <= most + 1e-9:
        return _Check(True, f"{sentence}.")
    return _Check(False, f"{sentence}, and at most {_percent(most)} is asked.")


def _length(candidate: ProbeSummary, base: ProbeSummary, asked: GateThresholds) -> _Check:
    low, high = asked.min_length_ratio * base.mean_tokens, asked.max_length_ratio * base.mean_tokens
    sentence = (
        f"Sampled answers have {candidate.mean_tokens:.0f} tokens on average (base: {base.mean_tokens:.0f})"
    )
    if low <= candidate.mean_tokens <= high:
        return _Check(True, f"{sentence}.")
    return _Check(False, f"{sentence}, and {low:.0f} to {high:.0f} are asked.")


def _drift(candidate: ProbeSummary, asked: GateThresholds) -> _Check:
    sentence = f"Sampled answers drifted {candidate.kl_per_token:.2f} nats a token from base"
    if candidate.kl_per_token <= asked.max_kl_per_token:
        return _Check(True, f"{sentence}, at most {asked.max_kl_per_token:.2f} as asked.")
    return _Check(False, f"{sentence}, and at most {asked.max_kl_per_token:.2f} is asked.")


def _early_end(report: RoundReport) -> Iterator[_Check]:
    """No check, but people shall know: the worker writes `planned_steps` when it ended training early."""
    planned = report.metrics.get("planned_steps")
    if planned is not None:
        steps = f"{report.num_steps} of {planned:.0f} steps"
        yield _Check(True, f"Training ended after {steps}, before the model drifted too far.")


def sign_test(successes: int, failures: int) -> float:
    """P(at least so many successes) if success and failure were equally likely; 1 for none of either."""
    count = successes + failures
    *_, ways = itertools.islice(_ways_from_the_top(count), failures + 1)
    return ways / (1 << count)


def needed_right(count: int, significance: float) -> int:
    """Fewest of `count` that are clearly above chance; count + 1 when not even all are."""
    ways = _ways_from_the_top(count)
    return count + 1 - sum(1 for _ in itertools.takewhile(lambda n: n / (1 << count) <= significance, ways))


def _ways_from_the_top(count: int) -> Iterator[int]:
    """Number of outcomes of `count` coins with at least `count`, `count` − 1, …, 0 successes. Exact."""
    outcomes = 1
    total = 0
    for failures in range(count + 1):
        total += outcomes
        yield total
        outcomes = outcomes * (count - failures) // (failures + 1)


def _signs(values: Sequence[float]) -> tuple[int, int]:
    return sum(value > 0 for value in values), sum(value < 0 for value in values)


def _score(margin: float) -> float:
    """1 right, 0 wrong, ½ tie."""
    return (margin > 0) - (margin < 0)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _pairs(count: int) -> str:
    return f"{count} held-out pair{'' if count == 1 else 's'}"
